"""`page`: an inspection as one HTML page that needs nothing beside itself."""

from html import escape
from importlib.resources import files
from typing import Any

import numpy as np

from videonsa.analysis.inspect_bars import Bars, Floats, Series
from videonsa.analysis.inspect_words import STANDS_OUT, sentences
from videonsa.analysis.inspection import MOST_BARS, Inspection
from videonsa.ops.spec import BRANCHES
from videonsa.webpage import fill, script_json

TEMPLATE = "inspect_page.html"
_DIGITS = 4


def page(inspection: Inspection) -> str:
    """The page of an inspection, from what its JSON holds alone."""
    given = {
        "question": escape(inspection.question),
        "answer": escape(inspection.answer),
        "sentences": _items(sentences(inspection)),
        "facts": _facts(inspection),
        "notes": _items(inspection.notes),
        "data": script_json(page_data(inspection)),
    }
    template = files("videonsa.analysis").joinpath(TEMPLATE).read_text("utf-8")
    return fill(template, given)


def page_data(inspection: Inspection) -> dict[str, Any]:
    """What the page's script draws; rows of numbers begin with the mean over layers."""
    bars = Bars.of(inspection, most=MOST_BARS)
    single = Bars.of(inspection)
    evidence = set(inspection.evidence_frames)
    series = [("attention", bars.attention, single.attention)]
    if bars.selection is not None and single.selection is not None:
        series.append(("selection", bars.selection, single.selection))
    return {
        "bars": [
            {
                "start": round(inspection.frames[part.start].start, 2),
                "end": round(inspection.frames[part[-1]].end, 2),
                "frames": len(part),
                "evidence": bool(evidence & {*part}),
                "image": image,
            }
            for part, image in zip(bars.frames, inspection.thumbnails, strict=True)
        ],
        "layers": inspection.num_layers,
        "standsOut": STANDS_OUT,
        "series": {name: _series(of_bars, one, bars) for name, of_bars, one in series},
        "branches": BRANCHES,
        "gates": None if bars.gates is None else _gates(bars.gates),
    }


def _series(series: Series, single: Series, bars: Bars) -> dict[str, Any]:
    """Of bars; `peaks` are the highest of a bar's frames by themselves."""
    alone = np.vstack([single.mean, single.times])
    peaks = [np.nan_to_num(alone[:, list(part)]).max(1) for part in bars.frames]
    return {
        "seen": _numbers(np.vstack([_mean(series.seen, series.telling), series.seen])),
        "uniform": _numbers(np.vstack([_mean(series.uniform, series.telling), series.uniform])),
        "times": _numbers(np.vstack([series.mean, series.times])),
        "peaks": _numbers(np.stack(peaks, axis=1)),
    }


def _gates(gates: Floats) -> list[list[list[float | None]]]:
    """`[branches, 1 + layers, bars]`; what a last layer's gates weigh is read by nothing."""
    branches = np.moveaxis(gates, -1, 0)
    return [_numbers(np.vstack([_mean(one, max(1, len(one) - 1)), one])) for one in branches]


def _mean(rows: Floats, telling: int) -> Floats:
    mean: Floats = rows[:telling].mean(0)
    return mean


def _numbers(rows: Floats) -> list[list[float | None]]:
    """NaN as null."""
    return [[None if np.isnan(one) else float(f"{one:.{_DIGITS}g}") for one in row] for row in rows]


def _items(lines: tuple[str, ...]) -> str:
    return "".join(f"<li>{escape(line)}</li>" for line in lines)


def _facts(inspection: Inspection) -> str:
    width, height = inspection.size
    sampled, read = inspection.num_sampled, len(inspection.frames)
    tokens = sum(frame.tokens for frame in inspection.frames)
    facts = {
        "Video": inspection.video,
        "Model": inspection.model,
        "Method": _method(inspection),
        "Frames": f"{sampled} sampled of {width}x{height}, read as {read}",
        "Tokens": f"{tokens} of the video in a prompt of {inspection.prompt_tokens}; "
        f"{inspection.answer_tokens} rows of attention to it for the answer",
        "Machine": ", ".join(f"{key} {value}" for key, value in inspection.machine.items()),
    }
    return "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())


def _method(inspection: Inspection) -> str:
    stated = ", ".join(f"{key} {value}" for key, value in (inspection.parameters or {}).items())
    return f"{inspection.method}: {stated}" if stated else inspection.method
