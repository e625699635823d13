"""The study end to end, in miniature: two steps a stage, a few videos asked about."""

import gzip
import json
import math
import shutil

import pytest
import torch

from benchmarks.study.__main__ import AGAIN, main
from benchmarks.study.answering import Answerer, Video
from benchmarks.study.answering import main as answering
from benchmarks.study.asked_videos import asked_video
from benchmarks.study.base_model import SIZES, write_base
from benchmarks.study.study_design import Design, Source, Stage, base_folder
from videonsa.cli.main import main as videonsa
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.tokenizer import load_tokenizer

SMALL = Design(
    size=SIZES["tiny"],
    arms=("dense", "nsa", "window"),
    stages=(
        Stage(name="stills", sources=(Source(length=16, count=4),)),
        Stage(name="4k", sources=(Source(length=32, count=4),), has_arms=True),
    ),
    settings=(
        "data.context=512",
        "data.num_workers=0",
        "optimizer.steps=2",
        "run.precision=fp32",
        "run.log_every=1",
    ),
    videos=((32, 3), (64, 2)),
    stills=3,
    gate_videos=0,
    dtype="float32",
)


def call(arguments, log, seconds, gpu):
    module, *rest = arguments
    return videonsa(rest) if module == "videonsa" else answering(rest)


def study(out, *arguments, run=call):
    options = ["--at-once", "1", "--answerers", "2"]
    return main([*arguments, "--out", str(out), *options], design=SMALL, call=run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    assert study(out, "all") == 0
    return out


@pytest.mark.slow
def test_a_seed_is_two_files_that_say_what_was_trained_and_answered(whole):
    facts = json.loads((whole / "seed-0.json").read_text())
    assert [run["name"] for run in facts["runs"]] == [
        *("stills-0-dense", "4k-0-dense", "4k-0-nsa", "4k-0-window")
    ]
    for run in facts["runs"]:
        assert run["steps"] == 2 and all(math.isfinite(loss) for _, loss in run["losses"])
    assert facts["left_out"] == [
        f"held-out stills: {kind} is 0.0% right, below 95%" for kind in facts["stills"]
    ]
    packed = (whole / "seed-0-answers.jsonl.gz").read_bytes()
    lines = [json.loads(line) for line in gzip.decompress(packed).splitlines()]
    assert len(lines) == 3 * (3 + 2) and {line["arm"] for line in lines} == set(SMALL.arms)
    questions = {(line["length"], line["sample"]): line["answers"] for line in lines}
    assert all(questions[line["length"], line["sample"]] == line["answers"] for line in lines)


@pytest.mark.slow
def test_arms_see_the_same_data_from_the_same_weights(whole):
    loaders = [
        (whole / f"runs/4k-0-{arm}/checkpoint-2/loader_0.json").read_text() for arm in SMALL.arms
    ]
    assert len(set(loaders)) == 1
    losses = [
        json.loads((whole / f"runs/4k-0-{arm}/log.jsonl").read_text().splitlines()[0])["loss"]
        for arm in SMALL.arms
    ]
    assert losses[0] != losses[1] != losses[2]
    kinds = [load_model(whole / f"runs/4k-0-{arm}/model").model.config for arm in SMALL.arms]
    assert [one.attention for one in kinds] == ["dense", "nsa", "nsa"]
    assert kinds[2].nsa_spec.branches == ("window",)


@pytest.mark.slow
def test_what_is_done_is_not_done_again_and_seeds_are_put_together(whole, tmp_path, capsys):
    def refuse(*_):
        raise AssertionError("nothing is left to do")

    packed = (whole / "seed-0-answers.jsonl.gz").read_bytes()
    assert study(whole, "all", run=refuse) == 0
    assert (whole / "seed-0-answers.jsonl.gz").read_bytes() == packed
    other = tmp_path / "other"
    other.mkdir()
    facts = json.loads((whole / "seed-0.json").read_text()) | {"seed": 1}
    facts["design"]["arms"].append("random")  # an arm and a length of this seed alone
    facts["design"]["videos"].append([128, 1])
    (other / "seed-1.json").write_text(json.dumps(facts))
    shutil.copy(whole / "seed-0-answers.jsonl.gz", other / "seed-1-answers.jsonl.gz")
    assert study(tmp_path, "report", "--from", str(whole), "--from", str(other)) == 0
    result = json.loads((tmp_path / "study.json").read_text())
    assert result["seeds"] == [0, 1] and len(result["runs"]) == 8
    assert [(one["length"], one["videos"]) for one in result["lengths"]] == [(32, 3), (64, 2)]
    assert "| 64 | 2 |" in capsys.readouterr().out
    assert result["left_out"][-2:] == [
        "random: not of every seed",
        "128 tokens: no arm has answers of every seed",
    ]
    facts["design"]["dtype"] = "bfloat16"
    (other / "seed-1.json").write_text(json.dumps(facts))
    assert study(tmp_path, "report", "--from", str(whole), "--from", str(other)) == 2
    assert "seed 1 was run with another dtype than seed 0" in capsys.readouterr().err
    assert study(tmp_path, "report", "--from", str(whole), "--from", str(whole)) == 2
    assert "one is there twice" in capsys.readouterr().err


@pytest.mark.slow
def test_models_are_kept_with_checksums_and_an_arm_s_gates_are_looked_at(whole, tmp_path):
    assert study(whole, "keep", "--to", str(tmp_path)) == 0
    folder = tmp_path / "4k-0-nsa"
    assert "model.safetensors" in (folder / "SHA256SUMS").read_text()
    model = load_model(folder, dtype=torch.float32).model
    line = Answerer(model, load_tokenizer(folder)).line(
        Video(256, 0, "needle"), asked_video(256, 0, "needle")
    )
    assert set(line.kinds) == {"needle"} and line.only == "needle"
    assert len(line.gates) == 2 and all(0.3 < gate < 0.7 for layer in line.gates for gate in layer)


@pytest.mark.slow
def test_what_time_leaves_out_is_named_and_the_same_command_resumes(whole, tmp_path, capsys):
    out = tmp_path / "study"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "runs/4k-0-window")
    shutil.rmtree(out / "answers/4k-0-nsa/1-of-2")
    shutil.rmtree(out / "answers/stills-0-dense")
    shutil.rmtree(out / "answers/4k-0-window")
    assert study(out, "all", "--seconds", "40") == AGAIN
    told = capsys.readouterr()
    assert "left out: seed 0: 4k-0-window is not trained" in told.out
    assert "nsa answered 2 of 3 videos of 32 tokens" in told.out
    assert "left out: seed 0: held-out stills: 0 of 3 were asked about" in told.out
    assert "5 of 13 jobs are left: the same command resumes" in told.err
    assert study(out, "all") == 0
    results = [(one / "seed-0-answers.jsonl.gz").read_bytes() for one in (out, whole)]
    found = [
        [json.loads(line) | {"seconds": 0} for line in gzip.decompress(one).splitlines()]
        for one in results
    ]
    assert found[0] == found[1]


def test_a_wrong_setting_ends_the_study_before_anything_is_built(tmp_path, capsys):
    assert study(tmp_path, "all", "--set", "lnog:optimizer.steps=9") == 2
    assert "no stage 'lnog'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "wanted"),
    [("--seed=0;1", "want numbers such as 0,1"), ("--videos=4096", "want LENGTH:COUNT,")],
)
def test_a_wrong_option_is_one_line(tmp_path, capsys, option, wanted):
    with pytest.raises(SystemExit):
        study(tmp_path, "all", option)
    assert wanted in capsys.readouterr().err.splitlines()[-1]


def test_settings_with_which_arms_attend_to_more_keys_than_others_are_refused(tmp_path, capsys):
    assert study(tmp_path, "all", "--set", "4k:attention.num_selected_blocks=8") == 2
    wanted = "in stage 4k vision tokens attend nsa to 256, window to 384 keys: want equally many"
    assert wanted in capsys.readouterr().err


def test_models_of_another_size_are_not_put_beside_those_that_are_there(tmp_path, capsys):
    write_base(SIZES["tiny"], base_folder(tmp_path))
    assert study(tmp_path, "prepare", "--size", "3m") == 2
    assert "has a study of models of another shape: want the --size" in capsys.readouterr().err


def test_without_a_seed_there_is_nothing_to_report_and_without_a_model_nothing_to_keep(
    tmp_path, capsys
):
    assert study(tmp_path, "report") == 2
    assert "no seed-N.json in" in capsys.readouterr().err
    assert study(tmp_path, "keep") == 2
    assert "has its model yet: train first" in capsys.readouterr().err
