"""`selection`: which blocks vision tokens select, and whether those hold the evidence."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from videonsa.analysis.arms import percent
from videonsa.analysis.asked import Asked, AskedQuestion, AskedVideo
from videonsa.analysis.finding import Finding, Measuring, Progress
from videonsa.errors import UsageError
from videonsa.evals.intervals import Interval, mean_over_videos
from videonsa.inference.context import Context, split_at_video
from videonsa.models.methods.nsa import NSA
from videonsa.models.recorder.protocol import Recorders
from videonsa.models.recorder.selection import RANKINGS, EvidenceRecall, SelectedFrames
from videonsa.models.recorder.unions import TILE_ROWS, SelectionUnions
from videonsa.video.chat import VisionSlot, chat_tokens

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA


@dataclass(frozen=True, kw_only=True)
class SelectionOptions:
    """What is looked at."""

    queries: int = 4096
    """Vision tokens of a video whose recall is counted, at most: evenly spread."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerUnions:
    """Of one layer; intervals are over videos."""

    union: Interval
    """Blocks that 16 neighbouring tokens select together in a KV head."""
    overlap: Interval
    """Share of its blocks that a token selects with the one before it."""
    sizes: tuple[int, ...]
    """Tiles by their union, from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KindRecall:
    """Of the evidence of one kind of question; all layers and heads, intervals over videos."""

    kind: str
    num_videos: int
    video: dict[str, Interval]
    """By ranking: share of the evidence's tokens in the blocks of vision tokens behind it."""
    above_chance: Interval
    """Selection less chance, paired."""
    above_compressed: Interval
    """Selection less each query head's own compressed scores, paired."""
    layers: tuple[float, ...]
    """Selection less chance, layer by layer."""
    text: dict[str, Interval]
    """Of the tokens of the question: what they would choose."""


@dataclass(frozen=True, kw_only=True)
class Selection(Finding):
    """Frames, unions and recall."""

    name = "selection"
    options: ClassVar[type] = SelectionOptions
    size: ClassVar[tuple[float, float]] = (9.2, 8.4)

    num_selected: int
    least: float
    """Mean union if 16 neighbours agreed beside their own block."""
    chance: float
    """Mean union if they drew."""
    disorder: float
    """Where the measured union lies: 0 is `least`, 1 is `chance`."""
    layers: tuple[LayerUnions, ...]
    recall: tuple[KindRecall, ...]
    frames: tuple[tuple[tuple[float, ...], ...], ...]
    """Of the first video: how often each layer and KV head selects each frame, less chance; the
    last frame, which no other sees, left out."""

    @classmethod
    def measure(
        cls, qa: "VideoQA", asked: Asked, options: SelectionOptions, *, progress: Progress
    ) -> "Selection":
        """See `Finding`.

        Raises:
            UsageError: a model that selects nothing, or videos too short for one tile.
        """
        method = qa.model.method
        if not isinstance(method, NSA):
            raise UsageError(f"selection with method {method.full_name!r}: want nsa")
        measuring, videos, looks = Measuring(qa, asked, options), asked.videos(), []
        for place, video in enumerate(videos, start=1):
            progress(f"video {place} of {len(videos)}: {video.task}")
            looks.append(_Looked(qa, method, video, options.queries))
        bounds = [one.unions.bounds for one in looks if one.unions.bounds is not None]
        if len(bounds) < len(looks):
            raise UsageError(f"a video of less than {TILE_ROWS} tokens: want longer videos")
        least = sum(one.least for one in bounds) / len(bounds)
        chance = sum(one.chance for one in bounds) / len(bounds)
        layers = _unions(looks)
        mean = sum(one.union.value for one in layers) / len(layers)
        if any(not question.evidence for video in videos for question in video.questions):
            measuring.note(["questions whose evidence has no place are left out of the recall"])
        return cls(
            facts=measuring.facts(),
            num_selected=method.spec.num_selected_blocks,
            least=least,
            chance=chance,
            disorder=(mean - least) / max(chance - least, 1e-9),
            layers=layers,
            recall=_recall(looks),
            frames=looks[0].frames_above_chance(),
        )

    def draw(self, figure: "Figure", look: "Look") -> None:
        """See `Finding`."""
        above, below = figure.subplots(2, 2, height_ratios=(1, 1.1))
        self._draw_unions(above[0], look)
        self._draw_recall(above[1], look)
        self._draw_layers(below[0], look)
        rows = [head for layer in self.frames for head in layer]
        most = max((abs(x) for row in rows for x in row), default=1.0) or 1.0
        shown = below[1].imshow(rows, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most)
        figure.colorbar(shown, ax=below[1], label="selected less chance")
        heads = len(self.frames[0])
        below[1].set_yticks(range(0, len(rows), heads), [str(x) for x in range(len(self.frames))])
        below[1].set(xlabel="frame", ylabel=f"layer, {heads} KV heads each")
        look.clean(below[1], title="Which frames are selected", remark="the first video")
        below[1].grid(visible=False)

    def _draw_unions(self, axes: "Axes", look: "Look") -> None:
        values = [one.union.value for one in self.layers]
        axes.plot(values, marker="o", color=look.series[0], label="measured")
        axes.axhline(self.chance, color=look.muted, linestyle=":", label="drawn at random")
        axes.axhline(self.least, color=look.muted, linestyle="--", label="all agree")
        axes.set(xlabel="layer", ylabel="blocks", ylim=(0, None))
        axes.legend(fontsize=8.5)
        look.clean(axes, title="Union of 16 neighbours", remark=f"n = {self.num_selected}")

    def _draw_recall(self, axes: "Axes", look: "Look") -> None:
        for place, one in enumerate(self.recall):
            for number, ranking in enumerate(RANKINGS):
                value = one.video[ranking]
                at, colour = place + 0.18 * number - 0.27, look.series[number]
                label = ranking if place == 0 else None
                axes.plot(at, 100 * value.value, "o", color=colour, label=label)
                if value.low is not None and value.high is not None:
                    axes.vlines(at, 100 * value.low, 100 * value.high, color=colour)
        axes.set_xticks(range(len(self.recall)), [one.kind for one in self.recall], rotation=20)
        axes.set(ylabel="percent", ylim=(0, 1.3 * axes.get_ylim()[1]))  # room for the legend
        if self.recall:
            axes.legend(fontsize=8.5, ncols=2, loc="upper left")
        look.clean(axes, title="Evidence in the chosen blocks", remark="95 % over videos")

    def _draw_layers(self, axes: "Axes", look: "Look") -> None:
        for one, colour in zip(self.recall, look.series, strict=False):
            axes.plot([100 * x for x in one.layers], marker=".", color=colour, label=one.kind)
        axes.axhline(0, color=look.muted, linewidth=0.8)
        axes.set(xlabel="layer", ylabel="points")
        if self.recall:
            axes.legend(fontsize=8.5)
        look.clean(axes, title="Recall less chance", remark="vision tokens never see a question")

    def sentences(self) -> tuple[str, ...]:
        """See `Finding`."""
        unions = ", ".join(f"{one.union.value:.2f}" for one in self.layers)
        told = [
            f"16 neighbours select {unions} blocks together, layer by layer (n = "
            f"{self.num_selected}); {self.least:.2f} if they agreed, {self.chance:.2f} if they "
            f"drew: disorder {self.disorder:.2f}."
        ]
        for one in self.recall:
            verdict = "cannot be told apart from chance"
            if one.above_chance.excludes(0):
                verdict = f"{'above' if one.above_chance.value > 0 else 'below'} chance"
            told.append(
                f"{one.kind}: {percent(one.video['selected'])} of the evidence is selected, "
                f"{percent(one.video['chance'])} by chance ({verdict}), "
                f"{percent(one.video['compressed'])} by each head's compressed scores, "
                f"{percent(one.video['attention'])} by exact attention."
            )
        return tuple(told)


class _Looked:
    """One video, with what recorders saw of it."""

    def __init__(self, qa: "VideoQA", method: NSA, video: AskedVideo, queries: int) -> None:
        vision = video.encode(qa, None)
        sets = {str(i): frames for i, frames in _evidence(video, vision.grid[0])}
        stride = math.ceil(len(vision.features) / queries)
        self.unions, self._frames = SelectionUnions(), SelectedFrames(method.spec)
        self._seen = EvidenceRecall(sets, spec=method.spec, stride=stride)
        self._kinds = [one.kind for one in video.questions]
        self._names, self._asked = list(sets), {}
        recorders = [self.unions, self._frames, *([self._seen] if sets else [])]
        chats = [
            chat_tokens(
                one.text,
                tokenizer=qa.tokenizer,
                vision=[VisionSlot(vision.kind, len(vision.features))],
            ).ids
            for one in video.questions
        ]
        end, context = qa.model.config.vision_end_token_id, Context(qa.model, method=method)
        head, _ = split_at_video(chats[0], end)
        context.read(context.passage(head, [vision]), recorder=Recorders(*recorders))
        for name, frames in sets.items():
            recorder = EvidenceRecall({name: frames}, spec=method.spec)
            with context.aside():
                tail = split_at_video(chats[int(name)], end)[1]
                # The context knows the video; its recorder begins with the question.
                context.read(context.passage(tail), recorder=recorder)
            self._asked[name] = recorder

    def recalls(self) -> Iterator[tuple[str, list[dict[str, float]], list[dict[str, float]]]]:
        """Kind, of vision tokens and of the question's, layer by layer; empty: none counted."""
        for name in self._names:
            video = [one.video for one in self._seen.recall(name) if one.video is not None]
            text = [one.text for one in self._asked[name].recall(name) if one.text is not None]
            yield self._kinds[int(name)], video, text

    def frames_above_chance(self) -> tuple[tuple[tuple[float, ...], ...], ...]:
        """See `Selection.frames`."""
        above = (self._frames.frequency() - self._frames.by_chance())[..., :-1]
        return tuple(
            tuple(tuple(round(x, 4) for x in head) for head in one) for one in above.tolist()
        )


def _evidence(video: AskedVideo, num_frames: int) -> Iterator[tuple[int, list[int]]]:
    """The frames of each question whose evidence has a place."""
    for place, one in enumerate(video.questions):
        if frames := frames_of(one, num_frames, seconds=video.frame_seconds):
            yield place, frames


def frames_of(question: AskedQuestion, num_frames: int, *, seconds: float) -> list[int]:
    """The frames, of so many seconds each, in which some evidence is seen."""
    return [
        frame
        for frame in range(num_frames)
        if any(
            start < (frame + 1) * seconds and end > frame * seconds
            for start, end in question.evidence
        )
    ]


def _unions(looks: Sequence[_Looked]) -> tuple[LayerUnions, ...]:
    ones, found = [1.0] * len(looks), []
    for layer in range(len(looks[0].unions.unions)):
        sizes = sum(one.unions.sizes[layer] for one in looks)
        found.append(
            LayerUnions(
                union=mean_over_videos([one.unions.unions[layer] for one in looks], ones),
                overlap=mean_over_videos([one.unions.overlaps[layer] for one in looks], ones),
                sizes=tuple(sizes.tolist()),  # type: ignore[union-attr]  # there is a video
            )
        )
    return tuple(found)


def _recall(looks: Sequence[_Looked]) -> tuple[KindRecall, ...]:
    video: dict[str, list[Any]] = defaultdict(list)
    text: dict[str, list[Any]] = defaultdict(list)
    for one in looks:
        for kind, seen, asked in one.recalls():
            if seen:
                video[kind].append(seen)
            if asked:
                text[kind].append(asked)
    return tuple(
        KindRecall(
            kind=kind,
            num_videos=len(rows),
            video={name: _mean([_over_layers(row, name) for row in rows]) for name in RANKINGS},
            above_chance=_gap(rows, "chance"),
            above_compressed=_gap(rows, "compressed"),
            layers=tuple(
                sum(row[layer]["selected"] - row[layer]["chance"] for row in rows) / len(rows)
                for layer in range(len(rows[0]))
            ),
            text={
                name: _mean([_over_layers(row, name) for row in text[kind]])
                for name in RANKINGS
                if name != "selected" and text[kind]
            },
        )
        for kind, rows in video.items()
    )


def _over_layers(layers: Sequence[dict[str, float]], name: str) -> float:
    return sum(one[name] for one in layers) / len(layers)


def _mean(values: Sequence[float]) -> Interval:
    return mean_over_videos(values, [1.0] * len(values), bounds=(0.0, 1.0))


def _gap(rows: Sequence[Sequence[dict[str, float]]], other: str) -> Interval:
    gaps = [_over_layers(row, "selected") - _over_layers(row, other) for row in rows]
    return mean_over_videos(gaps, [1.0] * len(gaps), bounds=(-1.0, 1.0))
