"""`nsa_attention(backend="triton")` against the float64 reference, whole op."""

from itertools import combinations

import pytest
import torch
from kernel_cases import (
    Case,
    assert_close_to_reference,
    cumulative,
    differing_rows,
    make_inputs,
    reference_of,
    run_kernels,
)

from videonsa.ops import hybrid_attention, nsa_attention
from videonsa.ops.spec import BRANCHES
from videonsa.ops.triton import forward

HALF = torch.float16
PER_BLOCK = {"selection_scope": "block"}
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
    "blocks of 64": Case(rows=30, keys=135, group=1, s=64, n=2, w=100),
    "blocks of 128": Case(rows=15, keys=140, group=1, s=128, n=2),
    "many small blocks": Case(rows=40, group=1, s=2, n=12),
    "one selected block": Case(rows=37, n=1),
    "n of 64": Case(rows=9, keys=150, group=1, s=2, n=64),
    "more selected than there are": Case(rows=37, n=32),
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
    "rows inside a static cache": Case(rows=20, keys=90, q_offset=21),
    "batch of two": Case(rows=21, batch=2),
    "batch inside a static cache": Case(rows=10, keys=50, q_offset=25, batch=2),
    "packed": Case(k_lengths=(20, 0, 37, 1)),
    "packed, fewer rows than keys": Case(q_lengths=(5, 0, 20, 3), k_lengths=(30, 16, 20, 33)),
    "packed frames": Case(
        q_lengths=(9, 20), k_lengths=(30, 20), s="frame", frames=(12, 20, 10, 10), n=2
    ),
    "block scope": Case(rows=80, group=3, n=2, options=PER_BLOCK),
    "block scope, suffix": Case(rows=32, keys=96, options=PER_BLOCK),
    "block scope of frames": Case(
        rows=67, s="frame", frames=(20, 30, 7, 10), n=2, options=PER_BLOCK
    ),
    "block scope, packed": Case(k_lengths=(48, 0, 32), n=2, options=PER_BLOCK),
    "gates in float64": Case(rows=21, gate_dtype=torch.float64, dtype=HALF),
    "gates in half": Case(rows=21, gate_dtype=HALF),
}


def hide_later_keys(case, inputs):
    """Keys that no row reaches hold NaN."""
    if case.q_offset is not None:
        for x in inputs[1:3]:
            x[:, case.q_offset + case.rows :] = torch.nan


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_error_is_at_most_twice_that_of_plain_pytorch(case, device, record_property):
    inputs = make_inputs(case, device)
    hide_later_keys(case, inputs)
    found = run_kernels(case, inputs)
    record_property("differing_rows", differing_rows(case, inputs, found.selected_blocks))
    assert_close_to_reference(case, inputs, found)


@pytest.mark.parametrize(
    "branches", [c for size in range(4) for c in combinations(BRANCHES, size)], ids="+".join
)
def test_branches_that_are_not_listed_add_nothing(branches, device):
    case = Case(rows=21, s=8, n=2, options={"branches": branches})
    inputs = make_inputs(case, device)
    output = run_kernels(case, inputs, return_branches=False)
    with torch.no_grad():
        wanted = nsa_attention(*inputs, spec=case.spec, backend="reference")
    # Both compute in float32; the kernels also round the branches to the dtype of the inputs.
    noise = 8 * torch.finfo(case.dtype).eps
    torch.testing.assert_close(output, wanted, rtol=noise, atol=noise)


def test_given_blocks_override_the_selection(device):
    case = Case(rows=40, group=2, kv_heads=2, n=4)
    inputs = make_inputs(case, device)
    given = torch.randint(-1, 3, (1, 40, 2, 4), generator=torch.Generator().manual_seed(1))
    given[:, :, :, 3] = given[:, :, :, 0]  # duplicates, in no order
    given[:, 7:12] = -1
    given = given.to(device)
    found = run_kernels(case, inputs, selected_blocks=given)
    assert_close_to_reference(case, inputs, found)
    assert torch.equal(found.selected_blocks, reference_of(case, inputs, given).selected_blocks)
    assert (found.o_slc[:, 7:12] == 0).all()
    assert found.lse_slc[:, 7:12].isneginf().all()


def test_given_blocks_count_within_each_packed_sample(device):
    case = Case(k_lengths=(20, 33), n=2)
    inputs = make_inputs(case, device)
    given = torch.tensor([0, -1], device=device).expand(1, 53, 1, 2)
    found = run_kernels(case, inputs, selected_blocks=given)
    assert_close_to_reference(case, inputs, found)


def test_given_blocks_behind_the_row_are_left_out_of_the_plan(device, monkeypatch):
    case = Case(rows=20, group=16, s=1, n=4)
    inputs = make_inputs(case, device)
    given = torch.arange(80, device=device).view(1, 20, 1, 4) % 20
    plans = []
    original = forward.plan_tiles
    monkeypatch.setattr(
        forward, "plan_tiles", lambda *a, **k: plans.append(original(*a, **k)) or plans[0]
    )
    found = run_kernels(case, inputs, selected_blocks=given)
    assert_close_to_reference(case, inputs, found)
    assert plans[0].num_shared[..., 0].max() <= plans[0].start.shape[-1]


def test_views_of_heads_first_tensors_are_read_in_place(device):
    case = Case(rows=13, group=2, kv_heads=2)
    inputs = make_inputs(case, device)
    views = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs]
    assert not views[0].is_contiguous()
    assert_same_bits(run_kernels(case, views), run_kernels(case, inputs))


def test_a_last_dimension_with_gaps_is_read_right(device):
    case = Case(rows=21)
    inputs = make_inputs(case, device)
    spread = [torch.stack([x, x + 1], dim=-1)[..., 0] for x in inputs]
    assert spread[0].stride(-1) == 2
    assert_same_bits(run_kernels(case, spread), run_kernels(case, inputs))


def test_equal_importance_goes_to_the_lower_index(device):
    case = Case(rows=48, group=2, s=8, n=4)
    q, *rest = make_inputs(case, device)
    found = run_kernels(case, (torch.zeros_like(q), *rest))
    for t in (0, 7, 8, 23, 39, 47):
        current = t // 8
        blocks = sorted({current, *range(min(current, 3))})
        assert found.selected_blocks[0, t, 0].tolist() == blocks + [-1] * (4 - len(blocks))


REPEATED = {
    "random rows": Case(rows=37, group=2, s=8, n=4),
    "frames, half": Case(rows=60, s="frame", frames=(20, 24, 30), n=2, dtype=HALF),
    "packed": Case(q_lengths=(5, 0, 21), k_lengths=(30, 16, 21), dtype=HALF),
    "block scope": Case(rows=48, n=2, options=PER_BLOCK),
}


@pytest.mark.parametrize("case", REPEATED.values(), ids=REPEATED)
def test_same_bits_again_whatever_fresh_memory_holds(case, device, monkeypatch):
    inputs = make_inputs(case, device)
    first = run_kernels(case, inputs)
    check_guards = guard_fresh_memory(monkeypatch)
    assert_same_bits(run_kernels(case, inputs), first)
    assert check_guards() > 10, "hardly any memory was guarded"


def test_lengths_on_host_and_device_give_the_same_bits(device):
    case = Case(q_lengths=(5, 0, 20), k_lengths=(30, 16, 20))
    inputs = make_inputs(case, device)
    host = torch.device("cpu")
    lengths = {
        "cu_seqlens_q": cumulative(case.q_lengths, host),
        "cu_seqlens_k": cumulative(case.k_lengths, host),
    }
    assert_same_bits(run_kernels(case, inputs, **lengths), run_kernels(case, inputs))


PACKED = Case(k_lengths=(5, 21, 21, 4), s=8, n=2, w=10)


@pytest.mark.parametrize("op", ["stream", "hybrid"])
def test_what_a_packed_sample_holds_moves_no_bit_of_another(device, op):
    """Neither of their outputs nor of their gradients; none of theirs reaches it."""
    lengths = PACKED.arguments(device)["cu_seqlens_k"]
    own = slice(5, 26)

    def run(inputs):
        inputs = [x.clone().requires_grad_() for x in inputs]
        arguments = {"spec": PACKED.spec, "cu_seqlens_k": lengths, "backend": "triton"}
        if op == "hybrid":
            vision = torch.arange(PACKED.num_rows, device=device)[None] % 5 > 0
            output = hybrid_attention(*inputs, vision, **arguments)
        else:
            output = nsa_attention(*inputs, **arguments)
        others = output.detach().clone()
        others[:, own] = 0  # the loss of the others alone
        return output.detach(), torch.autograd.grad(output, inputs, others)

    inputs = make_inputs(PACKED, device)
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, own] = (3 * x[:, own] + 1) % 1  # gates stay in 0..1
    (before, gradients), (after, changed_gradients) = run(inputs), run(changed)
    assert not torch.equal(before[:, own], after[:, own])
    for rows in (slice(0, 5), slice(26, None)):
        assert torch.equal(before[:, rows], after[:, rows])
    for x, y in zip(gradients, changed_gradients, strict=True):
        assert not x[:, own].any()
        assert not y[:, own].any()
        assert x.any()
        assert torch.equal(x, y)


GUARD = 1024
"""Elements on each side of fresh memory."""


def guard_fresh_memory(monkeypatch):
    """Fresh memory holds NaN, or a number that is no index, and lies between guards.

    Gives a function that asserts that all guards are as they were, and counts them.
    """
    guarded = []
    fresh = torch.full

    def guarded_empty(shape, dtype, device):
        value = torch.nan if dtype.is_floating_point else 2**30
        numel = torch.Size(shape).numel()
        memory = fresh((numel + 2 * GUARD,), value, dtype=dtype, device=device)
        guarded.append((memory, numel))
        return memory[GUARD : GUARD + numel].view(shape)

    def sizes(args):
        return args[0] if args and not isinstance(args[0], int) else args

    def empty(*args, dtype=None, device=None, **kwargs):
        return guarded_empty(sizes(args), dtype or torch.float32, device)

    def new_empty(self, *args, dtype=None, device=None, **kwargs):
        return guarded_empty(sizes(args), dtype or self.dtype, device or self.device)

    def empty_like(x, **kwargs):
        return guarded_empty(x.shape, x.dtype, x.device)

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)

    def check():
        for memory, numel in guarded:
            for guard in (memory[:GUARD], memory[GUARD + numel :]):
                value = torch.full_like(guard, torch.nan if guard.is_floating_point() else 2**30)
                assert torch.equal(guard.nan_to_num(7), value.nan_to_num(7)), "written beside"
        return len(guarded)

    return check


def assert_same_bits(found, wanted):
    for name, ours, theirs in zip(found._fields, found, wanted, strict=True):
        assert torch.equal(ours, theirs), f"{name} differs"
