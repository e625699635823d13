"""examples/ask.py runs as its first lines say."""

import runpy
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples/ask.py"


def test_the_example_answers_twice(tiny_folder, clip_path, capsys):
    main = runpy.run_path(str(EXAMPLE))["main"]
    main(str(clip_path), "What moves?", str(tiny_folder))
    out = capsys.readouterr().out
    assert "8 frames, 48 of" in out
    assert out.endswith("4 frames at 1 frame a second\n")
