"""`videonsa eval show` on a run of the suite, and one line for what is no run."""

import json

import pytest

from videonsa.cli.main import main

LINE = {
    **{"length": 256, "sample": 0, "seed": 7, "condition": "whole", "kind": "needle"},
    **{"position": 0.5, "evidence": [[12.0, 12.5]], "question": "Which object flashed?"},
    **{"options": ["red circle", "blue cross"], "answer": "blue cross", "oracle": "blue cross"},
    **{"reply": "red circle", "chosen": "red circle", "right": False, "video_tokens": 256},
    **{"prompt_tokens": 280, "attended_keys": None, "attention_fraction": None},
    **{"encode_seconds": None, "prefill_seconds": None, "answer_seconds": None},
    **{"peak_bytes": None, "model": "m", "attention": "nsa", "spec": None},
    **{"difficulty": "easy", "frame_size": 112, "style": "free", "split": "test"},
}


@pytest.fixture
def suite_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    lines = [LINE, LINE | {"sample": 1}]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_samples_of_the_suite_are_printed_and_counted(suite_run, capsys):
    assert main(["eval", "show", str(suite_run), "--wrong", "--limit", "1"]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("== 256/0/whole/needle/0: wrong\n")
    assert "           Which object flashed?\n" in shown.out
    assert "2 of 2 samples match (2 wrong); the first 1 are shown" in shown.err
    assert main(["eval", "show", str(suite_run), "--grep", "nowhere", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"matched": 0, "samples": []}
    assert "0 of 2 samples match\n" in shown.err


def test_a_page_of_samples_is_written(suite_run, tmp_path, capsys):
    page = tmp_path / "new" / "samples.html"
    assert main(["eval", "show", str(suite_run), "--page", str(page)]) == 0
    assert page.read_text().count("<article") == 2
    assert f"page       {page}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["{tmp}"], "is no run: want a folder that 'videonsa eval' wrote with --out"),
        (["{run}", "--page", "{tmp}/a.txt"], "want the name of a file that ends with .html"),
        (["{run}", "--page", "{tmp}/a.html", "--json"], "--page and --json given together"),
        (["{run}", "--limit", "0"], "--limit 0: want 1 or more"),
    ],
)
def test_what_cannot_be_shown_is_told_in_one_line(options, message, suite_run, tmp_path, capsys):
    given = [one.format(tmp=tmp_path, run=suite_run) for one in options]
    assert main(["eval", "show", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
