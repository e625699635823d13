"""`videonsa eval benchmark` without lmms-eval: recipes, refusals, fixtures, scoring a log."""

import json
from importlib.util import find_spec

import pytest

from videonsa.cli.main import main
from videonsa.evals.field.benchmarks import BENCHMARKS


def benchmark(*options):
    return main(["eval", "benchmark", *options])


def test_recipes_are_listed_with_their_hashes(capsys):
    assert benchmark("--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines[1:35]} >= set(BENCHMARKS)
    (line,) = (line for line in lines if line.startswith("timescope") and "paper" in line)
    assert line.split()[4:] == ["4", "4-2048", "64-64", "-", "16", "paper"]
    assert benchmark("--list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    preferred = {one["benchmark"]: one["name"] for one in listed if one["preferred"]}
    assert preferred["tomato"] == "paper" and preferred["videomme"] == "qwen2.5-vl"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no benchmark was named"),
        (["mlvu"], "did you mean mlvu_dev?"),
        (["videomme", "--recipe", "paper"], "recipe paper has no videomme"),
        (["tomato", "--set", "frames=3"], "did you mean"),
        (["tomato", "--limit", "0"], "--limit 0: want 1 or more"),
        (["--score-only", "--out", "nowhere"], "nowhere holds no run.json"),
        (["--score-only", "--set", "max_frames=4"], "leave out --recipe and --set"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert benchmark(*options) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.skipif(find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_without_lmms_eval_it_says_what_to_do_before_anything_is_loaded(capsys, tmp_path):
    assert benchmark("tomato", "--model", "nobody/nothing", "--out", str(tmp_path / "out")) == 2
    assert "lmms-eval 0.7.3 is wanted, none is installed: make" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
