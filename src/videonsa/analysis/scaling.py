"""`scaling`: accuracy and cost against context, and tokens of a frame against frames."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from videonsa.analysis.arms import Arm, Comparison, compare_arms, percent, told_difference
from videonsa.analysis.asked import CLIPS, Asked, AskedFile, AskedSuite
from videonsa.analysis.counted_keys import mean_keys
from videonsa.analysis.finding import Finding, Measuring, Progress
from videonsa.errors import UsageError
from videonsa.evals.intervals import Interval
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import NSA
from videonsa.rendered.suite.suite_spec import MIN_SIZE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA

ON_A_CPU = "a CPU runs NSA by its reference: seconds say nothing of the kernels of a GPU"
_MARKERS = "osD^v"
_BESIDE = 1.04


@dataclass(frozen=True, kw_only=True)
class ScalingOptions:
    """Which lengths and frames."""

    shares: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Of the longest context, which is the length that is asked for; of a file, of its frames."""
    frame_sizes: tuple[int, ...] = ()
    """Pixels a side, each at every context; empty: as asked for, and of suites half as wide."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmKeys:
    """Keys of a vision token, means over a video."""

    tokens: float
    """Of selected blocks and window, or of dense attention."""
    compressed: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ScalingPoint:
    """A number of frames of one size."""

    frame_size: int | None
    """Pixels a side; None: as the file's sampling has it."""
    pairs: int
    """Of frames, which the model reads together."""
    pair_tokens: int
    keys: tuple[ArmKeys, ...]
    """One for each arm."""
    compared: Comparison
    """With the true lengths."""


@dataclass(frozen=True, kw_only=True)
class Scaling(Finding):
    """Accuracy, seconds and keys at each point, beside dense attention and a random selection."""

    name = "scaling"
    options: ClassVar[type] = ScalingOptions
    size: ClassVar[tuple[float, float]] = (11.0, 4.8)

    points: tuple[ScalingPoint, ...]
    """By frame size, then ascending."""

    @classmethod
    def measure(
        cls, qa: "VideoQA", asked: Asked, options: ScalingOptions, *, progress: Progress
    ) -> "Scaling":
        """See `Finding`.

        Raises:
            UsageError: neither NSA nor dense attention, or no length that can be shown.
        """
        measuring = Measuring(qa, asked, options)
        arms = arms_of(qa.model.method)
        if len(arms) == 1:
            measuring.note(("weights without gates: nothing sparse is beside dense attention",))
        shown = _shown(qa, asked, options, measuring)
        points = []
        for place, one in enumerate(shown, start=1):
            progress(f"length {place} of {len(shown)}: {one.pairs} pairs of frames")
            compared = compare_arms(qa, one.asked, arms, progress=progress)
            points.append(_point(one, arms, compared))
            progress(f"read: {_span(*compared.vision_tokens)} vision tokens a video")
        if points[0].compared.num_videos == 1:
            measuring.note(("one video a length: its seconds include preparing the device",))
        measuring.note(("videos of different lengths are different videos",))
        if qa.model.device.type == "cpu":
            measuring.note((ON_A_CPU,))
        return cls(facts=measuring.facts(), points=tuple(points))

    def draw(self, figure: "Figure", look: "Look") -> None:
        """See `Finding`."""
        right, seconds = figure.subplots(1, 2)
        first = self.points[0].compared
        known = first.arms[0].accuracy is not None
        for number, line in enumerate(self._lines()):
            for place, colour in enumerate((look.text, *look.series)[: len(first.arms)]):
                arms = [point.compared.arms[place] for point in line]
                label = f"{arms[0].label}, {line[0].pair_tokens} a pair"
                style: dict[str, Any] = {
                    "marker": _MARKERS[number % len(_MARKERS)],
                    "color": colour,
                }
                beside = _BESIDE ** (place - 1)  # intervals do not lie on one another
                tokens = [beside * point.compared.vision_tokens[1] for point in line]
                values = [one.accuracy or one.agreement for one in arms]
                _mark(right, tokens, values, unit=100, **style)
                times = [one.prefill_seconds for one in arms]
                _mark(seconds, tokens, times, unit=1, label=label, **style)
        if known and first.guessing.chance is not None:
            _mark_chance(right, self._lines()[0], look)
        ticks = sorted({point.compared.vision_tokens[1] for point in self.points})
        for axes in (right, seconds):
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, [f"{one:,}" for one in ticks])
            axes.set_xlabel("vision tokens of a video")
        _scale_seconds(seconds)
        seconds.legend(fontsize=8.5)
        right.set_ylabel("right answers, percent" if known else "same replies, percent")
        look.clean(
            right,
            title="Accuracy against context" if known else "Replies against context",
            remark=f"{first.num_questions} questions about {first.num_videos} videos a length, "
            "95 % intervals over videos",
        )
        look.clean(seconds, title="Cost against context", remark=self.facts.machine["device"])

    def _lines(self) -> list[list[ScalingPoint]]:
        sizes = dict.fromkeys(point.frame_size for point in self.points)
        return [[one for one in self.points if one.frame_size == size] for size in sizes]

    def sentences(self) -> tuple[str, ...]:
        """See `Finding`."""
        told = [sentence for point in self.points for sentence in _told_point(point)]
        for line in self._lines():
            told += _told_trend(line)
        return tuple(told)


class _Shown(NamedTuple):
    """What is asked at a point."""

    asked: Asked
    frame_size: int | None
    pairs: int


def arms_of(own: AttentionMethod) -> list[tuple[str, AttentionMethod]]:
    """As the weights attend, and beside NSA blocks drawn at random, and dense attention.

    Raises:
        UsageError: another method.
    """
    if isinstance(own, NSA):
        drawn = own.with_options(selection="random")
        return [(own.name, own), (f"{own.name}, random blocks", drawn), ("dense", Dense())]
    if isinstance(own, Dense):
        return [("dense", own)]
    raise UsageError(f"scaling with method {own.full_name!r}: want nsa or dense")


def _shown(
    qa: "VideoQA", asked: Asked, options: ScalingOptions, measuring: Measuring
) -> list[_Shown]:
    if not options.shares or not all(0 < one <= 1 for one in options.shares):
        raise UsageError(f"--set shares={options.shares}: want shares above 0 and at most 1")
    if isinstance(asked, AskedFile):
        return list(_of_file(qa, asked, options))
    assert isinstance(asked, AskedSuite), "a suite or a file is asked about"
    found: dict[tuple[int, int], _Shown] = {}
    for size in _frame_sizes(asked, options):
        for share in sorted(options.shares):
            tokens = int(share * asked.tokens)
            try:
                point = asked.with_changes(tokens=tokens, frame_size=size)
                point.videos()
            except UsageError as error:
                measuring.note((f"{tokens:,} tokens of {size} pixels are left out: {error}",))
                continue
            found.setdefault((size, point.num_frames), _Shown(point, size, point.num_frames // 2))
    if not found:
        raise UsageError(f"no length can be shown: {measuring.notes[0]}")
    return [*found.values()]


def _frame_sizes(asked: AskedSuite, options: ScalingOptions) -> Sequence[int]:
    if asked.suite == CLIPS:
        if options.frame_sizes:
            raise UsageError("--set frame_sizes of clips, which have one size: want --suite 2")
        return (asked.frame_size,)
    half = asked.frame_size // 2
    halved = (half,) if half >= MIN_SIZE and half % 28 == 0 else ()
    return options.frame_sizes or (asked.frame_size, *halved)


def _of_file(qa: "VideoQA", asked: AskedFile, options: ScalingOptions) -> Iterator[_Shown]:
    """A share of the frames that the file's sampling takes, spread evenly over the same seconds."""
    frames = 2 * asked.videos()[0].encode(qa, None).grid[0]
    counts = dict.fromkeys(max(2, int(share * frames) // 2 * 2) for share in sorted(options.shares))
    for size in options.frame_sizes or (None,):
        for count in counts:
            changes = asked.changes | {"fps": None, "timestamps": None, "num_frames": count}
            if size is not None:
                changes |= {"max_pixels": size * size}
            yield _Shown(replace(asked, changes=changes), size, count // 2)


def _point(
    one: _Shown, arms: Sequence[tuple[str, AttentionMethod]], compared: Comparison
) -> ScalingPoint:
    num_tokens = compared.vision_tokens[1]
    pair_tokens = num_tokens // one.pairs
    keys = [
        mean_keys(method, num_tokens=num_tokens, tokens_per_frame=pair_tokens) for _, method in arms
    ]
    return ScalingPoint(
        frame_size=one.frame_size,
        pairs=one.pairs,
        pair_tokens=pair_tokens,
        keys=tuple(ArmKeys(tokens=tokens, compressed=means) for tokens, means in keys),
        compared=compared,
    )


def _mark(
    axes: "Axes", tokens: Sequence[float], values: Sequence[Interval], *, unit: float, **style: Any
) -> None:
    axes.plot(tokens, [unit * one.value for one in values], linewidth=1.2, **style)
    for x, one in zip(tokens, values, strict=True):
        if one.low is not None and one.high is not None:
            axes.vlines(x, unit * one.low, unit * one.high, color=style["color"], linewidth=1.2)


def _mark_chance(axes: "Axes", line: Sequence[ScalingPoint], look: "Look") -> None:
    chances = [100 * (point.compared.guessing.chance or 0) for point in line]
    tokens = [float(point.compared.vision_tokens[1]) for point in line]
    axes.plot(tokens, chances, color=look.muted, linestyle=":")
    axes.annotate(
        "chance",
        (tokens[0], chances[0]),
        (0, 4),
        textcoords="offset points",
        color=look.muted,
        fontsize=8.5,
    )


def _scale_seconds(axes: "Axes") -> None:
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.set_ylabel("seconds of a prefill")


def _told_point(point: ScalingPoint) -> Iterator[str]:
    compared = point.compared
    first, *others = compared.arms
    tokens, prompt = _span(*compared.vision_tokens), _span(*compared.prompt_tokens)
    chance = compared.guessing.chance
    guessed = "" if chance is None else f", chance is {100 * chance:.1f} %"
    yield (
        f"{tokens} vision tokens ({point.pairs} pairs of frames of {point.pair_tokens}; prompts of "
        f"{prompt}): {first.label} has {percent(first.accuracy)} right{guessed}."
    )
    for one in others:
        yield f"{tokens}: {told_difference(one, than=first.label)}"


def _told_trend(line: Sequence[ScalingPoint]) -> Iterator[str]:
    """From the shortest to the longest of one frame size, arm by arm."""
    first, last = line[0], line[-1]
    if first is last:
        return
    span = " to ".join(_span(*point.compared.vision_tokens) for point in (first, last))
    for place, (a, b) in enumerate(zip(first.compared.arms, last.compared.arms, strict=True)):
        short, long = first.keys[place], last.keys[place]
        compressed = f" and {short.compressed:.0f} to {long.compressed:.0f} compressed ones"
        compressed = compressed if long.compressed else ""
        cost = (
            f"{b.prefill_seconds.value / a.prefill_seconds.value:.1f} times the seconds "
            f"({a.prefill_seconds.value:.3g} to {b.prefill_seconds.value:.3g})"
        )
        yield (
            f"{a.label}, from {span} vision tokens: accuracy {_told_change(a, b)}; {cost}; "
            f"{short.tokens:.0f} to {long.tokens:.0f} keys a vision token{compressed}; {_share(a)} "
            f"to {_share(b)} of dense attention."
        )


def _told_change(a: Arm, b: Arm) -> str:
    """Different videos: told only where their intervals lie apart."""
    if a.accuracy is None or b.accuracy is None:
        return "is not known"
    ends = (a.accuracy.low, a.accuracy.high, b.accuracy.low, b.accuracy.high)
    verdict = "cannot be told to change, the intervals overlap"
    if None not in ends:
        low, high, later_low, later_high = (float(x or 0) for x in ends)
        if later_high < low:
            verdict = "falls"
        elif later_low > high:
            verdict = "rises"
    return f"{percent(a.accuracy)} to {percent(b.accuracy)}: {verdict}"


def _share(arm: Arm) -> str:
    return "an unknown share" if arm.attention is None else f"{100 * arm.attention:.1f} %"


def _span(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
