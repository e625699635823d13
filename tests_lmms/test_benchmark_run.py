"""A benchmark from the command line to its report, on a fixture, with the embedded model."""

import json
import shutil
import subprocess
import sys

import pytest

from videonsa.cli.main import main
from videonsa.evals.field.scored_run import read_scores

SMALL = ["--set", "max_frames=8", "--set", "min_pixels=784", "--set", "max_pixels=3136"]
COSTS = ("seconds", "cached_tokens")


def run(folder, *more):
    return main(["eval", "benchmark", "mlvu_test", "--out", str(folder), *SMALL, *more])


def samples(folder):
    lines = [json.loads(line) for line in (folder / "samples-0.jsonl").read_text().splitlines()]
    return [{name: value for name, value in one.items() if name not in COSTS} for one in lines]


def files(folder):
    return {name: (folder / name).read_text() for name in ("report.md", "scores.json")}


@pytest.fixture
def broken_video(hub):
    """The second video of the benchmark holds no video."""
    path = hub / "mlvu_test/scene1.mp4"
    kept = path.with_suffix(".kept")
    shutil.copy(path, kept)
    path.write_bytes(b"no video")
    yield path
    kept.rename(path)


def test_a_run_that_goes_on_equals_one_in_one_go_and_a_broken_video_fails_alone(
    tmp_path, broken_video, capsys
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(whole) == 0
    scores = read_scores(whole)
    assert 0 < scores.failed < scores.samples
    assert all(str(broken_video) in one.reason for one in scores.reasons)
    assert scores.totals.answered[1].samples == scores.samples - scores.failed
    assert set(scores.own["mlvu_test"]) == {"mlvu_percetion_score"}

    assert run(parts, "--limit", "2") == 0
    assert run(parts) == 0
    assert samples(parts) == samples(whole)
    assert files(parts) == files(whole)

    before = files(whole)
    assert main(["eval", "benchmark", "--score-only", "--out", str(whole)]) == 0
    assert files(whole) == before

    capsys.readouterr()
    assert run(whole, "--set", "max_new_tokens=4") == 2
    told = capsys.readouterr().err
    assert "holds a run with max_new_tokens 16 (now: 4): name another folder" in told


def test_two_processes_give_the_scores_of_one(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert run(one) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = ["-m", "videonsa", "eval", "benchmark", "mlvu_test", "--out", str(two), *SMALL]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list(two.glob("samples-*.jsonl"))) == 2
    assert files(two) == files(one)
