"""The numbers of a report, from the lines of `samples.jsonl` alone."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import median
from typing import Any, TypeVar

from videonsa.errors import UsageError
from videonsa.evals.scoring import best_constant
from videonsa.evals.tasks.suite.suite_line import SuiteLine
from videonsa.evals.tasks.suite.suite_run import CONDITIONS
from videonsa.rendered.suites import KINDS

FORMAT = 1
ALL = "all"
"""Stands for every kind, or every length, together."""
POSITION_BINS = 5
_SHARED = ("suite", "model", "attention", "difficulty", "frame_size", "style", "split")
_COSTS = (
    "video_tokens",
    "prompt_tokens",
    "attended_keys",
    "attention_fraction",
    "encode_seconds",
    "prefill_seconds",
    "answer_seconds",
    "peak_bytes",
)
_Key = TypeVar("_Key")


def summarise(lines: Sequence[SuiteLine]) -> dict[str, Any]:
    """What the report shows, as JSON keeps it.

    Raises:
        UsageError: no lines, or lines of several runs.
    """
    if not lines:
        raise UsageError("no question was answered: there is nothing to report")
    for name in _SHARED:
        values = {getattr(line, name) for line in lines}
        if len(values) > 1:
            found = ", ".join(sorted(map(str, values)))
            raise UsageError(f"lines with {name} {found} in one report: want those of one run")
    conditions = [name for name in CONDITIONS if any(x.condition == name for x in lines)]
    main = conditions[0]
    shown = [line for line in lines if line.condition == main]
    return {
        "format": FORMAT,
        **{name: getattr(lines[0], name) for name in _SHARED},
        "spec": shown[0].spec,
        "conditions": conditions,
        "main": main,
        "kinds": [
            kind for kind in KINDS[lines[0].suite] if any(line.kind == kind for line in lines)
        ],
        "lengths": sorted({line.length for line in lines}),
        "videos": {
            str(length): len({x.sample for x in group})
            for length, group in _grouped(shown, lambda x: x.length).items()
        },
        "scores": _scores(lines),
        "guessing": _guessing(shown),
        "positions": _positions(lines),
        "costs": _costs(lines),
    }


def _grouped(
    lines: Iterable[SuiteLine], key: Callable[[SuiteLine], _Key]
) -> dict[_Key, list[SuiteLine]]:
    groups: dict[_Key, list[SuiteLine]] = defaultdict(list)
    for line in lines:
        groups[key(line)].append(line)
    return dict(groups)


def _cells(lines: Sequence[SuiteLine]) -> Iterator[tuple[str, str, list[SuiteLine]]]:
    """(length, kind, their lines), each also for all lengths and for all kinds."""
    for length, of_length in [*_grouped(lines, lambda x: str(x.length)).items(), (ALL, lines)]:
        for kind, of_kind in [*_grouped(of_length, lambda x: x.kind).items(), (ALL, of_length)]:
            yield length, kind, list(of_kind)


def _scores(lines: Sequence[SuiteLine]) -> list[dict[str, Any]]:
    return [
        {
            "condition": condition,
            "length": length,
            "kind": kind,
            "right": sum(line.right for line in cell),
            "total": len(cell),
            "unparsed": sum(line.chosen is None for line in cell),
            **_weighed(cell),
        }
        for condition, group in _grouped(lines, lambda x: x.condition).items()
        for length, kind, cell in _cells(group)
    ]


def _weighed(lines: Sequence[SuiteLine]) -> dict[str, int]:
    """Lines whose likeliest option is right, where all were asked for it."""
    if any(line.likeliest is None for line in lines):
        return {}
    return {"likeliest": sum(line.likeliest == line.answer for line in lines)}


def _guessing(lines: Sequence[SuiteLine]) -> list[dict[str, Any]]:
    """Of one condition's questions: what guessers reach, and the oracle."""
    return [
        {
            "length": length,
            "kind": kind,
            "constant": _constant(cell),
            "chance": sum(1 / len(line.options) for line in cell) / len(cell),
            "oracle": sum(line.oracle == line.answer for line in cell),
            "total": len(cell),
        }
        for length, kind, cell in _cells(lines)
    ]


def _constant(lines: Sequence[SuiteLine]) -> int:
    """Right answers of the best constant answer, chosen for each kind by itself."""
    return sum(best_constant(group).right for group in _grouped(lines, lambda x: x.kind).values())


def position_bin(position: float) -> int:
    """Which of `POSITION_BINS` equal parts of the video, from 0."""
    return min(int(position * POSITION_BINS), POSITION_BINS - 1)


def _positions(lines: Sequence[SuiteLine]) -> list[dict[str, Any]]:
    placed = [(line, position_bin(line.position)) for line in lines if line.position is not None]
    groups: dict[tuple[str, int, int], list[bool]] = defaultdict(list)
    for line, part in placed:
        groups[line.condition, line.length, part].append(line.right)
    return [
        {"condition": condition, "length": length, "bin": part}
        | {"right": sum(group), "total": len(group)}
        for (condition, length, part), group in sorted(groups.items())
    ]


def _costs(lines: Sequence[SuiteLine]) -> list[dict[str, Any]]:
    """Of each condition and length: the median of each cost, of memory the highest."""
    costs = []
    groups = _grouped(lines, lambda x: (x.length, list(CONDITIONS).index(x.condition)))
    for (length, _), group in sorted(groups.items()):
        entry: dict[str, Any] = {"condition": group[0].condition, "length": length}
        for name in _COSTS:
            values = [value for line in group if (value := getattr(line, name)) is not None]
            middle = max if name == "peak_bytes" else median
            entry[name] = middle(values) if values else None
        costs.append(entry)
    return costs
