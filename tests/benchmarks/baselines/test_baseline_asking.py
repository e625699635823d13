"""The comparison of baselines end to end, in miniature: untrained models, a few videos."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.baselines.__main__ import AGAIN, RESULT, main
from benchmarks.baselines.asking import Asker, chosen_questions, parse_line
from benchmarks.baselines.asking import main as asking
from benchmarks.baselines.baseline_design import SWEEPS, Comparison
from benchmarks.study.asked_videos import asked_video
from benchmarks.study.base_model import SIZES, write_base
from videonsa.disk import write_atomic
from videonsa.evals.journal import SAMPLES, read_lines
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.methods import METHODS as METHODS_THERE_ARE
from videonsa.models.methods import parse_method

METHODS = "dense,nsa,tri_shape,fastv,visionzip"
VIDEOS = "256:2,512:1"
OPTIONS = ["--methods", METHODS, "--videos", VIDEOS, "--questions", "2", "--dtype", "float32"]
OPTIONS += ["--published-only"]


def call(arguments, log, seconds, gpu):
    module, *rest = arguments
    assert module == "benchmarks.baselines.asking"
    return asking(rest)


def nothing(*_):
    raise AssertionError("nothing is left to do")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A dense model, and one with gates: fresh weights, the gates' too."""
    folder = tmp_path_factory.mktemp("models")
    write_base(replace(SIZES["tiny"], layers=4), folder / "dense")
    loaded = load_model(folder / "dense", method="nsa", fresh_gates=True, dtype=torch.float32)
    loaded.model.save_pretrained(folder / "nsa")
    for path in (folder / "dense").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            (folder / "nsa" / path.name).write_bytes(path.read_bytes())
    return f"dense={folder / 'dense'},nsa={folder / 'nsa'}"


def compare(out, models, *more, run=call):
    words = ["--models", models, "--at-once", "1", "--answerers", "2", *OPTIONS, *more]
    return main(["ask", "--out", str(out), *words], call=run)


@pytest.fixture(scope="module")
def out(tmp_path_factory, models):
    folder = tmp_path_factory.mktemp("baselines")
    assert compare(folder, models) == 0
    return folder


def lines_of(out):
    folders = [path.parent for path in out.glob(f"answers/*/{SAMPLES}")]
    return [line for folder in folders for line in read_lines(folder, parse_line)]


def test_every_setting_is_asked_the_same_questions_about_every_video(out):
    lines = lines_of(out)
    settings = set(METHODS.split(","))
    assert {line.setting for line in lines} == settings and len(lines) == 3 * len(settings)
    asked = {}
    for line in lines:
        assert line.reason == "" and len(line.kinds) == 2
        found = (line.kinds, line.answers, line.places)
        assert asked.setdefault((line.length, line.sample), found) == found


def test_what_was_computed_is_measured(out):
    shares = {(line.setting, line.length): (line.attention, line.kept) for line in lines_of(out)}
    assert shares["dense", 512] == shares["tri_shape", 512] == (1.0, 1.0)
    attention, kept = shares["fastv", 512]
    assert kept == pytest.approx(0.75) and 0.6 < attention < 0.7  # half leave in half the layers
    attention, kept = shares["visionzip", 512]
    assert kept == pytest.approx(1 / 16) and 0.005 < attention < 0.05
    assert shares["nsa", 512][0] < shares["nsa", 256][0] <= 1.5


def test_the_result_has_every_setting_its_difference_from_dense_and_a_sentence(out):
    result = json.loads((out / RESULT).read_text())
    assert [one["length"] for one in result["lengths"]] == [256, 512]
    one = result["lengths"][0]
    assert (one["videos"], one["questions"]) == (2, 4)
    cells = {cell["setting"]: cell for cell in one["cells"]}
    assert cells["dense"]["difference"] is None
    points = cells["tri_shape"]["difference"]["points"]
    assert points["value"] == points["low"] == points["high"] == 0  # it is dense at this length
    assert set(result["sentences"]) == {"nsa", "tri_shape", "fastv", "visionzip"}
    assert result["machine"] and result["seconds"] > 0
    assert not [line for line in result["left_out"] if "videos have answers" in line]


def test_what_is_done_is_not_done_again_and_a_change_adds_only_what_is_new(out, models):
    assert compare(out, models, run=nothing) == 0
    more = {}

    def counted(arguments, log, seconds, gpu):
        before = len(lines_of(out))
        status = call(arguments, log, seconds, gpu)
        more[len(more)] = len(lines_of(out)) - before
        return status

    assert compare(out, models, "--videos", "256:3,512:1", run=counted) == 0
    assert sum(more.values()) == len(METHODS.split(","))


def test_time_that_runs_out_leaves_what_can_be_resumed(models, tmp_path):
    assert compare(tmp_path, models, "--seconds", "31", run=lambda *_: 0) == 2  # no answers at all
    some = ["--methods", "dense", "--videos"]
    assert compare(tmp_path, models, *some, "256:1") == 0
    assert compare(tmp_path, models, *some, "256:3", "--seconds", "20", run=nothing) == AGAIN


def test_questions_take_turns_over_kinds_and_repeat_only_when_all_were_asked():
    script = asked_video(4096, 0)
    kinds = ("number", "order", "state")
    found = [chosen_questions(script, sample, count=1, kinds=kinds)[0] for sample in range(9)]
    assert [one.kind for one in found] == [*kinds] * 3
    assert len({found[i].text for i in (1, 4, 7)}) == 3  # it has three questions of order


def test_a_method_that_the_model_cannot_run_is_left_out_with_its_reason(models, tmp_path):
    dense = models.split(",")[0].removeprefix("dense=")
    some = ["--methods", "dense,nsa", "--videos", "256:1"]
    assert compare(tmp_path, f"dense={dense},nsa={dense}", *some) == 0
    result = json.loads((tmp_path / RESULT).read_text())
    assert "nsa" not in {cell["setting"] for cell in result["lengths"][0]["cells"]}
    assert any("nsa at 256 tokens" in line and "gates" in line for line in result["left_out"])
    assert result["lengths"][0]["equal"] == {}


def test_one_question_is_scored_alike_whether_the_video_was_read_before_it_or_with_it(models):
    dense = models.split(",")[0].removeprefix("dense=")
    loaded = load_model(dense, dtype=torch.float32)
    asker = Asker(loaded.model, load_tokenizer(loaded.folder))
    script = asked_video(256, 1)
    asked = chosen_questions(script, 1, count=3, kinds=Comparison().kinds)
    before, at_once, refused = asker.lines(
        256, 1, script, asked, ["dense", "tri_shape", "fastv:layer=9"]
    )
    assert "layers: want" in refused.reason and refused.free == []
    same = {"setting": "", "seconds": 0.0, "encode_seconds": 0.0}
    assert replace(before, **same) == replace(at_once, **same)  # short prompts: both are dense


def test_every_registered_method_has_a_sweep_that_it_understands():
    assert set(METHODS_THERE_ARE) <= set(SWEEPS)
    settings = Comparison().settings()
    assert {one.method for one in settings} == set(METHODS_THERE_ARE)
    for one in settings:
        parse_method(one.name)
    assert [one.name for one in settings if one.is_published] == list(Comparison().methods)
    assert {one.arm for one in settings} == {"dense", "nsa"}


def test_a_model_that_is_not_there_is_one_line(tmp_path, capsys):
    write_atomic(tmp_path / "x", b"")
    assert compare(tmp_path, "dense=/nowhere", run=nothing) == 2
    assert "the model of arm 'dense' is at /nowhere" in capsys.readouterr().err
