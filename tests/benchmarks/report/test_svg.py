"""The chart: places, ticks, labels, escaping."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from benchmarks.report.svg import Line, log_log_chart

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*lines, title="title"):
    text = log_log_chart(
        lines,
        title=title,
        subtitle="subtitle",
        x_label="x",
        y_label="y",
        x_ticks=[(10.0, "ten"), (1000.0, "thousand")],
    )
    return ElementTree.fromstring(text)


def line(label="a", points=((10.0, 1.0), (100.0, 3.0), (1000.0, 100.0)), **options):
    return Line(label=label, colour="#123456", points=points, **options)


def places(root):
    (shape,) = root.iter(f"{SVG}polyline")
    return [tuple(map(float, pair.split(","))) for pair in shape.get("points").split()]


def test_equal_factors_are_equal_distances_and_more_is_up_and_right():
    (x1, y1), (x2, y2), (x3, y3) = places(drawn(line()))
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert x1 < x2 < x3
    assert y1 > y2 > y3
    powers = [y for _, y in places(drawn(line(points=((10, 1), (100, 10), (1000, 100)))))]
    assert powers[0] - powers[1] == pytest.approx(powers[1] - powers[2], abs=0.2)


def test_every_point_lies_inside_the_picture():
    root = drawn(line())
    for circle in root.iter(f"{SVG}circle"):
        assert 0 < float(circle.get("cx")) < float(root.get("width"))
        assert 0 < float(circle.get("cy")) < float(root.get("height"))


def test_ticks_are_one_two_and_five_within_the_values():
    texts = [text.text for text in drawn(line()).iter(f"{SVG}text")]
    numbers = [text for text in texts if text.replace(".", "").isdigit()]
    assert numbers == ["1", "2", "5", "10", "20", "50", "100"]
    assert {"ten", "thousand", "x", "y", "title", "subtitle"} <= set(texts)


def test_labels_of_lines_that_end_at_one_place_do_not_cover_each_other():
    root = drawn(*(line(label=name) for name in "abc"))
    heights = [float(text.get("y")) for text in root.iter(f"{SVG}text") if text.text in "abc"]
    gaps = [b - a for a, b in pairwise(heights)]
    assert len(heights) == 3
    assert min(gaps) >= 15


def test_a_dashed_line_is_dashed_and_others_are_not():
    root = drawn(line("a", dashed=True), line("b"))
    dashes = [shape.get("stroke-dasharray") is not None for shape in root.iter(f"{SVG}polyline")]
    assert dashes == [True, False]


def test_text_is_escaped():
    assert drawn(line("a < b & c"), title="<t>").find(f"{SVG}title").text == "<t>"


def test_a_single_point_is_drawn():
    assert len(places(drawn(line(points=((10.0, 5.0),))))) == 1
