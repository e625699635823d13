"""What verification lets pass, and what it does not."""

import subprocess
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from videonsa.bench import verify as verify_module
from videonsa.bench.attention_inputs import make_inputs
from videonsa.bench.attention_shapes import SHAPES
from videonsa.bench.op_registry import OPS
from videonsa.bench.verify import check_op, compare_selections, error_over_allowed, verify
from videonsa.errors import VideoNSAError

CPU = torch.device("cpu")
SHAPE = replace(SHAPES["tiny-256"], tokens=200)
INPUTS = make_inputs(SHAPE, ["random"], device=CPU)["random"]


def check(scope="token", shape=SHAPE, inputs=INPUTS, gradients=False):
    return check_op("videonsa", scope, shape, "random", inputs, gradients=gradients)


def test_the_reference_in_bfloat16_passes_and_selects_the_same_blocks():
    found = check()
    assert found.failure is None
    assert 0 < found.worst_error < 1
    assert found.selections == 400
    assert (found.differing, found.beyond_near_ties, found.widest_gap) == (0, 0, 0.0)
    assert found.worst_gradient_error is None


@pytest.mark.parametrize("scope", ["token", "block"])
def test_the_gradients_of_the_reference_in_bfloat16_pass(scope):
    shape = replace(SHAPE, tokens=192)  # whole blocks
    inputs = make_inputs(shape, ["coherent"], device=CPU)["coherent"]
    found = check(scope, shape, inputs, gradients=True)
    assert found.failure is None
    assert 0 < found.worst_gradient_error < 1
    assert not any(x.requires_grad for x in inputs), "the caller's tensors are left alone"


class _Changed(torch.autograd.Function):
    """Its input; the gradient is what `change` makes of it."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return ctx.change(grad), None


def change_gradient(monkeypatch, name, change):
    """The timed call with one gradient changed; its output stays right."""
    real = verify_module.attend

    def attend(inputs, *args, **options):
        changed = _Changed.apply(getattr(inputs, name), change)
        return real(inputs._replace(**{name: changed}), *args, **options)

    monkeypatch.setattr(verify_module, "attend", attend)


@pytest.mark.parametrize("name", ["q", "k", "v", "gates"])
@pytest.mark.parametrize("factor", [1.03, torch.nan])
def test_a_gradient_that_is_off_fails(monkeypatch, name, factor):
    change_gradient(monkeypatch, name, lambda grad: grad * factor)
    found = check(gradients=True)
    assert f"the error of the gradient of {name} is" in found.failure
    assert found.worst_gradient_error > 1
    assert found.worst_error < 1
    assert check().failure is None, "only where gradients are measured"


def test_two_backward_passes_that_differ_fail(monkeypatch):
    calls = []

    def unsteady(grad):
        calls.append(None)
        grad = grad.clone()
        grad[0, 0, 0, 0] *= 1 + 2**-6 * len(calls)
        return grad

    change_gradient(monkeypatch, "v", unsteady)
    failure = check(gradients=True).failure
    assert failure == "two backward passes on the same inputs give different bits"


def test_an_op_without_a_backward_pass_fails_with_its_line(monkeypatch):
    real = verify_module.attend
    monkeypatch.setattr(verify_module, "attend", lambda *a, **o: real(*a, **o).detach())
    assert "does not require grad" in check(gradients=True).failure


def changed(monkeypatch, change):
    """The op's result with branches, changed; the reference's calls stay as they are."""
    real = verify_module.attend_with_branches
    calls = []

    def broken(*args, **options):
        calls.append(None)
        result = real(*args, **options)
        return change(result) if len(calls) == 1 else result

    monkeypatch.setattr(verify_module, "attend_with_branches", broken)


@pytest.mark.parametrize("field", ["output", "o_cmp", "o_slc", "o_win"])
def test_one_wrong_element_of_any_branch_fails(monkeypatch, field):
    def change(result):
        values = getattr(result, field).clone()
        values[0, 100, 3, 7] += 0.2
        return result._replace(**{field: values})

    changed(monkeypatch, change)
    assert f"the error of {field} is" in check().failure


def test_a_small_error_everywhere_fails(monkeypatch):
    changed(monkeypatch, lambda result: result._replace(o_slc=result.o_slc * 1.02))
    assert "the error of o_slc" in check().failure


def test_not_a_number_fails(monkeypatch):
    changed(monkeypatch, lambda result: result._replace(o_win=result.o_win * torch.nan))
    assert "the error of o_win is inf" in check().failure


def test_a_wrong_selection_fails_even_if_it_is_attended_rightly(monkeypatch):
    real = verify_module.attend_with_branches

    def shifted(inputs, shape, *, scope, backend, selected_blocks=None):
        first = shifted.calls == 0
        shifted.calls += 1
        result = real(inputs, shape, scope=scope, backend=backend, selected_blocks=selected_blocks)
        if not first:
            return result
        wrong = result.selected_blocks.clone()
        wrong[0, 150, 0] = torch.tensor([0, 1, 2, 9])
        return real(inputs, shape, scope=scope, backend=backend, selected_blocks=wrong)

    shifted.calls = 0
    monkeypatch.setattr(verify_module, "attend_with_branches", shifted)
    timed = shifted(INPUTS, SHAPE, scope="token", backend="reference").output
    shifted.calls = 0
    monkeypatch.setattr(verify_module, "attend", lambda *_, **__: timed)
    found = check()
    assert found.differing == 1
    assert "1 selections differ from the reference's" in found.failure


def test_the_timed_call_is_checked_too(monkeypatch):
    real = verify_module.attend
    monkeypatch.setattr(verify_module, "attend", lambda *a, **o: real(*a, **o) + 0.5)
    assert "the error of output without branches" in check().failure


def test_two_runs_that_differ_fail(monkeypatch):
    real, calls = verify_module.attend, []

    def unsteady(*args, **options):
        calls.append(None)
        output = real(*args, **options)
        output[0, 0, 0, 0] *= 1 + 2**-6 * len(calls)
        return output

    monkeypatch.setattr(verify_module, "attend", unsteady)
    assert check().failure == "two runs on the same inputs give different bits"


def test_an_op_that_raises_fails_with_its_line(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(verify_module, "attend_with_branches", broken)
    assert check().failure == "no kernel"


def test_the_error_of_plain_is_allowed_twice_and_rounding_once():
    exact = torch.ones(1000, dtype=torch.float64)
    plain = torch.full((1000,), 1.5)
    assert error_over_allowed(torch.full((1000,), 1.9), plain, exact) == pytest.approx(0.9, 1e-4)
    assert error_over_allowed(torch.full((1000,), 2.1), plain, exact) == pytest.approx(1.1, 1e-4)
    rounded = torch.full((1000,), 1 + 2**-7, dtype=torch.bfloat16)
    assert error_over_allowed(rounded, exact.bfloat16(), exact) == pytest.approx(2.0)


def test_no_error_is_right_where_none_is_allowed():
    nothing = torch.zeros(3)
    assert error_over_allowed(nothing, nothing, nothing.double()) == 0
    assert error_over_allowed(nothing + 1, nothing, nothing.double()) == float("inf")


IMPORTANCE = torch.tensor([0.5, 0.2, 0.2 * (1 - 5e-6), 0.1, float("inf"), float("-inf")])


@pytest.mark.parametrize(
    ("found", "beyond", "gap"),
    [
        ([0, 2, 4], 0, 5e-6),
        ([0, 3, 4], 1, 0.5),
        ([2, 3, 4], 1, 0.8),
        ([0, 1, 2], 1, float("inf")),
        ([0, 4, 5], 1, float("inf")),
        ([0, 4, -1], 1, float("inf")),
    ],
    ids=[
        "near tie",
        "lower block",
        "widest of two",
        "without the forced block",
        "a block that cannot be",
        "too few",
    ],
)
def test_a_differing_selection_is_judged_by_its_gap(found, beyond, gap):
    wanted = torch.tensor([[0, 1, 4]])
    result = compare_selections(torch.tensor([found]), wanted, IMPORTANCE[None])
    assert result.differing == 1
    assert result.beyond_near_ties == beyond
    assert result.widest_gap == pytest.approx(gap, rel=0.05)


def test_the_order_of_a_selection_does_not_matter():
    wanted = torch.tensor([[0, 1, 4]])
    result = compare_selections(torch.tensor([[4, 0, 1]]), wanted, IMPORTANCE[None])
    assert result == (0, 0, 0.0)


def test_blocks_of_equal_importance_that_differ_have_no_gap():
    importance = torch.tensor([[0.0, 0.0, float("inf")]])
    result = compare_selections(torch.tensor([[1, 2]]), torch.tensor([[0, 2]]), importance)
    assert result == (1, 0, 0.0)


def run_verify(monkeypatch, *, ops, lengths=(40,), shapes=("tiny-256",), gradients=False):
    monkeypatch.setattr(verify_module, "LENGTHS", lengths)
    lines = []
    chosen = [SHAPES[name] for name in shapes]
    result = verify(
        [OPS[name] for name in ops],
        chosen,
        gradients=gradients,
        device=CPU,
        progress=lines.append,
    )
    return result, lines


def test_every_op_of_this_package_is_checked_in_both_regimes_at_every_length(monkeypatch):
    result, lines = run_verify(monkeypatch, ops=["videonsa", "videonsa-block", "sdpa-flash"])
    # 40 tokens and twice what a row selects, 128; with a selection a block 32 instead of 40.
    assert result["checks"] == len(lines) == 8
    assert result["differing"] == 0
    assert 0 < result["worst_error"] < 1
    assert [sum(f"at {n} tokens" in line for line in lines) for n in (32, 40, 128)] == [2, 2, 4]
    assert result["tests"] is None, "kernels have no part in a run on a CPU"
    assert result["worst_gradient_error"] is None


def test_the_worst_gradient_error_of_all_checks_is_given(monkeypatch):
    result, lines = run_verify(monkeypatch, ops=["videonsa"], gradients=True)
    worst = result["worst_gradient_error"]
    assert 0 < worst < 1
    assert all(", of gradients 0." in line for line in lines)
    assert any(f", of gradients {worst:.2f};" in line for line in lines)


def test_shapes_that_differ_in_length_alone_are_checked_once(monkeypatch):
    result, _ = run_verify(monkeypatch, ops=["videonsa"], shapes=("tiny-256", "tiny-1k"))
    assert result["checks"] == 4


def test_peers_are_not_checked(monkeypatch):
    result, lines = run_verify(monkeypatch, ops=["sdpa-flash", "fla-nsa"])
    assert result["checks"] == 0
    assert lines == []


def test_a_failed_check_ends_verification_with_its_line(monkeypatch):
    changed(monkeypatch, lambda result: result._replace(o_win=result.o_win * 2))
    with pytest.raises(VideoNSAError, match=r"verify videonsa, tiny-256 at 40 tokens.*o_win.*noth"):
        run_verify(monkeypatch, ops=["videonsa"])


@pytest.mark.parametrize(
    ("code", "output", "line"),
    [
        (0, "...\n3 passed in 1s", "tests/ops/triton: 3 passed in 1s"),
        (5, "no tests ran", "tests/ops/triton not run: no GPU test there"),
    ],
)
def test_what_the_kernel_tests_say_is_kept(monkeypatch, code, output, line):
    def done(*_, **__):
        return SimpleNamespace(returncode=code, stdout=output, stderr="")

    monkeypatch.setattr(subprocess, "run", done)
    assert verify_module._run_tests() == line


@pytest.mark.parametrize(("free_gib", "processes"), [(139, 10), (78, 5), (45, 1), (20, 1)], ids=str)
def test_kernel_tests_take_as_many_processes_as_the_memory_holds(monkeypatch, free_gib, processes):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free_gib * 2**30, 0))
    assert verify_module._test_processes() == processes


def test_a_failed_kernel_test_ends_verification_with_its_name(monkeypatch):
    def done(*_, **__):
        text = "F.\nFAILED tests/ops/triton/x.py::test_a - assert 1\n1 failed, 1 passed in 2s"
        return SimpleNamespace(returncode=1, stdout=text, stderr="")

    monkeypatch.setattr(subprocess, "run", done)
    with pytest.raises(VideoNSAError, match=r"FAILED .*test_a - assert 1 \(1 failed, 1 passed"):
        verify_module._run_tests()


def test_outside_a_checkout_the_kernel_tests_are_said_not_to_run(monkeypatch, tmp_path):
    package = tmp_path / "site" / "videonsa" / "__init__.py"
    monkeypatch.setattr(verify_module.videonsa, "__file__", str(package))
    assert verify_module._run_tests() == "tests/ops/triton not run: not a checkout"
