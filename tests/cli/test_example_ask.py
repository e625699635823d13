"""examples/ask.py runs as its first lines say."""

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples/ask.py"


def test_the_example_answers_twice(tiny_folder, clip_path, capsys):
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(str(clip_path), "What moves?", str(tiny_folder))
    out = capsys.readouterr().out
    assert "8 frames, 48 of" in out
    assert out.endswith("4 frames at 1 frame a second\n")


@pytest.mark.parametrize("arguments", [[], ["clip.mp4"], ["clip.mp4", "What?", "model", "more"]])
def test_the_example_says_its_usage_in_one_line(arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert left.value.code == "usage: python examples/ask.py VIDEO QUESTION [MODEL]"
