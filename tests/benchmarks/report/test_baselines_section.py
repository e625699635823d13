import json

import pytest

from benchmarks.report.__main__ import figures, pictures, render
from benchmarks.report.baselines_section import FIGURE, draw_baselines, render_baselines

RIGHT = {"dense": 0.8, "nsa": 0.75, "xattention": 0.7, "xattention:threshold=0.5": 0.6}
ATTENTION = {"dense": 1.0, "nsa": 0.1, "xattention": 0.3, "xattention:threshold=0.5": 0.05}


def cell(name):
    method = name.partition(":")[0]
    right = RIGHT[name]
    points = {"value": 100 * (right - 0.8), "low": -30.0, "high": 2.0, "error": 3.0}
    return {
        "setting": name,
        "method": method,
        "published": name == method,
        "attention": ATTENTION[name],
        "kept": 1.0,
        "accuracy": {"value": right, "low": right - 0.05, "high": right + 0.05, "error": 0.02},
        "likeliest": {"value": 0.82},
        "difference": None if name == "dense" else {"points": points},
    }


def of_length(length):
    equal = {"nsa": "nsa", "xattention": "xattention"}
    return {
        "length": length,
        "videos": 304,
        "questions": 304,
        "constant": {"order": 0.5, "state": 0.3},
        "cells": [cell(name) for name in RIGHT],
        "equal": {
            method: {"setting": name, "computes_less": False} for method, name in equal.items()
        },
    }


@pytest.fixture
def result():
    return {
        "design": {"stage": "16k", "questions": 1},
        "methods": {name: {} for name in ("dense", "nsa", "xattention")},
        "sentences": {"nsa": "`nsa` loses a little."},
        "lengths": [of_length(16_384), of_length(65_536)],
        "notes": ["minference: every head alike"],
        "left_out": ["evs at 16,384 tokens: no frames"],
        "seconds": 1234.5,
        "answerers": 6,
        "how": "as told",
        "machine": {"device": "NVIDIA H200"},
    }


def test_a_table_for_each_length_with_paired_differences(result):
    text = render_baselines(result)
    assert "### 16,384 video tokens" in text and "### 65,536 video tokens" in text
    spread = "70.0 (65.0 to 75.0) | 82.0 | -10.0 (-30.0 to +2.0)"
    assert f"| **`xattention`** | 30 | 100 | {spread} |" in text
    assert "| `xattention:threshold=0.5` | 5 | 100 |" in text
    assert "| `dense` | 100 | 100 | 80.0 (75.0 to 85.0) | 82.0 | - |" in text
    assert "best constant answers have 40.0 % right" in text


def test_sentences_notes_and_what_was_left_out_are_lines_of_their_own(result):
    text = render_baselines(result)
    for line in (
        "- `nsa` loses a little.",
        "- Note: minference: every head alike.",
        "- Left out: evs at 16,384 tokens: no frames.",
    ):
        assert f"\n{line}\n" in text
    assert "took 1,234 s, 6 of them on a GPU" in text


def test_what_cannot_compute_as_much_as_nsa_is_named(result):
    result["lengths"][0]["equal"]["xattention"]["computes_less"] = True
    assert "No setting of `xattention` computes as much." in render_baselines(result)


def test_page_and_plot_come_from_the_file(result, tmp_path):
    (tmp_path / "gpu").mkdir()
    (tmp_path / "gpu/baselines.json").write_text(json.dumps(result))
    assert "## Baselines on the suite" in render(tmp_path) and figures(tmp_path) == {}
    drawn = pictures(tmp_path)
    assert set(drawn) == {FIGURE} and drawn[FIGURE] == draw_baselines(result)
    assert drawn[FIGURE][:8] == b"\x89PNG\r\n\x1a\n"
