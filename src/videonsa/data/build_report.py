"""The report of a build: counts, reasons, totals, and histograms as a picture."""

import io
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from videonsa.data.filter import FilterOptions
from videonsa.data.manifest import ManifestRow
from videonsa.data.reasons import DropError, Reason
from videonsa.data.sources import Entry
from videonsa.disk import write_atomic
from videonsa.errors import missing_package

REPORT_JSON, REPORT_MD, HISTOGRAMS = "report.json", "report.md", "histograms.png"
_EXAMPLES = 5
_BINS = 40
_MOST_BARS = 256
_MOST_FIELDS, _OTHER_FIELDS = 50, "others"
"""Fields that are counted by name, and the name of all the rest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What came of a build."""

    rows: int
    kept: int
    dropped: Mapping[str, int]
    """Rows by reason."""
    by_source: Mapping[str, Mapping[str, int]]
    """Per data set: `kept` rows, and the dropped by reason."""
    files: Mapping[str, int]
    """Videos and images that rows name: `named` = `missing` + `broken` + `usable`."""
    cut: int
    """Kept rows that lost exchanges to the limit of tokens."""
    text_only: int
    """Kept rows without a video or an image, to which the rule of frames does not apply."""
    placed: int
    """Kept rows whose text does not say where its videos stand: they were put first."""
    unread: Mapping[str, int]
    """Fields that are not used, and in how many kept rows each occurs."""
    totals: Mapping[str, float]
    """Of the kept rows: frames, hours of video, tokens of video, image, text and all."""
    frames: Mapping[int, tuple[int, int]]
    """Sampled frames of a readable row: how many such rows are kept, how many dropped."""
    tokens: Mapping[int, int]
    """Tokens of a kept row: how many such rows there are."""
    examples: Mapping[str, Sequence[Mapping[str, str]]]
    """The first dropped rows of each reason."""
    notes: Sequence[str]
    options: Mapping[str, Any]
    data_hash: str

    def summary(self) -> dict[str, Any]:
        """The counts, without histograms and examples."""
        left_out = {"frames", "tokens", "examples"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(slots=True)
class Tally:
    """Counts rows during a build."""

    _by_source: dict[str, Counter[str]] = field(default_factory=dict)
    _examples: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    _totals: Counter[str] = field(default_factory=Counter)
    _frames: Counter[tuple[int, bool]] = field(default_factory=Counter)
    _tokens: Counter[int] = field(default_factory=Counter)
    _seconds: float = 0.0
    _cut: int = 0
    _text_only: int = 0
    _placed: int = 0
    _unread: Counter[str] = field(default_factory=Counter)

    def keep(self, entry: Entry, row: ManifestRow) -> None:
        """Count a row that is kept."""
        self._count(entry.source, "kept")
        self._cut += row.num_turns < len(row.record.turns)
        self._text_only += not row.record.media
        self._placed += entry.placed
        for name in entry.unread:
            known = name in self._unread or len(self._unread) < _MOST_FIELDS
            self._unread[name if known else _OTHER_FIELDS] += 1
        self._seconds += row.duration
        if row.record.media:
            self._frames[row.num_frames, True] += 1
        self._tokens[row.tokens] += 1
        for name in ("num_frames", "video_tokens", "image_tokens", "text_tokens", "tokens"):
            self._totals[name] += getattr(row, name)

    def drop(self, entry: Entry, error: DropError) -> None:
        """Count a row that is not."""
        self._count(entry.source, error.reason)
        examples = self._examples.setdefault(error.reason, [])
        if len(examples) < _EXAMPLES:
            examples.append({"id": entry.id, "detail": error.detail})
        if error.num_frames is not None:
            self._frames[error.num_frames, False] += 1

    def _count(self, source: str, outcome: str) -> None:
        self._by_source.setdefault(source, Counter())[outcome] += 1

    def report(
        self,
        *,
        data_hash: str,
        options: FilterOptions,
        files: Mapping[str, int],
        notes: Sequence[str],
    ) -> Report:
        """The report of all rows counted so far."""
        total: Counter[str] = Counter()
        for counts in self._by_source.values():
            total += counts
        return Report(
            rows=total.total(),
            kept=total["kept"],
            dropped={reason: total[reason] for reason in Reason if total[reason]},
            by_source={
                source: {key: counts[key] for key in ("kept", *Reason) if counts[key]}
                for source, counts in sorted(self._by_source.items())
            },
            files=files,
            cut=self._cut,
            text_only=self._text_only,
            placed=self._placed,
            unread=dict(self._unread.most_common()),
            totals=dict(self._totals) | {"hours": self._seconds / 3600},
            frames={
                frames: (self._frames[frames, True], self._frames[frames, False])
                for frames in sorted({frames for frames, _ in self._frames})
            },
            tokens=dict(sorted(self._tokens.items())),
            examples={
                reason: self._examples[reason] for reason in Reason if reason in self._examples
            },
            notes=tuple(notes),
            options=asdict(options),
            data_hash=data_hash,
        )


def write_report(report: Report, folder: Path) -> None:
    """Write report.json, report.md and histograms.png.

    Raises:
        UsageError: matplotlib is not installed.

    """
    content = json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n"
    markdown = "".join(f"{line}\n" for line in report_lines(report))
    for name, text in ((REPORT_JSON, content), (REPORT_MD, markdown)):
        # A path may not be valid Unicode: its bytes are escaped.
        write_atomic(folder / name, text.encode(errors="backslashreplace"))
    write_atomic(folder / HISTOGRAMS, draw_histograms(report))


def report_lines(report: Report) -> Iterator[str]:
    """The report as Markdown."""
    yield "# Training data"
    yield ""
    yield f"{report.kept} of {report.rows} rows are kept; {report.rows - report.kept} are dropped."
    yield ""
    yield from _table(
        ("dropped", "rows", "why"),
        [(reason, count, Reason(reason).text) for reason, count in report.dropped.items()],
    )
    yield from _table(
        ("data set", "rows", "kept", "dropped"),
        [
            (
                source,
                sum(counts.values()),
                counts.get("kept", 0),
                ", ".join(f"{key} {count}" for key, count in counts.items() if key != "kept"),
            )
            for source, counts in report.by_source.items()
        ],
    )
    yield from _table(("of the kept rows", ""), list(_totals(report)))
    yield from _table(("field that is not read", "kept rows"), list(report.unread.items()))
    yield f"![histograms of frames and tokens]({HISTOGRAMS})"
    yield ""
    yield from _table(("option", "value"), list(report.options.items()))
    if report.notes:
        yield from (f"- {_line(note)}" for note in report.notes)
        yield ""
    if report.examples:
        yield "The first dropped rows of each reason:"
        yield ""
        for reason, examples in report.examples.items():
            yield from (f"- {reason}: `{row['id']}`: {_line(row['detail'])}" for row in examples)
        yield ""
    yield f"Hash of the rows: `{report.data_hash}`"


def _totals(report: Report) -> Iterator[tuple[str, str]]:
    totals = report.totals
    yield "sampled frames", f"{totals.get('num_frames', 0):,}"
    yield "hours of video", f"{totals['hours']:.2f}"
    for kind in ("video_", "image_", "text_", ""):
        yield f"{kind.replace('_', ' ')}tokens", f"{totals.get(f'{kind}tokens', 0):,}"
    yield "cut at a turn", f"{report.cut:,}"
    yield "rows of text alone", f"{report.text_only:,}"
    yield "videos put before the text, which does not place them", f"{report.placed:,}"
    yield (
        "files named, missing, broken",
        "{named:,}, {missing:,}, {broken:,}".format(**report.files),
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Iterator[str]:
    if rows:
        for row in (head, ["---"] * len(head), *rows):
            yield "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in row) + " |"
        yield ""


def _line(value: Any) -> str:
    return " ".join(str(value).split())


def require_matplotlib() -> None:
    """Check that the histograms can be drawn, before a build begins.

    Raises:
        UsageError: matplotlib is not installed.

    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise missing_package("matplotlib", extra="data") from error


def draw_histograms(report: Report) -> bytes:
    """Sampled frames of readable rows, kept and dropped, and tokens of kept rows, as a PNG."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_frames(left, report)
    _draw_tokens(right, report)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", metadata={"Software": None})
    return picture.getvalue()


def _draw_frames(axes: Any, report: Report) -> None:
    least, most = report.options["min_frames"], report.options["max_frames"]
    # Very long videos would squeeze the other bars: they are counted in the last one.
    end = min(max([*report.frames, most]), 2 * most)
    width = max(1.0, (most + 1 - least) / 8, end / _MOST_BARS)
    start = least - math.ceil(least / width) * width
    edges = [start + width * step for step in range(math.ceil((end + 1 - start) / width) + 1)]
    clipped = [min(frames, end) for frames in report.frames]
    kept, dropped = zip(*report.frames.values(), strict=True) if report.frames else ((), ())
    axes.hist(
        [clipped, clipped],
        weights=[kept, dropped],
        bins=edges,
        stacked=True,
        color=["tab:blue", "lightgrey"],
        label=[f"kept ({sum(kept):,})", f"dropped by this rule ({sum(dropped):,})"],
    )
    for limit in (least, most + 1):
        axes.axvline(limit, color="black", linewidth=1, linestyle="--")
    beyond = " (last bar: and more)" if report.frames and max(report.frames) > end else ""
    axes.set(xlabel=f"sampled frames{beyond}", ylabel="rows", title="Frames of readable rows")
    axes.legend(loc="upper right")  # to find the best place may take seconds


def _draw_tokens(axes: Any, report: Report) -> None:
    axes.hist(
        list(report.tokens), weights=list(report.tokens.values()), bins=_BINS, color="tab:blue"
    )
    axes.set(xlabel="tokens", ylabel="rows", title=f"Tokens of kept rows ({report.kept:,})")
