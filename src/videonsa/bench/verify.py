"""Right before fast: every op of this package against the float64 reference, at small lengths.

The output and each branch may be off by at most twice what plain PyTorch is off in the same dtype,
plus the rounding of the result, and so may the gradients where passes that take some are measured.
The selection may differ from the reference's at near ties only.
"""

import importlib.util
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import videonsa
from videonsa.bench.attention_inputs import REGIMES, Inputs, Regime, make_grad_output, make_inputs
from videonsa.bench.attention_shapes import Shape
from videonsa.bench.op_calls import Scope, attend, attend_with_branches, backend_of
from videonsa.bench.op_registry import Op
from videonsa.bench.plain_nsa import PlainResult, importances, plain_nsa
from videonsa.errors import VideoNSAError
from videonsa.ops import NSAResult, masks

LENGTHS = (1000, 2048)
"""Tokens; an odd one among them. A third length is twice what a row selects."""
ERROR_FACTOR = 2.0
NEAR_TIE = 1e-5
"""Relative gap of two importances that any implementation may order either way."""
TESTS = "tests/ops/triton"
MOST_TEST_PROCESSES = 10
"""Most of the tests' time goes into compiling, on the CPUs."""
LARGEST_TEST, LARGE_TEST = 44 * 2**30, 8 * 2**30
"""Bytes of the GPU: what one test takes, and what any number of others may."""
_NO_TESTS_COLLECTED = 5


class KernelTests(NamedTuple):
    """What came of the kernels' tests."""

    said: str
    date: str


class Difference(NamedTuple):
    """How a selection differs from the reference's, over rows and KV heads."""

    differing: int
    beyond_near_ties: int
    widest_gap: float
    """Of the importances, relative; inf for a block that cannot be selected, or one too few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """An op at one length and regime. The errors are the largest over output and branches."""

    op: str
    shape: str
    regime: Regime
    tokens: int
    selections: int
    """Rows times KV heads."""
    differing: int
    beyond_near_ties: int
    widest_gap: float
    worst_error: float
    """Error over what is allowed, the largest of all fields, as maximum and root mean square."""
    worst_gradient_error: float | None
    """Likewise of the gradients of q, k, v and gates; None if they were not checked."""
    failure: str | None


def verify(
    ops: Sequence[Op],
    shapes: Sequence[Shape],
    *,
    gradients: bool,
    device: torch.device,
    progress: Callable[[str], None],
    tests: KernelTests | None = None,
) -> dict[str, Any]:
    """Check the ops of this package on the options of the shapes; run the kernels' tests.

    Args:
        ops: those that will be measured; competitors are not checked.
        shapes: likewise; their length does not matter.
        gradients: check those too.
        device: where they will be measured.
        progress: told one line for each check.
        tests: of an earlier run of the same code on the same machine; None runs them.

    Returns:
        For JSON: how many checks, the worst of them, how many selections differ, what the tests
        said, and on which day.

    Raises:
        VideoNSAError: a check failed; its line is in the message.
    """
    own = [op for op in ops if op.scope is not None]
    checks = []
    for check in _checks(own, shapes, device, gradients=gradients):
        name = f"verify {check.op}, {check.shape} at {check.tokens} tokens, {check.regime}"
        if check.failure:
            raise VideoNSAError(f"{name}: {check.failure}: nothing was measured")
        progress(
            f"{name}: error {check.worst_error:.2f} of what is allowed"
            + (f", of gradients {check.worst_gradient_error:.2f}; " if gradients else "; ")
            + f"{check.differing} of {check.selections} selections differ, "
            f"{check.beyond_near_ties} beyond near ties"
        )
        checks.append(check)
    if tests is not None:
        progress(f"verify: {tests.said} ({tests.date}, same code and machine: not run again)")
    elif own and device.type == "cuda":
        tests = KernelTests(_run_tests(), datetime.now(UTC).date().isoformat())
        progress(f"verify: {tests.said}")
    return {
        "checks": len(checks),
        "worst_error": max((check.worst_error for check in checks), default=None),
        "worst_gradient_error": max(
            (x for check in checks if (x := check.worst_gradient_error) is not None), default=None
        ),
        "selections": sum(check.selections for check in checks),
        "differing": sum(check.differing for check in checks),
        "beyond_near_ties": sum(check.beyond_near_ties for check in checks),
        "widest_gap": max((check.widest_gap for check in checks), default=None),
        "tests": tests.said if tests else None,
        "tests_date": tests.date if tests else None,
    }


def passed_before(verified: Mapping[str, Any], *, date: str) -> KernelTests | None:
    """The kernels' tests of an earlier verification, where they ran.

    Args:
        verified: what `verify` gave.
        date: of the result that it stands in: older ones have none of their own.
    """
    said = verified["tests"]
    if said is None or not said.startswith(f"{TESTS}: "):
        return None
    return KernelTests(said, verified.get("tests_date") or date)


def _checks(
    ops: Sequence[Op], shapes: Sequence[Shape], device: torch.device, *, gradients: bool
) -> Iterator[Check]:
    """Every op on every distinct set of options, at every length, in both regimes."""
    distinct: dict[Shape, Shape] = {}
    for shape in shapes:
        distinct.setdefault(replace(shape, name="", tokens=0), shape)
    for shape in distinct.values():
        for op in ops:
            assert op.scope is not None, "only ops of this package are checked"
            for tokens in _lengths(shape, op.scope):
                small = replace(shape, tokens=tokens)
                for regime, inputs in make_inputs(small, REGIMES, device=device).items():
                    yield check_op(op.name, op.scope, small, regime, inputs, gradients=gradients)


def _lengths(shape: Shape, scope: Scope) -> list[int]:
    """With a selection for each block the rows must end with a block."""
    size = shape.block_tokens
    lengths = {*LENGTHS, 2 * shape.num_selected * size}
    return sorted({tokens // size * size if scope == "block" else tokens for tokens in lengths})


def check_op(
    name: str, scope: Scope, shape: Shape, regime: Regime, inputs: Inputs, *, gradients: bool
) -> Check:
    """One op on one set of inputs.

    Args:
        name: of the op.
        scope: its selection scope.
        shape: small: the scores of all rows of a KV head are held at once.
        regime: of the inputs.
        inputs: of the shape.
        gradients: check them too.
    """
    backend = backend_of(inputs.q.device)

    def check(
        failure: str | None,
        difference: Difference,
        worst_error: float,
        worst_gradient_error: float | None = None,
    ) -> Check:
        return Check(
            op=name,
            shape=shape.name,
            regime=regime,
            tokens=shape.tokens,
            selections=shape.tokens * shape.kv_heads,
            **difference._asdict(),
            worst_error=worst_error,
            worst_gradient_error=worst_gradient_error,
            failure=failure,
        )

    with torch.no_grad():
        try:
            found = attend_with_branches(inputs, shape, scope=scope, backend=backend)
            timed = [attend(inputs, shape, scope=scope, backend=backend) for _ in range(2)]
        except Exception as error:  # a kernel may raise anything; all of it is a failed check
            return check(_one_line(error), Difference(0, 0, 0.0), math.inf)
        errors = _errors(found, timed[0], inputs, shape, scope)
        difference, allowed = _selection(found.selected_blocks, inputs, shape, scope)
    failure = _failure(errors, difference, allowed)
    if failure is None and not torch.equal(*timed):
        failure = "two runs on the same inputs give different bits"
    worst = max(errors.values())
    if failure is not None or not gradients:
        return check(failure, difference, worst)
    failure, worst_gradient = _check_gradients(found.selected_blocks, inputs, shape, scope)
    return check(failure, difference, worst, worst_gradient)


def _errors(
    found: NSAResult, timed: Tensor, inputs: Inputs, shape: Shape, scope: Scope
) -> dict[str, float]:
    """Error over what is allowed of the output, each branch, and the output of the timed call."""
    exact = attend_with_branches(
        Inputs(*(x.double() for x in inputs)),
        shape,
        scope=scope,
        backend="reference",
        selected_blocks=found.selected_blocks,
    )
    plain = plain_nsa(inputs, shape, found.selected_blocks)
    errors = {
        name: error_over_allowed(getattr(found, name), getattr(plain, name), getattr(exact, name))
        for name in PlainResult._fields
    }
    errors["output without branches"] = error_over_allowed(timed, plain.output, exact.output)
    return errors


def _check_gradients(
    selected_blocks: Tensor, inputs: Inputs, shape: Shape, scope: Scope
) -> tuple[str | None, float]:
    """What is wrong with the gradients of the timed call, if anything, and the worst error.

    The op selects its blocks itself; these are given to the reference and to plain PyTorch.
    """
    grad_output = make_grad_output(inputs.q.shape, like=inputs.q)
    backend = backend_of(inputs.q.device)

    def timed(inputs: Inputs) -> Tensor:
        return attend(inputs, shape, scope=scope, backend=backend)

    def plain(inputs: Inputs) -> Tensor:
        return plain_nsa(inputs, shape, selected_blocks).output

    def reference(inputs: Inputs) -> Tensor:
        return attend_with_branches(
            inputs, shape, scope=scope, backend="reference", selected_blocks=selected_blocks
        ).output

    try:
        found, again = (_gradients(timed, inputs, grad_output) for _ in range(2))
    except Exception as error:  # a kernel may raise anything here too
        return _one_line(error), math.inf
    by_plain = _gradients(plain, inputs, grad_output)
    exact = _gradients(reference, Inputs(*(x.double() for x in inputs)), grad_output.double())
    errors = {
        f"the gradient of {name}": error_over_allowed(*of_input)
        for name, *of_input in zip(Inputs._fields, found, by_plain, exact, strict=True)
    }
    failure = _too_large(errors)
    if failure is None and not all(map(torch.equal, found, again)):
        failure = "two backward passes on the same inputs give different bits"
    return failure, max(errors.values())


def _gradients(
    attend: Callable[[Inputs], Tensor], inputs: Inputs, grad_output: Tensor
) -> tuple[Tensor, ...]:
    """Of each input, for the output of `attend`."""
    leaves = Inputs(*(x.detach().requires_grad_() for x in inputs))
    with torch.enable_grad():
        return torch.autograd.grad(attend(leaves), leaves, grad_output)


def error_over_allowed(found: Tensor, plain: Tensor, exact: Tensor) -> float:
    """The error of `found` over twice that of `plain` plus rounding; at most 1 is right.

    The larger of two: the largest error of any element, and the root mean square. Not a number
    anywhere gives inf.
    """
    unit = torch.finfo(found.dtype).eps / 2
    worst = 0.0
    for size in (_largest, _root_mean_square):
        rounding = unit * size(exact)
        allowed = ERROR_FACTOR * size(plain.double() - exact) + rounding
        error = size(found.double() - exact)
        ratio = error / allowed if allowed else math.inf * error if error else 0.0
        worst = max(worst, math.inf if math.isnan(ratio) else ratio)
    return worst


def _largest(x: Tensor) -> float:
    return float(x.abs().max())


def _root_mean_square(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def _selection(
    selected: Tensor, inputs: Inputs, shape: Shape, scope: Scope
) -> tuple[Difference, Difference]:
    """How the selection of the op differs from the reference's, and how plain PyTorch's does."""
    wanted = attend_with_branches(inputs, shape, scope=scope, backend="reference").selected_blocks
    exact = importances(inputs, shape, scope=scope, dtype=torch.float64)
    rounded = importances(inputs, shape, scope=scope, dtype=inputs.q.dtype)
    candidates = rounded > -torch.inf
    plain = masks.top_blocks(rounded, candidates, rounded == torch.inf, shape.num_selected)
    return compare_selections(selected, wanted, exact), compare_selections(plain, wanted, exact)


def compare_selections(found: Tensor, wanted: Tensor, importance: Tensor) -> Difference:
    """Where two selections differ, and by how much the importances allow it.

    Args:
        found: `[..., n]` int block indices, negative for none.
        wanted: likewise.
        importance: `[..., C]`, inf for forced blocks and -inf for those that cannot be selected.
    """
    num_blocks = importance.shape[-1]
    member, right = (masks.membership(blocks, num_blocks) for blocks in (found, wanted))
    missed = importance.masked_fill(~(right & ~member), -torch.inf).amax(dim=-1)
    extra = importance.masked_fill(~(member & ~right), torch.inf).amin(dim=-1)
    gap = ((missed - extra) / missed).nan_to_num(nan=math.inf).clamp(min=0)
    # Without a partner of finite importance a block is missing, or one that cannot be selected.
    unpaired = ~(missed.isfinite() & extra.isfinite())
    gap = gap.masked_fill(unpaired, math.inf).masked_fill(missed == extra, 0)
    differs = (member != right).any(dim=-1)
    gap = gap.masked_fill(~differs, 0)
    return Difference(
        differing=int(differs.sum()),
        beyond_near_ties=int((gap > NEAR_TIE).sum()),
        widest_gap=float(gap.max()),
    )


def _failure(errors: dict[str, float], found: Difference, plain: Difference) -> str | None:
    """The line of what is wrong, if anything."""
    failure = _too_large(errors)
    if failure is not None:
        return failure
    too_many = found.beyond_near_ties > plain.beyond_near_ties
    if too_many or found.widest_gap > max(NEAR_TIE, plain.widest_gap):
        return (
            f"{found.differing} selections differ from the reference's, {found.beyond_near_ties} "
            f"beyond near ties, by a gap of up to {found.widest_gap:.2g}; plain PyTorch in the "
            f"same dtype: {plain.beyond_near_ties}, up to {plain.widest_gap:.2g}"
        )
    return None


def _too_large(errors: dict[str, float]) -> str | None:
    name = max(errors, key=lambda name: errors[name])
    if errors[name] <= 1:
        return None
    return (
        f"the error of {name} is {errors[name]:.3g} times what is allowed: twice that of plain "
        "PyTorch in the same dtype, plus rounding"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _run_tests() -> str:
    """Run the tests of the kernels where this is a checkout; what came of it in one line.

    Raises:
        VideoNSAError: a test failed.
    """
    root = Path(videonsa.__file__).parents[2]
    if not (root / TESTS).is_dir():
        return f"{TESTS} not run: not a checkout"
    if importlib.util.find_spec("pytest") is None:
        return f"{TESTS} not run: pytest is not installed"
    command = [sys.executable, "-m", "pytest", TESTS, "-m", "gpu", "-vv", "-p", "no:cacheprovider"]
    processes = _test_processes()
    if processes > 1 and importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(processes), "-p", "no:benchmark"]  # which warns beside xdist
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode == _NO_TESTS_COLLECTED:
        return f"{TESTS} not run: no GPU test there"
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines() or ["no output"]
    summary = lines[-1].strip("= ")
    if done.returncode:
        failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
        raise VideoNSAError(
            f"verify {TESTS}: {(failed or lines)[0]} ({summary}): nothing was measured"
        )
    return f"{TESTS}: {summary}"


def _test_processes() -> int:
    """As many as the GPU's free memory is enough for; what this process holds unused is freed."""
    if not torch.cuda.is_available():
        return 1
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    return min(MOST_TEST_PROCESSES, 1 + max(0, free - LARGEST_TEST) // LARGE_TEST)
