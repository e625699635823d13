"""The whole benchmark of attention: verify, then shape by shape every op, pass and regime."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from videonsa.bench.attention_inputs import Inputs, Regime, make_inputs
from videonsa.bench.attention_shapes import Shape
from videonsa.bench.comparable import comparable
from videonsa.bench.measure import METHOD, Measurement, measure_in_turn, one_line, watch_of
from videonsa.bench.op_calls import Prepared, attend_with_branches, backend_of
from videonsa.bench.op_registry import BASELINE, Op, hindrance
from videonsa.bench.passes import Pass, make_tasks
from videonsa.bench.verify import KernelTests, passed_before, verify
from videonsa.machine import measurement_facts
from videonsa.models.recorder.unions import mean_union

FORMAT = "videonsa attention benchmark 1"
ANY = "any"
"""The regime of an op whose time depends on none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What to measure."""

    shapes: tuple[Shape, ...]
    ops: tuple[Op, ...]
    passes: tuple[Pass, ...]
    regimes: tuple[Regime, ...]
    repeats: int
    tests_again: bool = False
    """The kernels' tests run even where they passed before on the same code and machine."""
    device: torch.device


@dataclass(kw_only=True, slots=True)
class _Run:
    """One op in one regime, in all passes."""

    op: Op
    regime: str
    found: Measurement = field(default_factory=Measurement)
    """Why it cannot be run, if so; else without a number."""
    prepared: Prepared | None = None
    union: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the op and its regime."""
        return self.op.name if self.regime == ANY else f"{self.op.name}, {self.regime}"

    def to_dict(self, found: Measurement, dense_ms: float | None) -> dict[str, Any]:
        """A pass of it for JSON; `ratio` is the time over that of the baseline."""
        measured = found.to_dict()
        known = dense_ms is not None and measured["ms"] is not None
        return {
            "op": self.op.name,
            "regime": self.regime,
            **measured,
            "ratio": measured["ms"] / dense_ms if known else None,
            "mean_union": self.union,
            "notes": self.notes,
        }


def bench_attention(
    request: Request,
    *,
    progress: Callable[[str], None],
    before: Mapping[Pass, dict[str, Any]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Verify, then measure; gives the result so far of a pass after every shape and pass.

    Args:
        request: what to measure.
        progress: told a line now and then.
        before: earlier results, of other passes too. If they are of the same machine and code,
            their other shapes are kept, and the kernels' tests are not run again.

    Raises:
        VideoNSAError: verification failed; nothing was given.
    """
    where = measurement_facts(request.device)
    same = {x: y for x, y in (before or {}).items() if comparable(y["machine"], where)}
    kept: dict[Pass, dict[str, dict[str, Any]]] = {}
    for which in request.passes:
        entries = same[which]["shapes"] if which in same else []
        kept[which] = {entry["shape"]["name"]: entry for entry in entries}
        if which in (before or {}) and which not in same:
            progress(f"the earlier {which} result is of another machine or code: it is replaced")
    verified = verify(
        request.ops,
        request.shapes,
        gradients=request.passes != ("forward",),
        device=request.device,
        progress=progress,
        tests=None if request.tests_again else _tests_before(same.values()),
    )
    # The shortest first. flash-linear-attention runs each of its kernels in dozens of
    # configurations at the first shape it meets; the length is no part of its keys but for one
    # kernel of the backward pass, whose key changes at 8K and 32K.
    for shape in sorted(request.shapes, key=lambda shape: shape.tokens):
        progress(f"{shape.name}: {shape.text}")
        for which, runs in measure_shape(request, shape, progress=progress):
            kept[which][shape.name] = {
                "shape": asdict(shape),
                "date": where["date"],
                "verification": verified,
                "runs": runs,
            }
            yield {
                "format": FORMAT,
                "pass": which,
                "machine": where,
                "method": METHOD,
                "baseline": BASELINE,
                "shapes": list(kept[which].values()),
            }


def _tests_before(results: Iterable[dict[str, Any]]) -> KernelTests | None:
    """The kernels' tests when the same code was measured here before."""
    for entry in (entry for result in results for entry in result["shapes"]):
        passed = passed_before(entry["verification"], date=entry["date"])
        if passed is not None:
            return passed
    return None


def measure_shape(
    request: Request, shape: Shape, *, progress: Callable[[str], None]
) -> Iterator[tuple[Pass, list[dict[str, Any]]]]:
    """All ops of one shape side by side, pass by pass; for JSON, one for each op and regime.

    An op that does not fit, is not installed or breaks has its reason in place of numbers.
    """
    runs = [
        _Run(op=op, regime=regime)
        for op in request.ops
        for regime in (request.regimes if op.sparse else (ANY,))
    ]
    try:
        inputs = make_inputs(shape, request.regimes, device=request.device)
    except torch.OutOfMemoryError as error:
        for run in runs:
            run.found.fail(error)
    else:
        for run in runs:
            regime = next((name for name in inputs if name == run.regime), request.regimes[0])
            _make_ready(run, inputs[regime], shape)
    for which in request.passes:
        found = _measure(
            request, runs, which, progress=lambda line: progress(f"{shape.name}: {line}")
        )
        for run in runs:
            progress(f"{shape.name} {which}: {run.name}: {_line(found[run.name])}")
        times = {run.op.name: found[run.name].to_dict()["ms"] for run in runs}
        yield which, [run.to_dict(found[run.name], times.get(BASELINE)) for run in runs]


def _measure(
    request: Request, runs: Sequence[_Run], which: Pass, *, progress: Callable[[str], None]
) -> dict[str, Measurement]:
    """What came of each run in one pass."""
    found = {run.name: run.found for run in runs}
    ready = {run.name: run.prepared for run in runs if run.prepared is not None}
    with torch.set_grad_enabled(which != "forward"):
        try:
            tasks = make_tasks(ready, which)
        except torch.OutOfMemoryError as error:
            for name in ready:
                found[name] = Measurement()
                found[name].fail(error)
            return found
        return found | measure_in_turn(
            tasks, watch=watch_of(request.device), repeats=request.repeats, progress=progress
        )


def _make_ready(run: _Run, inputs: Inputs, shape: Shape) -> None:
    """What is not timed: the op's own preparation, and the union of an op of this package."""
    hindered = hindrance(run.op, inputs.q.device)
    if hindered is not None:
        run.found.status, run.found.error = hindered
        return
    try:
        with torch.no_grad():
            run.prepared = run.op.prepare(inputs, shape)
    except Exception as error:  # whatever an op raises, others follow
        run.found.fail(error)
        return
    run.notes = list(run.prepared.notes)
    if run.op.scope is None:
        return
    try:
        with torch.no_grad():
            result = attend_with_branches(
                inputs, shape, scope=run.op.scope, backend=backend_of(inputs.q.device)
            )
        run.union = mean_union(result.selected_blocks)
    except Exception as error:  # a number beside the time; the time is measured without it
        run.notes.append(f"no mean union: {one_line(error)}")


def _line(found: Measurement) -> str:
    result = found.to_dict()
    if found.error is not None:
        return f"{found.status}: {found.error}"
    return f"{result['ms']:.3f} ms ({result['ms_min']:.3f}-{result['ms_max']:.3f})"
