"""A trained model asks as the one that it came from, and as its data were sampled."""

import json
import os
import shutil

import pytest
from awq_checkpoints import write_awq
from conftest import TOKENIZER, write_clip
from small_manifest import OPTIONS, SAMPLING, record, write_manifest
from small_run import make_data, recipe_for

from videonsa.data.agreement import sampling_values
from videonsa.data.records import VideoRef
from videonsa.data.scripts import script_text
from videonsa.errors import UsageError
from videonsa.inference.engine import load
from videonsa.models.checkpoints.stored import read_header
from videonsa.models.shape import load_shape
from videonsa.planning.defaults import default_sampling
from videonsa.rendered.clips import Clip
from videonsa.train.run import train
from videonsa.video.sampling import SamplingSpec

SETTINGS = {
    "fps": 3.0,
    "min_frames": 2,
    "max_frames": 6,
    "size": {"shortest_edge": 3136, "longest_edge": 6272},
    "do_resize": True,
}
VIDEOS = (
    *((4, 28, 28, 1), (9, 56, 84, 2), (30, 112, 84, 3), (48, 84, 112, 4), (7, 168, 56, 5)),
    *((50, 140, 140, 10), (75, 224, 112, 15), (24, 320, 240, 24), (50, 64, 360, 25)),
    (12, 448, 448, 30),
)
"""Frames, width, height and frames a second."""
ONE_STEP = ("optimizer.steps=1", "optimizer.batch_size=1", "optimizer.learning_rate=1e-12")


@pytest.fixture(scope="module")
def base(tiny_folder, tmp_path_factory):
    """With settings of its own beside the weights."""
    folder = shutil.copytree(tiny_folder, tmp_path_factory.mktemp("base") / "base")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(SETTINGS))
    (folder / "preprocessor_config.json").write_text('{"patch_size": 14}')
    generation = {"eos_token_id": [2, 5], "repetition_penalty": 1.05}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    from transformers import AutoTokenizer

    script = script_text(Clip(seed=1, patches=8, phase=0.0))
    path = tmp_path_factory.mktemp("rendered") / "manifest.parquet"
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    write_manifest(path, [record("clip", VideoRef(script=script))], tokenizer)
    return path


def one_step(base, manifest, out, *settings):
    recipe = recipe_for(
        base, manifest, "data.context=512", "run.save_every=1", *ONE_STEP, *settings
    )
    return train(recipe, out)


def test_after_a_step_that_changes_nothing_ten_videos_get_the_answers_of_the_base(
    base, rendered, tmp_path
):
    trained = load(one_step(base, rendered, tmp_path / "run"))
    before = load(base)
    for index, (num_frames, width, height, fps) in enumerate(VIDEOS):
        video = write_clip(
            tmp_path / f"{index}.mp4", num_frames=num_frames, width=width, height=height, fps=fps
        )
        asked = [
            model.ask(video, "What is shown?", max_new_tokens=4) for model in (before, trained)
        ]
        assert asked[0].text == asked[1].text
        assert asked[0].usage.grid == asked[1].usage.grid
        assert asked[0].usage.times == asked[1].usage.times


@pytest.mark.parametrize("settings", [(), ("model.lora_rank=2",)], ids=["all weights", "LoRA"])
def test_every_model_that_is_saved_has_the_files_that_stand_beside_the_weights(
    base, rendered, tmp_path, settings
):
    one_step(base, rendered, tmp_path, *settings)
    for folder in (tmp_path / "model", tmp_path / "checkpoint-1"):
        assert json.loads((folder / "video_preprocessor_config.json").read_text()) == SETTINGS
        for name in (
            *("preprocessor_config.json", "generation_config.json", "chat_template.jinja"),
            *("tokenizer.json", "tokenizer_config.json"),
        ):
            assert (folder / name).read_bytes() == (base / name).read_bytes()


def test_training_starts_from_awq_with_a_line_and_saves_floats(
    tiny_folder, rendered, tmp_path, capsys
):
    base = write_awq(tmp_path / "awq", tiny_folder, group=32)
    model = one_step(base, rendered, tmp_path / "run")
    assert "the base holds int4 weights (AWQ): training starts" in capsys.readouterr().err
    assert "quantization_config" not in (model / "config.json").read_text()
    names = {tensor.name for tensor in read_header(model / "model.safetensors")}
    assert not any(name.endswith("qweight") for name in names)


def test_a_model_that_saw_videos_of_files_samples_as_they_were_sampled(base, tmp_path, capsys):
    out = tmp_path / "run"
    model = one_step(base, make_data(tmp_path / "data"), out)
    for folder in (model, out / "checkpoint-1"):
        found = default_sampling(folder, load_shape(folder))
        assert sampling_values(found) == sampling_values(SAMPLING)
    said = "samples as its data were sampled: fps=2.0 (not 3.0), min_frames=4 (not 2), max_frames"
    assert said in capsys.readouterr().err
    assert json.loads((out / "run.json").read_text())["asked"]["sampling"]["max_frames"] == 768
    stated = json.loads((model / "video_preprocessor_config.json").read_text())
    assert stated["do_resize"] is True  # what we know nothing of is kept


def test_where_neither_model_nor_files_say_how_the_defaults_are_stated(
    tiny_folder, rendered, tmp_path
):
    model = one_step(tiny_folder, rendered, tmp_path)
    found = default_sampling(model, load_shape(model))
    assert sampling_values(found) == sampling_values(SamplingSpec())


def test_a_system_message_of_the_data_is_told(tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(OPTIONS, "system", "Be brief.")
    one_step(tiny_folder, make_data(tmp_path / "data"), tmp_path)
    assert "ask the trained model with --system 'Be brief.'" in capsys.readouterr().err
    assert json.loads((tmp_path / "run.json").read_text())["asked"]["system"] == "Be brief."


def test_variables_that_accelerate_refuses_are_one_line(
    tiny_folder, rendered, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "x")
    with pytest.raises(
        UsageError, match=r"accelerate refuses a variable .*mixed_precision.*: unset"
    ):
        one_step(tiny_folder, rendered, tmp_path)


def test_a_saved_model_has_the_modes_of_new_files(tiny_folder, rendered, tmp_path):
    before = os.umask(0o027)
    try:
        model = one_step(tiny_folder, rendered, tmp_path)
    finally:
        os.umask(before)
    for path in [*model.iterdir(), *(tmp_path / "checkpoint-1").iterdir()]:
        assert path.stat().st_mode & 0o777 == 0o640
