"""The study end to end, in miniature: two seeds, two steps a stage, one video asked about."""

import gzip
import json
import math

import pytest

from benchmarks.study.__main__ import AGAIN, main
from benchmarks.study.archives import STATE_BYTES
from benchmarks.study.study_design import Design, Run, Stage
from videonsa.cli.main import main as videonsa
from videonsa.models.checkpoints.loading import load_model

SMALL = Design(
    seeds=(0, 1),
    stages=(
        Stage(
            name="short",
            recipe="study-short",
            sources=("synthetic:count=4,frames=32,kinds=count",),
        ),
        Stage(
            name="long",
            recipe="study",
            sources=("synthetic:count=3,frames=114,first=1000",),
            attentions=("nsa", "dense"),
        ),
    ),
    settings=(
        "data.context=1280",
        "data.num_workers=0",
        "optimizer.steps=2",
        "run.precision=fp32",
        "run.log_every=1",
    ),
    lengths=(1024, 1040),
    samples=1,
)


def call(arguments, log, seconds, slot):
    return videonsa(arguments)


def study(out, *arguments, design=SMALL):
    options = ["--at-once", "1", "--dtype", "float32"]
    return main([*arguments, "--out", str(out), *options], design=design, call=call)


def losses(out, run):
    lines = map(json.loads, (run.folder(out) / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    assert study(out, "all") == 0
    return out


@pytest.mark.slow
def test_the_result_says_what_every_run_was_and_what_both_twins_scored(whole):
    result = json.loads((whole / "study.json").read_text())
    assert [run["name"] for run in result["runs"]] == [
        *("short-0-dense", "short-1-dense"),
        *("long-0-nsa", "long-0-dense", "long-1-nsa", "long-1-dense"),
    ]
    for run in result["runs"]:
        assert run["steps"] == 2 and all(math.isfinite(loss) for _, loss in run["losses"])
        assert bool(run["gates"]) == (run["attention"] == "nsa")
    asked = [x for x in result["scores"] if x["kind"] == "all"]
    assert len(asked) == 2 * 2 * 2 and {x["total"] for x in asked} == {9}
    assert {x["length"] for x in result["differences"]} == {1024, 1040}
    assert result["attention"]["keys"] == 8 * 16 + 64
    answers = gzip.decompress((whole / "study_answers.jsonl.gz").read_bytes()).splitlines()
    assert len(answers) == sum(x["total"] for x in asked)
    assert [x["part"] for x in result["times"]] == ["prepare", "train", "evaluate"]


@pytest.mark.slow
def test_longer_videos_are_asked_about_again_with_the_seconds_of_the_shortest(whole):
    assert study(whole, "evaluate", "--scale-time") == study(whole, "report", "--scale-time") == 0
    plain, scaled = (
        json.loads((whole / f"{name}.json").read_text()) for name in ("study", "study_scaled")
    )
    asked = [path.name for path in (whole / "answers-scaled/long-0-nsa").iterdir()]
    assert asked == ["1040"]  # those about the shortest are there
    run = json.loads((whole / "answers-scaled/long-0-nsa/1040/run.json").read_text())
    assert run["config"]["time_scale"] == pytest.approx(1024 / 1040)
    same = [[x for x in one["scores"] if x["length"] == 1024] for one in (plain, scaled)]
    assert same[0] == same[1] and len(plain["scores"]) == len(scaled["scores"])


@pytest.mark.slow
def test_twins_see_the_same_data_from_the_same_weights(whole):
    twins = [Run(stage="long", seed=0, attention=name) for name in ("nsa", "dense")]
    loaders = [
        json.loads(next(twin.folder(whole).glob("checkpoint-2/loader_0.json")).read_text())
        for twin in twins
    ]
    assert loaders[0] == loaders[1]
    assert len({SMALL.base_of(twin, whole) for twin in twins}) == 1
    kinds = [load_model(twin.model(whole)).model.config.attention for twin in twins]
    assert kinds == ["nsa", "dense"]


@pytest.mark.slow
def test_a_run_that_is_cut_goes_on_elsewhere_from_its_state(whole, tmp_path):
    run = Run(stage="long", seed=1, attention="nsa")
    out, archives = tmp_path / "study", tmp_path / "archives"
    (out / "runs").mkdir(parents=True)
    # The same weights to begin with.
    before = Run(stage="short", seed=1, attention="dense").folder(whole)
    (out / "runs" / before.name).symlink_to(before)
    assert study(out, "prepare", "--seeds", "1") == 0
    assert study(out, "train", "--seeds", "1", "--set", "long:run.seconds=0.001") == AGAIN
    assert len(losses(out, run)) == 1
    pack = ["pack-state", "--seeds", "1", "--runs", run.name, "--to", str(archives)]
    assert study(out, *pack) == 0
    assert sum(part.stat().st_size for part in archives.iterdir()) <= STATE_BYTES
    out.rename(tmp_path / "lost")
    assert study(out, "unpack", "--from", str(archives)) == 0
    assert study(out, "prepare", "--seeds", "1") == 0
    base = Run(stage="short", seed=1, attention="dense")
    assert base.model(out).is_dir() and losses(out, base) == losses(whole, base)  # they travelled
    assert study(out, "train", "--seeds", "1") == 0
    assert losses(out, run) == losses(whole, run)


@pytest.mark.slow
def test_a_pair_is_kept_in_bfloat16_with_its_card(whole, tmp_path):
    assert study(whole, "keep", "--to", str(tmp_path), "--seed", "1") == 0
    for name, words in (("nsa", "native sparse"), ("dense", "dense attention")):
        folder = tmp_path / f"study-{name}"
        assert load_model(folder).model.config.attention == name
        assert sum(file.stat().st_size for file in folder.iterdir()) <= 12e6
        card = (folder / "README.md").read_text()
        assert words in card and "| 1,024 |" in card


@pytest.mark.slow
def test_models_come_back_in_parts_and_are_whole_again(whole, tmp_path):
    assert study(whole, "pack-models", "--to", str(tmp_path / "parts")) == 0
    parts = sorted((tmp_path / "parts").iterdir())
    assert len(parts) > 1 and max(part.stat().st_size for part in parts) < 16 * 2**20
    assert study(tmp_path / "home", "unpack", "--from", str(tmp_path / "parts")) == 0
    names = sorted(path.name for path in (tmp_path / "home/models").iterdir())
    assert names == sorted(run.name for run in SMALL.twins())


def test_without_a_model_there_is_nothing_to_pack(tmp_path, capsys):
    assert study(tmp_path, "pack-models") == 2
    assert "no twin" in capsys.readouterr().err


def test_a_wrong_setting_ends_the_study_before_anything_is_built(tmp_path, capsys):
    assert study(tmp_path, "all", "--set", "lnog:optimizer.steps=9") == 2
    assert "no stage 'lnog'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_not_trained_is_not_reported(tmp_path, capsys):
    assert study(tmp_path, "report") == 2
    assert "not trained yet: short-0-dense" in capsys.readouterr().err
