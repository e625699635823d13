"""`latency`: time of each branch against length, on a GPU by its kernels (paper Fig. 6)."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from videonsa.analysis.asked import Asked
from videonsa.analysis.finding import Finding, Measuring, Progress
from videonsa.bench.attention_inputs import Inputs, make_inputs
from videonsa.bench.attention_shapes import SHAPES, Shape
from videonsa.bench.measure import METHOD, Measurement, Outcome, Task, measure_in_turn, watch_of
from videonsa.bench.op_calls import attend_with_branches, backend_of, prepare_dense, spec_of
from videonsa.errors import UsageError
from videonsa.machine import measurement_facts
from videonsa.models.methods.nsa import NSA, ReleasedNSA
from videonsa.ops import nsa_attention
from videonsa.ops.spec import BRANCHES, NSASpec

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from videonsa.analysis.look import Look
    from videonsa.inference.engine import VideoQA

ON_A_CPU = "measured on a CPU by the reference, at small lengths: nothing is said of kernels"
TOGETHER, GIVEN, DENSE = "nsa", "selected, blocks given", "dense"
WAYS = (TOGETHER, *BRANCHES, GIVEN, DENSE)
"""All three branches, each alone, the selected one without choosing its blocks, and dense."""
_LENGTHS = tuple(1024 << place for place in range(8))
_SMALL_LENGTHS = (128, 256, 512, 1024)
_SECONDS = 2.0
"""A way that took so long at a length is not run more often, but three times."""


@dataclass(frozen=True, kw_only=True)
class LatencyOptions:
    """What is timed."""

    shape: Literal["model", "7b", "3b"] = "model"
    """Heads, blocks and window: the model's own, or those of a published size as in the paper."""
    lengths: tuple[int, ...] = ()
    """In vision tokens; empty: 1K to 128K on a GPU, 128 to 1K on a CPU."""
    repeats: int = 10
    frame_tokens: int = 16
    """Of a pair of frames, where these are the model's blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WayTime:
    """Of one way to attend at one length."""

    way: str
    """One of `WAYS`."""
    tokens: int
    ms: float | None
    """Median; None where it could not be run."""
    ms_min: float | None
    ms_max: float | None
    extra_gb: float | None
    """Memory beside inputs and output, at most; None on a CPU."""
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Latency(Finding):
    """Times of one attention layer, forward."""

    name = "latency"
    options: ClassVar[type] = LatencyOptions
    size: ClassVar[tuple[float, float]] = (8.6, 5.2)

    layer: dict[str, Any]
    """Heads, blocks, window and dtype."""
    hardware: dict[str, Any]
    """Device, its memory, driver and versions."""
    how: str
    """It was timed."""
    times: tuple[WayTime, ...]

    @classmethod
    def measure(
        cls, qa: "VideoQA", asked: Asked, options: LatencyOptions, *, progress: Progress
    ) -> "Latency":
        """See `Finding`; of the model only its shape is looked at.

        Raises:
            UsageError: lengths or repeats that cannot be.
        """
        measuring, device = Measuring(qa, asked, options), qa.model.device
        if min((*options.lengths, options.repeats, options.frame_tokens)) < 1:
            raise UsageError("--set lengths, repeats, frame_tokens: want numbers from 1 on")
        on_gpu = device.type == "cuda"
        if not on_gpu:
            progress(ON_A_CPU)
            measuring.note((ON_A_CPU,))
        shape = _shape(qa, options, measuring)
        measuring.note(("q, k and v are drawn: each token selects blocks of its own",))
        times: list[WayTime] = []
        for tokens in sorted(options.lengths or (_LENGTHS if on_gpu else _SMALL_LENGTHS)):
            progress(f"{tokens:,} tokens, {len(WAYS)} ways to attend")
            one = replace(shape, name=f"{tokens} tokens", tokens=tokens)
            times += _timed(one, device, repeats=options.repeats, progress=progress)
        layer = asdict(shape)
        return cls(
            facts=measuring.facts(),
            layer={key: layer[key] for key in layer if key not in ("name", "tokens")},
            hardware=measurement_facts(device),
            how=METHOD if on_gpu else "wall time of rounds in which each way runs once untimed",
            times=tuple(times),
        )

    def draw(self, figure: "Figure", look: "Look") -> None:
        """See `Finding`."""
        axes = figure.add_subplot()
        colours = look.branches | {
            TOGETHER: look.text,
            GIVEN: look.branches["selected"],
            DENSE: look.series[3],
        }
        for way in WAYS:
            known = [one for one in self.times if one.way == way and one.ms is not None]
            tokens, middle = [one.tokens for one in known], [one.ms or 0 for one in known]
            spread = [
                [one.ms - one.ms_min for one in known if one.ms and one.ms_min],
                [one.ms_max - one.ms for one in known if one.ms and one.ms_max],
            ]
            axes.errorbar(
                tokens,
                middle,
                yerr=spread,
                label=way,
                color=colours[way],
                marker="o",
                markersize=4,
                capsize=2,
                linestyle={GIVEN: "--", DENSE: ":"}.get(way, "-"),
                linewidth=2.2 if way == TOGETHER else 1.4,
            )
        ticks = sorted({one.tokens for one in self.times})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xticks(ticks, [_short(one) for one in ticks])
        axes.set_xlabel("vision tokens")
        axes.set_ylabel("milliseconds of a layer, forward")
        axes.legend(fontsize=8.5)
        look.clean(
            axes,
            title="Each branch alone, all three, and dense attention",
            remark=f"{self.hardware['device']}, {self._layer_text()}; medians, least and most",
        )

    def sentences(self) -> tuple[str, ...]:
        """See `Finding`."""
        told = [f"One attention layer, forward: {self._layer_text()}, {self.hardware['device']}."]
        for tokens in sorted({one.tokens for one in self.times}):
            at = {one.way: one for one in self.times if one.tokens == tokens}
            told.append(f"{tokens:,} tokens: {', '.join(map(_told, at.values()))}.")
        return (*told, *self._slowest())

    def _layer_text(self) -> str:
        one = self.layer
        size = one["frame_size"] if one["block_size"] == "frame" else one["block_size"]
        return (
            f"{one['query_heads']} query and {one['kv_heads']} KV heads of {one['head_dim']}, "
            f"blocks of {size}, n = {one['num_selected']}, w = {one['window']}, {one['dtype']}"
        )

    def _slowest(self) -> Iterator[str]:
        """At the longest length at which all branches were timed."""
        by = {(one.way, one.tokens): one for one in self.times if one.ms is not None}
        whole = [x for _, x in by if all((way, x) in by for way in BRANCHES)]
        if not whole:
            return
        longest = max(whole)
        alone = [by[branch, longest] for branch in BRANCHES]
        slow, second = sorted(alone, key=lambda one: -(one.ms or 0))[:2]
        apart = (slow.ms_min or 0) > (second.ms_max or 0)
        share = 100 * (slow.ms or 0) / sum(one.ms or 0 for one in alone)
        rival = "" if apart else f", but its runs overlap with those of the {second.way} branch"
        yield (
            f"At {longest:,} tokens the {slow.way} branch alone takes longest{rival}: "
            f"{share:.0f} % of the sum of the three."
        )
        dense, nsa = by.get((DENSE, longest)), by.get((TOGETHER, longest))
        if dense is not None and nsa is not None:
            ratio = (dense.ms or 0) / (nsa.ms or 1)
            yield f"Dense attention takes {ratio:.2f} times as long as all three together."


def _shape(qa: "VideoQA", options: LatencyOptions, measuring: Measuring) -> Shape:
    """The layer, with no length yet."""
    on_gpu = qa.model.device.type == "cuda"
    dtype = "bfloat16" if on_gpu else "float32"
    if options.shape != "model":
        return replace(SHAPES[f"{options.shape}-128k"], dtype=dtype)
    own, model = qa.model.method, qa.shape
    if isinstance(own, ReleasedNSA):
        measuring.note(("timed as in the paper, with n, s and w of the released preset",))
    spec = own.spec if isinstance(own, NSA) else NSASpec()
    if not isinstance(own, NSA):
        measuring.note(("the model has no NSA: n, s and w are those of the paper",))
    return Shape(
        name="model",
        tokens=0,
        query_heads=model.num_heads,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        block_size=spec.block_size,
        frame_size=options.frame_tokens if spec.block_size == "frame" else None,
        num_selected=spec.num_selected_blocks,
        window=spec.window_size,
        dtype=dtype,
    )


@torch.inference_mode()
def _timed(
    shape: Shape, device: torch.device, *, repeats: int, progress: Progress
) -> Iterator[WayTime]:
    failed = Measurement()
    try:
        inputs = make_inputs(shape, ("random",), device=device)["random"]
        tasks = {way: Task.of(call) for way, call in calls_of(inputs, shape).items()}
        found = measure_in_turn(
            tasks, watch=watch_of(device), repeats=repeats, seconds=_SECONDS, progress=progress
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        failed.fail(error)
        found = dict.fromkeys(WAYS, failed)
    for way, one in found.items():
        stated = one.to_dict()
        yield WayTime(
            way=way,
            tokens=shape.tokens,
            **{key: stated[key] for key in ("ms", "ms_min", "ms_max", "extra_gb", "error")},
        )


def calls_of(inputs: Inputs, shape: Shape) -> dict[str, Callable[[], Outcome]]:
    """What is timed of each way; the blocks that `GIVEN` reads are chosen here."""
    backend = backend_of(inputs.q.device)
    spec = spec_of(shape, "token")
    chosen = attend_with_branches(inputs, shape, scope="token", backend=backend).selected_blocks
    on_gpu = inputs.q.device.type == "cuda"
    dense = prepare_dense(inputs, shape, backend="cudnn" if on_gpu else "flash")

    def attend(branches: tuple[str, ...], blocks: Tensor | None = None) -> Outcome:
        output = nsa_attention(
            *inputs,
            spec=spec.with_options(branches=branches),
            frame_sizes=shape.frame_sizes,
            selected_blocks=blocks,
            backend=backend,
        )
        assert isinstance(output, Tensor), "no branches were asked for"
        return (output,)

    return {
        TOGETHER: lambda: attend(BRANCHES),
        "compressed": lambda: attend(("compressed",)),
        "selected": lambda: attend(("selected",)),
        "window": lambda: attend(("window",)),
        GIVEN: lambda: attend(("selected",), chosen),
        DENSE: lambda: (dense.forward(),),
    }


def _told(one: WayTime) -> str:
    if one.ms is None:
        return f"{one.way} {one.error}"
    return f"{one.way} {one.ms:.3g} ms ({one.ms_min:.3g} to {one.ms_max:.3g})"


def _short(tokens: int) -> str:
    return f"{tokens // 1024}K" if tokens % 1024 == 0 else str(tokens)
