"""`videonsa bench decode` on a CPU: runs are written, kept, and bad options refused in one line."""

import json

import pytest
import torch

from videonsa.cli.main import main

TINY = ["bench", "decode", "--model", "tiny", "--device", "cpu", "--repeats", "1"]
SMALL = [*TINY, "--tokens", "40", "--batch", "1,2", "--new-tokens", "8"]


def test_runs_are_written_and_kept_for_the_next_time(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)
    path = tmp_path / "decode.json"
    assert main([*SMALL, "--out", str(path)]) == 0
    before = json.loads(path.read_text())["runs"]
    assert main([*SMALL, "--peers", "--peer-tokens", "40", "--out", str(path)]) == 0
    runs = json.loads(path.read_text())["runs"]
    assert runs[: len(before)] == before
    assert [(run["what"], run["batch"]) for run in runs] == [
        ("videonsa, plain forward", 1),
        ("videonsa", 1),
        ("videonsa", 2),
        ("transformers, dynamic cache", 1),
        ("transformers, dynamic cache", 2),
        ("transformers, static cache, torch.compile", 1),
        ("transformers, static cache, torch.compile", 2),
    ]
    assert [run["error"] for run in runs] == [None] * len(runs)
    assert "videonsa, 40 tokens, batch 2: " in capsys.readouterr().out


def test_with_other_options_all_is_measured_again(tmp_path):
    path = tmp_path / "decode.json"
    arguments = [*TINY, "--tokens", "40", "--batch", "1", "--out", str(path)]
    for new_tokens in (8, 9):
        assert main([*arguments, "--new-tokens", str(new_tokens)]) == 0
        result = json.loads(path.read_text())
        assert result["new_tokens"] == new_tokens
        assert len(result["runs"][-1]["times_ms"]) == new_tokens - 1


def test_a_file_of_something_else_stays(tmp_path, capsys):
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert main([*SMALL, "--out", str(path)]) == 2
    assert "it holds something else than a result of this command" in capsys.readouterr().err
    assert path.read_text() == "{}"


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "7B", "--model 7B with --device cpu: want tiny"),
        ("--tokens", "12q", "--tokens '12q': want positive numbers"),
        ("--batch", "0", "--batch '0': want numbers from 1 to 64"),
        ("--batch", "two", "--batch 'two': want numbers from 1 to 64"),
        ("--new-tokens", "1", "--new-tokens 1: want at least 8"),
        ("--weights", "fp8", "weights='fp8' on cpu: products of float8 need"),
    ],
)
def test_bad_options_are_one_line(option, value, message, capsys):
    assert main([*SMALL, option, value]) == 2
    assert message in capsys.readouterr().err
