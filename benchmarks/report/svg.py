"""A log-log line chart as SVG, without any library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 860, 520
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 210, 64, 64
"""Margins; the right one holds the labels of the lines."""
_LABEL_HEIGHT = 17
_MARGIN = 0.04
"""Share of an axis that stays free at each end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Points, joined in order; both coordinates are positive."""

    label: str
    colour: str
    points: Sequence[tuple[float, float]]
    dashed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Axis:
    """A logarithmic scale from values to pixels."""

    low: float
    high: float
    begin: float
    end: float

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / (math.log(self.high / self.low) or 1)
        share = _MARGIN + (1 - 2 * _MARGIN) * share
        return self.begin + share * (self.end - self.begin)


def log_log_chart(
    lines: Sequence[Line],
    *,
    title: str,
    subtitle: str,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[tuple[float, str]],
) -> str:
    """The chart as the text of an SVG file.

    Args:
        lines: at least one, with at least one point; each is labelled at its right end.
        title: one line.
        subtitle: one line, in smaller type.
        x_label: what the horizontal axis shows, with its unit.
        y_label: likewise. The ticks of this axis are 1, 2 and 5 times powers of 10.
        x_ticks: values with their labels.
    """
    x_values = [x for line in lines for x, _ in line.points]
    y_values = [y for line in lines for _, y in line.points]
    x = _Axis(low=min(x_values), high=max(x_values), begin=_LEFT, end=_WIDTH - _RIGHT)
    y = _Axis(low=min(y_values), high=max(y_values), begin=_HEIGHT - _BOTTOM, end=_TOP)
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        _text(_LEFT, 26, title, size=17, weight="bold"),
        _text(_LEFT, 47, subtitle, size=12, colour="#555555"),
        *_grid(x, y, x_ticks),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 18, x_label, anchor="middle"),
        f'<g transform="rotate(-90 20 {middle:.1f})">'
        + _text(20, middle, y_label, anchor="middle")
        + "</g>",
        *(_drawn(line, x, y) for line in lines),
        *_labels(lines, x, y),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _grid(x: _Axis, y: _Axis, x_ticks: Sequence[tuple[float, str]]) -> list[str]:
    """Grid lines and labels of the ticks."""
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value, text in x_ticks:
        parts.append(_stroke(x(value), _TOP, x(value), bottom))
        parts.append(_text(x(value), bottom + 20, text, anchor="middle"))
    for value in _y_ticks(y.low, y.high):
        parts.append(_stroke(_LEFT, y(value), right, y(value)))
        parts.append(_text(_LEFT - 8, y(value) + 4, f"{value:g}", anchor="end"))
    parts.append(_stroke(_LEFT, _TOP, _LEFT, bottom, colour="#555555"))
    parts.append(_stroke(_LEFT, bottom, right, bottom, colour="#555555"))
    return parts


def _y_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of 10 between both ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**power for power in powers for step in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def _drawn(line: Line, x: _Axis, y: _Axis) -> str:
    places = [(f"{x(a):.1f}", f"{y(b):.1f}") for a, b in line.points]
    dashes = ' stroke-dasharray="6 4"' if line.dashed else ""
    path = " ".join(",".join(place) for place in places)
    dots = "".join(f'<circle cx="{a}" cy="{b}" r="3.5" fill="{line.colour}"/>' for a, b in places)
    return (
        f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2.2"{dashes}/>'
        + dots
    )


def _labels(lines: Sequence[Line], x: _Axis, y: _Axis) -> list[str]:
    """A label beside the last point of each line, moved down where it would cover another."""
    ends = sorted((y(line.points[-1][1]), line.label, line) for line in lines)
    parts, free = [], -math.inf
    for height, label, line in ends:
        place = max(height + 4, free)
        free = place + _LABEL_HEIGHT
        beside = x(line.points[-1][0]) + 10
        parts.append(_text(beside, place, label, colour=line.colour, weight="bold"))
    return parts


def _stroke(x1: float, y1: float, x2: float, y2: float, *, colour: str = "#e3e3e3") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    size: int = 13,
    colour: str = "#222222",
    weight: str = "normal",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{weight}" fill="{colour}" stroke="#ffffff" stroke-width="4" '
        f'paint-order="stroke">{escape(text)}</text>'
    )
