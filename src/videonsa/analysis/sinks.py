"""`sinks`: keys that receive much attention and whose values are short, branch by branch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from videonsa.analysis.arms import percent
from videonsa.analysis.asked import Asked
from videonsa.analysis.finding import Finding, Measuring, Progress
from videonsa.errors import UsageError
from videonsa.evals.intervals import Interval, mean_over_videos
from videonsa.inference.context import Context, EncodedVision, split_at_video
from videonsa.models.methods import AttentionMethod
from videonsa.models.methods.dense import Dense
from videonsa.models.methods.nsa import NSA
from videonsa.models.recorder.sinks import READINGS, Received, SinkRecorder
from videonsa.video.chat import VisionSlot, chat_tokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA

BINS = 16
"""Of the positions of keys."""
_LABELS = {"mean": "alpha: mean probability", "largest": "alpha: largest, summed over a group"}


@dataclass(frozen=True, kw_only=True)
class SinkOptions:
    """What is looked at."""

    queries: int = 4096
    """Vision tokens of a video that are looked at as queries, at most: evenly spread."""
    twin: str = ""
    """Folder of a model trained densely, to compare with; empty: none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchSinks:
    """Sinks among the vision keys (or compressed keys) of one branch, by one reading of alpha."""

    arm: str
    """`nsa`, `dense` (the same weights run densely) or `twin`."""
    branch: str
    reading: str
    share: Interval
    """Of the keys of all layers and KV heads; the interval is over videos."""
    layers: tuple[float, ...]
    positions: tuple[float, ...]
    """Share of the keys of each sixteenth of the stream, first to last."""
    text_share: float | None
    """Of text keys; None where they are no keys of the branch."""
    without_room: float
    """Share of layers and KV heads where median - 2 IQR is 0 or less: there no key can be one."""


@dataclass(frozen=True, kw_only=True)
class Sinks(Finding):
    """Sinks of each branch, of the gated sum and of dense attention."""

    name = "sinks"
    options: ClassVar[type] = SinkOptions
    size: ClassVar[tuple[float, float]] = (9.2, 8.4)

    branches: tuple[BranchSinks, ...]

    @classmethod
    def measure(
        cls, qa: "VideoQA", asked: Asked, options: SinkOptions, *, progress: Progress
    ) -> "Sinks":
        """See `Finding`.

        Raises:
            UsageError: a model that attends neither densely nor by NSA.
        """
        measuring, own = Measuring(qa, asked, options), qa.model.method
        if not isinstance(own, NSA | Dense):
            raise UsageError(f"sinks with method {own.full_name!r}: want nsa or dense")
        ways: list[tuple[str, VideoQA, AttentionMethod]] = [("dense", qa, Dense())]
        if isinstance(own, NSA):
            ways.insert(0, ("nsa", qa, own))
        if options.twin:
            from videonsa.inference.engine import load

            twin = load(options.twin, device=str(qa.model.device))
            ways.append(("twin", twin, Dense()))
        videos, found = asked.videos(), []
        for place, video in enumerate(videos, start=1):
            progress(f"video {place} of {len(videos)}: {video.task}, {len(ways)} ways to attend")
            of_video: dict[tuple[str, str], list[Received]] = {}
            for arm, model, method in ways:
                vision = video.encode(model, method)
                stride = math.ceil(len(vision.features) / options.queries)
                if stride > 1:
                    measuring.note([f"one of {stride} vision tokens is looked at as a query"])
                text = video.questions[0].text  # comes after the video: nothing depends on it
                for layer in _received(model, vision, text, method, stride=stride):
                    for branch, received in layer.items():
                        of_video.setdefault((arm, branch), []).append(received)
            found.append(of_video)
        return cls(
            facts=measuring.facts(),
            branches=tuple(
                _branch(arm, branch, reading, [one[arm, branch] for one in found])
                for reading in READINGS
                for arm, branch in found[0]
            ),
        )

    def draw(self, figure: "Figure", look: "Look") -> None:
        """See `Finding`."""
        axes = figure.subplots(2, 2, squeeze=False)
        for row, reading in zip(axes, READINGS, strict=True):
            shown = [one for one in self.branches if one.reading == reading]
            for one, colour in zip(shown, look.series, strict=False):
                label = one.branch if one.arm == "nsa" else f"{one.arm} attention"
                row[0].plot([100 * x for x in one.layers], marker=".", color=colour, label=label)
                row[1].plot([100 * x for x in one.positions], marker=".", color=colour)
            row[0].locator_params(axis="x", integer=True)
            row[0].set(xlabel="layer", ylabel="percent of keys")
            row[1].set(xlabel=f"position of the key, {BINS} parts", ylabel="percent of keys")
            row[0].legend(fontsize=8.5)
            look.clean(row[0], title="Sinks by depth", remark=_LABELS[reading])
            look.clean(row[1], title="Sinks by position", remark=_LABELS[reading])

    def sentences(self) -> tuple[str, ...]:
        """See `Finding`."""
        told = [
            "alpha is read in two ways: the mean probability that a query which sees the key gives "
            "it, and the largest that any other token gives it, summed over the query heads of a "
            "KV head."
        ]
        for one in self.branches:
            name = one.branch if one.arm == "nsa" else f"{one.arm} attention"
            sentence = f"{name}, {one.reading}: {percent(one.share)} of the keys are sinks"
            if one.without_room > 0:
                sentence += (
                    f"; in {100 * one.without_room:.0f} % of layers and KV heads none can be, as "
                    "the norms spread too far"
                )
            told.append(f"{sentence}.")
        return tuple(told)


def _received(
    qa: "VideoQA", vision: EncodedVision, question: str, method: AttentionMethod, *, stride: int
) -> list[dict[str, Received]]:
    slot = VisionSlot(vision.kind, len(vision.features))
    ids = chat_tokens(question, tokenizer=qa.tokenizer, vision=[slot]).ids
    head, _ = split_at_video(ids, qa.model.config.vision_end_token_id)
    context, recorder = Context(qa.model, method=method), SinkRecorder(stride=stride)
    context.read(context.passage(head, [vision]), recorder=recorder)
    return recorder.received()


def _branch(
    arm: str, branch: str, reading: str, videos: Sequence[Sequence[Received]]
) -> BranchSinks:
    """Of several videos, each with its layers."""
    sums, counts, text = [], [], [0.0, 0]
    layers = [[0.0, 0.0] for _ in videos[0]]
    positions = [[0.0, 0.0] for _ in range(BINS)]
    rooms: list[bool] = []
    for video in videos:
        sums.append(0.0)
        counts.append(0.0)
        for layer, one in zip(layers, video, strict=True):
            sinks = one.sinks(reading)  # type: ignore[arg-type]
            own = sinks[:, one.is_vision].double()  # [H, M]
            other = sinks[:, ~one.is_vision]
            text = [text[0] + float(other.sum()), text[1] + other.numel()]
            sums[-1] += float(own.sum())
            counts[-1] += own.numel()
            layer[0] += float(own.sum())
            layer[1] += own.numel()
            for place, part in enumerate(own.tensor_split(BINS, dim=1)):
                positions[place][0] += float(part.sum())
                positions[place][1] += part.numel()
            rooms += (one.norm_limit() <= 0).flatten().tolist()
    return BranchSinks(
        arm=arm,
        branch=branch,
        reading=reading,
        share=mean_over_videos(sums, counts, bounds=(0.0, 1.0)),
        layers=tuple(a / max(b, 1) for a, b in layers),
        positions=tuple(a / max(b, 1) for a, b in positions),
        text_share=text[0] / text[1] if text[1] else None,
        without_room=sum(rooms) / len(rooms),
    )
