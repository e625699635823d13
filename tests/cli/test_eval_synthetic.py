"""`videonsa eval synthetic`: from options to a report, and one line for what cannot be."""

import json

import pytest

from videonsa.cli.main import main
from videonsa.disk import LOCK

EVAL = ["eval", "synthetic"]
SHORT = ["--lengths", "256", "--kinds", "needle,order,direction", "--samples", "2"]


def test_a_model_is_scored_and_all_files_are_there(tiny_folder, tmp_path, capsys) -> None:
    out = tmp_path / "results"
    options = ["--model", str(tiny_folder), "--frame-size", "112", "--style", "free", *SHORT]
    options += ["--device", "cpu", "--conditions", "whole,no-selected,blind", "--out", str(out)]
    assert main([*EVAL, *options]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split() == ["0.25K", "all"]
    assert [line.split()[0] for line in shown.out.splitlines()[1:]] == [
        "whole", "no-selected", "blind", "constant", "oracle",
    ]  # fmt: skip
    assert "18 answers" in shown.err
    names = {path.name for path in out.iterdir()}
    assert names == {LOCK, "samples.jsonl", "run.json", "report.json", "report.md"} | {
        f"accuracy-by-{by}.png" for by in ("length", "position", "kind", "attention")
    }
    run = json.loads((out / "run.json").read_text())
    assert (run["config"]["dtype"], run["config"]["attention"]) == ("float32", "nsa")
    assert run["machine"]["device"] == "cpu"
    before = (out / "samples.jsonl").read_text()
    assert main([*EVAL, *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "report.json").read_text())
    assert (out / "samples.jsonl").read_text() == before


def test_the_oracle_needs_no_model(tmp_path, capsys) -> None:
    options = ["--model", "oracle", "--positions", "0.1,0.9", "--out", str(tmp_path)]
    assert main([*EVAL, *options, *SHORT]) == 0
    whole = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("whole"))
    assert whole.split()[1] == "100.0"


def test_a_video_beyond_the_context_is_told(tiny_folder, tmp_path, capsys) -> None:
    options = ["--model", str(tiny_folder), "--lengths", "256,4k", "--samples", "1"]
    options += ["--kinds", "needle", "--frame-size", "112", "--conditions", "blind"]
    assert main([*EVAL, *options, "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "4096 tokens are more than the context of 2048" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "4q"], "--lengths '4q': want positive numbers"),
        (["--lengths", "16"], "want an even number from"),
        (["--conditions", "half"], "conditions half: want some of whole"),
        (["--method", "dense", "--conditions", "none"], "none with dense attention"),
        (["--positions", "start"], "--positions 'start': want numbers from 0 to 1"),
        (["--kinds", "riddle"], "kinds=('riddle',)"),
        (["--difficulty", "brutal"], "difficulty='brutal': want easy, medium, hard"),
        (["--method", "nsa:block_size=large"], "block_size='large': want a whole number or frame"),
        (["--method", f"nsa:block_size={'9' * 5000}"], "want a whole number or frame"),
        (["--frame-size", "0"], "frame_size=0"),
        (["--samples", "0"], "samples=0: want at least 1"),
        (["--model", "no-such-model"], "'no-such-model' is no folder and no Hugging Face id"),
        (["--out", "/dev/null/here"], "cannot write /dev/null/here"),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path, capsys) -> None:
    assert main([*EVAL, "--out", str(tmp_path), *options]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_help_names_conditions_and_examples(capsys) -> None:
    with pytest.raises(SystemExit):
        main([*EVAL, "--help"])
    shown = capsys.readouterr().out
    assert "no-compressed, no-selected, no-window" in shown
    assert "videonsa eval synthetic --model oracle" in shown
