"""Recipes of the benchmarks: what they state, their hash, changes, and refusals in one line."""

import json
from dataclasses import asdict

import pytest

from videonsa.errors import UsageError
from videonsa.evals.field.benchmarks import BENCHMARKS
from videonsa.evals.field.paper import the_paper
from videonsa.evals.field.recipe import (
    changed_recipe,
    differences,
    packaged_recipes,
    read_recipe,
    stated_recipe,
)
from videonsa.parsing import parse_json
from videonsa.video.sampling import SamplingSpec


def test_every_benchmark_has_a_recipe_and_every_recipe_samples():
    recipes = packaged_recipes()
    assert {one.benchmark for one in recipes} == set(BENCHMARKS)
    assert len({one.digest for one in recipes}) == len(recipes)
    for one in recipes:
        assert SamplingSpec(**one.sampling_values()).min_pixels == one.min_pixels
    assert read_recipe("lvbench", name="long") in recipes


def test_the_papers_recipe_states_what_its_table_5_states():
    for task, stated in the_paper().tasks.items():
        recipe = read_recipe(task)
        assert (recipe.name, recipe.scoring) == ("paper", "paper")
        assert recipe.min_pixels == recipe.max_pixels == recipe.tokens_a_frame * 28 * 28
        for name, ours in (
            ("tokens_a_frame", recipe.tokens_a_frame),
            ("frames", recipe.max_frames),
            ("fps", recipe.fps),
            ("max_new_tokens", recipe.max_new_tokens),
        ):
            assert getattr(stated, name) in (None, ours), (task, name)


def test_a_recipe_once_published_keeps_its_hash():
    kept = {"mlvu_test": MLVU, "tomato": TOMATO}
    assert {name: read_recipe(name, name="paper").digest for name in kept} == kept, (
        "a recipe has changed: raise its version, and then change this"
    )


MLVU, TOMATO = "ae58610e2619c312", "881266f768433575"


def test_words_about_a_recipe_change_no_hash_and_settings_do():
    recipe = read_recipe("videomme")
    assert recipe.name == "qwen2.5-vl"
    values = parse_json(json.dumps(asdict(recipe)))
    assert stated_recipe(values) == recipe
    assert stated_recipe(values | {"summary": "other words"}).digest == recipe.digest
    changed = changed_recipe(recipe, ["max_frames=64", "system=Look."])
    assert changed.digest != recipe.digest
    assert differences(changed, recipe) == (
        "max_frames 64 (recipe: 768)",
        "system 'Look.' (recipe: 'You are a helpful assistant.')",
    )
    assert differences(recipe, recipe) == ()


def test_a_prompt_is_changed_or_refused():
    recipe = read_recipe("tomato")
    begin = "You will be provided with frames uniformly sampled from a video"
    assert "with 16 separate frames uniformly sampled" in recipe.prompt_text(begin)
    with pytest.raises(UsageError, match="does not stand in the prompt of tomato"):
        recipe.prompt_text("Look at these frames")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["max_frames"], "--set max_frames: want field=value"),
        (["max_frame=3"], "did you mean max_frames?"),
        (["version=3"], "--set version: want one of fps,"),
        (["max_frames=many"], "--set: max_frames: 'many' where int is wanted"),
        (["fps=0"], "--set: fps=0.0: want a number above 0"),
        (["min_pixels=999999"], "--set: min_pixels=999999 exceeds max_pixels=401408"),
        (["max_new_tokens=0"], "want a whole number of at least 1"),
        (["system=[}"], "not YAML"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_one_line(settings, message):
    with pytest.raises(UsageError) as error:
        changed_recipe(read_recipe("longvideobench_val_v"), settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_recipe_of_a_file_is_checked(tmp_path):
    path = tmp_path / "mine.yaml"

    def refusal(text):
        path.write_text(text)
        with pytest.raises(UsageError) as error:
            read_recipe("lvbench", name=str(path))
        return str(error.value)

    assert "want 'settings:' and 'benchmarks:'" in refusal("version: 1")
    assert "recipe mine has no lvbench" in refusal("settings: {}\nbenchmarks: {tomato: {}}")
    assert "fps is not stated" in refusal(FILE.replace("fps: 2", "min_frames: 2"))
    assert "frames is no setting" in refusal(FILE.replace("fps", "frames"))
    assert "scoring 'best': want paper or lmms-0.7.3" in refusal(FILE.replace("paper", "best"))
    path.write_text(FILE)
    assert read_recipe("lvbench", name=str(path)).title.startswith("mine v1 (")
    for name, message in (("papr", "did you mean paper"), (str(tmp_path / "no.yaml"), "no such")):
        with pytest.raises(UsageError, match=message):
            read_recipe("lvbench", name=name)
    with pytest.raises(UsageError, match="did you mean mlvu_dev"):
        read_recipe("mlvu")


FILE = """\
version: 1
summary: of one's own
sources: []
scoring: paper
settings: {fps: 2, max_frames: 8, min_pixels: 784, max_pixels: 784, temperature: 0, system: Look.}
benchmarks:
  lvbench: {max_new_tokens: 4}
"""
