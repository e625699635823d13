"""What an inspection found, in sentences: which frames stand out, or that none does."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from videonsa.analysis.inspect_bars import Bars, Floats, Series, mean_of
from videonsa.analysis.inspection import Inspection
from videonsa.ops.spec import BRANCHES

STANDS_OUT = 1.5
"""Times the uniform expectation, as a mean over layers, from which a frame stands out."""
MOST_NAMED = 3


def sentences(inspection: Inspection) -> tuple[str, ...]:
    """What was found, the most telling first."""
    bars = Bars.of(inspection)
    told = [*attention_sentences(inspection), _selection(inspection, bars.selection)]
    if bars.gates is not None:
        told.append(_gates(bars.gates))
    if inspection.evidence:
        told.insert(0, _evidence(inspection, bars.attention))
    return tuple(told)


def attention_sentences(inspection: Inspection) -> tuple[str, ...]:
    """What was found of the attention of the answer's tokens."""
    return _attention(inspection, Bars.of(inspection).attention), _share(inspection)


def _attention(inspection: Inspection, series: Series) -> str:
    if len(inspection.frames) == 1:
        return "There is one frame only: nothing can stand out."
    told = _standing_out(
        inspection,
        series.mean,
        against="attention spread evenly over the video",
        place="where the answer's tokens looked",
    )
    layer, frame = np.unravel_index(np.nanargmax(series.times), series.times.shape)
    return (
        f"{told} The highest of a single layer is {_times(series.times[layer, frame])}, in layer "
        f"{layer} at {_at(inspection, int(frame))}."
    )


def _share(inspection: Inspection) -> str:
    to_video, even = (
        float(np.array(rows).sum(1).mean()) for rows in (inspection.attention, inspection.even)
    )
    return (
        f"{to_video:.0%} of the attention of the answer's tokens went to the video; spread evenly "
        f"over all tokens, {even:.0%} would."
    )


def _selection(inspection: Inspection, series: Series | None) -> str:
    if series is None:
        gates = " and no gates" if inspection.gates is None else ""
        return f"The method {inspection.method} has no selection{gates} to show."
    if not np.nanmin(series.uniform, initial=1) < 1 - 1e-4:
        return "The selection had no choice: all earlier blocks fit into it."
    told = _standing_out(
        inspection,
        series.mean,
        against="a selection at random",
        place="what later vision tokens selected",
    )
    last = "" if series.telling == len(series.times) else ", and nothing reads the last layer's"
    return f"{told} Vision tokens select before the question is read{last}."


def _gates(gates: Floats) -> str:
    layers = gates[: max(1, len(gates) - 1)]
    means = mean_of(layers.reshape(-1, len(BRANCHES)))
    named = ", ".join(f"{name} {mean:.2f}" for name, mean in zip(BRANCHES, means, strict=True))
    return f"Mean gates: {named}; untrained gates are at 0.5."


def _evidence(inspection: Inspection, series: Series) -> str:
    spans = " and ".join(f"{start:.1f} s to {end:.1f} s" for start, end in inspection.evidence)
    frames = inspection.evidence_frames
    if not frames:
        return f"The evidence ({spans}) is in none of the frames that were read."
    whole = Bars.of_groups(inspection, [frames])
    attention = whole.attention
    above = int((attention.times[:, 0] > 1).sum())
    told = (
        f"The evidence ({spans}) got {_times(attention.mean[0])} its even share of the answer's "
        f"attention, more than even in {above} of {inspection.num_layers} layers"
    )
    if len(frames) == 1:
        rank = 1 + int((series.mean > series.mean[frames[0]]).sum())
        told += f": rank {rank} of {len(inspection.frames)} frames"
    if whole.selection is not None and not np.isnan(whole.selection.mean[0]):
        selected = whole.selection.mean[0]
        told += "; later vision tokens "
        told += (
            f"selected it {_times(selected)} as often as at random"
            if selected
            else "never selected it"
        )
    return f"{told}."


def _standing_out(inspection: Inspection, means: Floats, *, against: str, place: str) -> str:
    """Which frames, highest first; or that none does."""
    found = [int(one) for one in np.flatnonzero(np.nan_to_num(means) >= STANDS_OUT)]
    if not found:
        highest = int(np.nanargmax(means))
        return (
            f"Against {against}, nothing stands out in {place}: the highest is "
            f"{_at(inspection, highest)} with {_times(means[highest])} ({STANDS_OUT:g} would stand "
            "out)."
        )
    runs = sorted(_runs(found), key=lambda run: -max(means[one] for one in run))
    named = [
        f"{_at(inspection, run[0], run[-1])} ({'up to ' * (len(run) > 1)}"
        f"{_times(max(means[one] for one in run))})"
        for run in runs[:MOST_NAMED]
    ]
    if more := len(runs) - len(named):
        named.append(f"{more} more")
    *others, last = named
    listed = f"{', '.join(others)} and {last}" if others else last
    return f"Against {against}, what stands out in {place}: {listed}."


def _runs(places: Sequence[int]) -> list[list[int]]:
    """Neighbours together."""
    runs = [[places[0]]]
    for before, place in pairwise(places):
        if place == before + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs


def _at(inspection: Inspection, first: int, last: int | None = None) -> str:
    start = inspection.frames[first].start
    if last is None or last == first:
        return f"{start:.1f} s"
    return f"{start:.1f} s to {inspection.frames[last].end:.1f} s"


def _times(value: float) -> str:
    return f"{value:.1f} times" if value >= 0.05 else "0 times"
