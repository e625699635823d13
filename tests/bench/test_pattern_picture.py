import json

import numpy as np
import pytest

from videonsa.bench.pattern_picture import Axis, draw_patterns
from videonsa.errors import UsageError

PAPER = (255, 255, 255)


def line(name, shares, kept, reason=None):
    pattern = None if reason else {"shares": shares, "kept": kept}
    numbers = {"attention": 0.5, "kept_tokens": 6, "leaves": [{"layer": 1, "tokens": 3}]}
    return {"name": name, "pattern": pattern, "reason": reason, **numbers}


def comparison(*lines):
    axis = {"tokens": 8, "vision": [1, 7], "seconds": [0.0, 1.0, 2.0]}
    return {"layer": 2, "model": "embedded", "axis": axis, "methods": list(lines)}


TRIANGLE = [[1.0 if key <= row else None for key in range(8)] for row in range(8)]
EMPTY = [[0.0 if key <= row else None for key in range(8)] for row in range(8)]


def pixels(result):
    """The picture after its JSON was written and read."""
    return np.array(draw_patterns(json.loads(json.dumps(result))))


def test_a_cell_is_darker_the_more_of_its_pairs_are_attended_to():
    full = pixels(comparison(line("dense", TRIANGLE, [1.0] * 8)))
    empty = pixels(comparison(line("dense", EMPTY, [1.0] * 8)))
    changed = (full != empty).any(-1)
    rows, columns = np.nonzero(changed)
    side = rows.max() - rows.min() + 1
    assert 0.4 < changed.sum() / side**2 < 0.65  # the triangle, and nothing of the labels
    assert full[changed].sum() < empty[changed].sum()
    assert columns.max() - columns.min() + 1 == side


def test_panels_stand_side_by_side_then_below_and_the_paper_is_opaque_with_an_edge():
    one = draw_patterns(comparison(line("a", TRIANGLE, [1.0] * 8)))
    five = draw_patterns(comparison(*(line(name, TRIANGLE, [1.0] * 8) for name in "abcde")))
    assert five.width > one.width and five.height > one.height
    assert five.mode == "RGB" and five.getpixel((2, 2)) == PAPER
    assert five.getpixel((0, 0)) != PAPER  # seen on a white page and on a black one


def test_tokens_that_left_show_as_a_strip_below_the_pattern():
    whole = pixels(comparison(line("a", EMPTY, [1.0] * 8)))
    half = pixels(comparison(line("a", EMPTY, [1.0, 0.0] * 4)))
    rows = np.nonzero((whole != half).any(-1).any(-1))[0]
    assert len(rows) and rows.max() - rows.min() < 20


def test_methods_without_a_pattern_are_named_and_none_at_all_is_refused():
    refused = line("nsa", None, None, reason="no gates")
    shown = comparison(line("dense", TRIANGLE, [1.0] * 8), refused)
    assert draw_patterns(shown).height > draw_patterns(comparison(shown["methods"][0])).height
    with pytest.raises(UsageError, match="no method has a pattern"):
        draw_patterns(comparison(refused))


@pytest.mark.parametrize(
    ("seconds", "labels"),
    [
        ([0.0, 1.0, 2.0, 3.0], ["0 s", "1 s", "2 s", "3 s"]),
        ([float(i) for i in range(0, 700, 7)], ["0 s", "200 s", "400 s", "600 s"]),
        ([5.0], ["5 s"]),
        ([0.0, 500.0, 1000.0], ["0 s", "400 s", "1000 s"]),
    ],
)
def test_round_seconds_are_marked_where_the_first_frame_from_then_on_begins(seconds, labels):
    axis = Axis(tokens=100, vision=(10, 90), seconds=seconds)
    ticks = axis.ticks()
    assert [label for _, label in ticks] == labels
    places = [place for place, _ in ticks]
    assert places == sorted(places) and places[0] >= 0.1 and places[-1] < 0.9
