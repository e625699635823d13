"""Gradients of `nsa_attention(backend="triton")` against the float64 reference."""

from itertools import combinations

import pytest
import torch
from gradient_cases import assert_gradients_close, kernel_gradients, make_grad
from kernel_cases import KERNEL_DTYPE, Case, make_inputs, run_kernels

from videonsa.ops import nsa_attention
from videonsa.ops.spec import BRANCHES
from videonsa.ops.triton import attention, inverse

HALF = torch.float16
PER_BLOCK = {"selection_scope": "block"}
SMALL = Case(rows=40, group=2, kv_heads=2, n=3, s=8, w=9)
TINY = Case(rows=21, group=2, kv_heads=2, n=2, s=8, w=5)
"""For what concerns autograd, not the kernels."""
CASES = {
    "one head a group": Case(rows=21, group=1, dim=64),
    "three heads, dim 48": Case(rows=37, group=3, dim=48),
    "seven heads": Case(rows=37, group=7),
    "seven heads, dim 128, half": Case(rows=19, group=7, dim=128, dtype=HALF),
    "eight heads, dim 80, half": Case(rows=21, group=8, dim=80, dtype=HALF),
    "sixteen heads": Case(rows=20, group=16),
    "two groups of seven, half": Case(rows=12, group=7, kv_heads=2, dim=32, s=4, dtype=HALF),
    "coherent rows": Case(rows=70, group=2, coherence=0.9, n=4),
    "blocks of 20": Case(rows=50, group=2, s=20),
    "blocks of 128": Case(rows=15, keys=140, group=1, s=128, n=2),
    "many small blocks": Case(rows=30, group=1, s=2, n=12),
    "n of 64": Case(rows=2, keys=134, group=1, s=2, n=64),
    "one row": Case(rows=1),
    "five rows in a block of 64": Case(rows=5, group=7, s=64),
    "window of one": Case(rows=37, w=1),
    "window larger than the stream": Case(rows=37, w=1000),
    "window of several tiles": Case(rows=40, keys=130, group=1, w=70),
    "init and local blocks": Case(
        rows=30, keys=100, group=1, n=5, options={"num_init_blocks": 1, "num_local_blocks": 2}
    ),
    "frames": Case(rows=60, keys=130, group=1, s="frame", frames=(54, 60, 33), n=2),
    "frames of more than 128": Case(
        rows=25, keys=150, group=1, s="frame", frames=(131, 7, 1, 20), n=2
    ),
    "batch of different frames": Case(
        rows=40, batch=2, s="frame", frames=(16, 17, 9, 1, 30, 20), n=2, dtype=HALF
    ),
    "suffix": Case(rows=9, keys=75),
    "batch inside a static cache": Case(rows=10, keys=50, q_offset=25, batch=2),
    "packed": Case(k_lengths=(20, 0, 37, 1)),
    "packed, fewer rows than keys": Case(q_lengths=(5, 0, 20, 3), k_lengths=(30, 16, 20, 33)),
    "packed frames": Case(
        q_lengths=(9, 20), k_lengths=(30, 20), s="frame", frames=(12, 20, 10, 10), n=2
    ),
    "block scope": Case(rows=80, group=3, n=2, options=PER_BLOCK),
    "block scope, packed": Case(k_lengths=(48, 0, 32), n=2, options=PER_BLOCK),
    "gates in float64": Case(rows=21, gate_dtype=torch.float64, dtype=HALF),
    "gates in half": Case(rows=21, gate_dtype=HALF),
}


@pytest.fixture(scope="module")
def small_gradients(device):
    """Of `SMALL`, worked out once for the tests that compare with them."""
    inputs = make_inputs(SMALL, device)
    return kernel_gradients(SMALL, inputs, make_grad(SMALL, inputs))


@pytest.fixture(scope="module")
def tiny_gradients(device):
    """Of `TINY`, the same."""
    inputs = make_inputs(TINY, device)
    return kernel_gradients(TINY, inputs, make_grad(TINY, inputs))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_error_is_at_most_twice_that_of_plain_pytorch(case, device):
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs)
    assert_gradients_close(case, inputs, grad, kernel_gradients(case, inputs, grad))


def test_keys_that_no_row_reaches_get_zeros_though_they_hold_nan(device):
    case = Case(rows=10, keys=50, q_offset=25)
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs)
    wanted = kernel_gradients(case, inputs, grad)
    for x in inputs[1:3]:
        x[:, 35:] = torch.nan
    found = kernel_gradients(case, inputs, grad)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)
    assert (found[1][:, 35:] == 0).all()
    assert (found[2][:, 35:] == 0).all()


@pytest.mark.parametrize(
    "branches", [c for size in (1, 2) for c in combinations(BRANCHES, size)], ids="+".join
)
def test_branches_that_are_not_listed_get_no_gradient(branches, device):
    case = Case(rows=21, s=8, n=2, options={"branches": branches})
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs)
    found = kernel_gradients(case, inputs, grad)
    assert_gradients_close(case, inputs, grad, found)
    for i, name in enumerate(BRANCHES):
        if name not in branches:
            assert (found[3][..., i] == 0).all()


def test_rows_of_an_empty_branch_give_nothing(device):
    case = SMALL
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs)
    given = torch.randint(-1, 3, (1, 40, 2, 3), generator=torch.Generator().manual_seed(1))
    given[:, :, :, 2] = given[:, :, :, 0]  # duplicates, in no order
    given[:, 7:12] = -1
    given = given.to(device)
    found = kernel_gradients(case, inputs, grad, selected_blocks=given)
    assert_gradients_close(case, inputs, grad, found, given)
    assert (found[3][:, 7:12, :, 1] == 0).all()  # the gate of the selected branch
    assert (found[3][:, :7, :, 0] == 0).all()  # no complete block yet


def close(found, wanted):
    noise = 16 * torch.finfo(KERNEL_DTYPE).eps
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=noise, atol=noise * theirs.abs().max().item())


@pytest.mark.parametrize("min_shared", [1, 33])
def test_sharing_changes_nothing_but_rounding(min_shared, device, small_gradients, monkeypatch):
    inputs = make_inputs(SMALL, device)
    grad = make_grad(SMALL, inputs)
    tuning = attention.tuning_for(8, device=device)._replace(
        min_shared=min_shared, partial_bytes=4096
    )
    monkeypatch.setattr(attention, "tuning_for", lambda *_, **__: tuning)
    close(kernel_gradients(SMALL, inputs, grad), small_gradients)


def test_long_lists_are_shared_out_among_items(device, small_gradients, monkeypatch):
    inputs = make_inputs(SMALL, device)
    grad = make_grad(SMALL, inputs)
    monkeypatch.setattr(inverse, "ITEM_ROWS", 16)
    close(kernel_gradients(SMALL, inputs, grad), small_gradients)


def test_repeated_runs_on_memory_full_of_nan_give_the_same_bits(
    device, small_gradients, monkeypatch
):
    inputs = make_inputs(SMALL, device)
    grad = make_grad(SMALL, inputs)
    empty = torch.empty

    def filled(*args, **kwargs):
        made = empty(*args, **kwargs)
        return made.fill_(torch.nan) if made.is_floating_point() else made.fill_(-7)

    monkeypatch.setattr(torch, "empty", filled)
    monkeypatch.setattr(
        torch, "empty_like", lambda x, **kwargs: filled(x.shape, dtype=x.dtype, device=x.device)
    )
    for ours, theirs in zip(kernel_gradients(SMALL, inputs, grad), small_gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_an_expanded_gradient_is_taken(device):
    inputs = [x.requires_grad_() for x in make_inputs(TINY, device)]
    output = nsa_attention(*inputs, spec=TINY.spec, backend="triton")
    found = torch.autograd.grad(output.sum(), inputs)
    wanted = kernel_gradients(TINY, inputs, torch.ones_like(output))
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_views_of_one_projection_are_taken(device, tiny_gradients):
    q, k, v, gates = make_inputs(TINY, device)
    grad = make_grad(TINY, (q,))
    fused = torch.cat([q, k, v], dim=2).requires_grad_()
    parts = fused.split([4, 2, 2], dim=2)
    output = nsa_attention(*parts, gates, spec=TINY.spec, backend="triton")
    (found,) = torch.autograd.grad(output, fused, grad)
    assert torch.equal(found, torch.cat(tiny_gradients[:3], dim=2))


@pytest.mark.parametrize("wanted_of", range(4), ids=("q", "k", "v", "gates"))
def test_one_input_alone_may_want_a_gradient(wanted_of, device, tiny_gradients):
    inputs = list(make_inputs(TINY, device))
    grad = make_grad(TINY, inputs)
    inputs[wanted_of].requires_grad_()
    output = nsa_attention(*inputs, spec=TINY.spec, backend="triton")
    (found,) = torch.autograd.grad(output, inputs[wanted_of], grad)
    assert torch.equal(found, tiny_gradients[wanted_of])


def test_output_is_the_same_with_and_without_gradients(device):
    inputs = make_inputs(TINY, device)
    wanted = run_kernels(TINY, inputs, return_branches=False)
    inputs[0].requires_grad_()
    output = nsa_attention(*inputs, spec=TINY.spec, backend="triton")
    assert torch.equal(output, wanted)


def test_second_derivatives_are_refused(device):
    inputs = [x.requires_grad_() for x in make_inputs(TINY, device)]
    output = nsa_attention(*inputs, spec=TINY.spec, backend="triton")
    (first,) = torch.autograd.grad(output.sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(first.sum(), inputs[0])


def test_negative_gates_are_taken(device):
    inputs = make_inputs(TINY, device)
    inputs[3].sub_(0.5)
    grad = make_grad(TINY, inputs)
    assert_gradients_close(TINY, inputs, grad, kernel_gradients(TINY, inputs, grad))
