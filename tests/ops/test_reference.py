"""The reference against plain loops."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nsa_cases import assert_result_equals, brute_nsa, make_inputs, make_spec

from videonsa.ops import nsa_attention
from videonsa.ops.reference import nsa_reference
from videonsa.ops.varlen import block_borders, block_table


def whole(q, k, v, gates, spec, **options):
    return nsa_attention(q, k, v, gates, spec=spec, return_branches=True, **options)


@pytest.mark.parametrize("group", [1, 7, 8, 16])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_every_group_size_equals_the_loops(group, kv_heads):
    inputs = make_inputs(21, heads=group * kv_heads, kv_heads=kv_heads, seed=group)
    spec = make_spec(s=4, n=3, w=5)
    assert_result_equals(whole(*inputs, spec), brute_nsa(*inputs, spec))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 31])
def test_odd_lengths_and_streams_shorter_than_a_block_equal_the_loops(length):
    inputs = make_inputs(length, heads=4, kv_heads=2, seed=length)
    spec = make_spec(s=4, n=2, w=6)
    assert_result_equals(whole(*inputs, spec), brute_nsa(*inputs, spec))


@pytest.mark.parametrize("rows", [1, 3, 6, 13])
def test_suffix_rows_equal_the_loops_and_the_whole_run(rows):
    q, k, v, gates = make_inputs(26, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=2, w=6)
    suffix = (q[:, -rows:], k, v, gates[:, -rows:])
    result = whole(*suffix, spec)
    assert_result_equals(result, brute_nsa(*suffix, spec))
    torch.testing.assert_close(result.output, whole(q, k, v, gates, spec).output[:, -rows:])


def test_offset_ignores_later_keys_of_a_static_cache():
    q, k, v, gates = make_inputs(5, 30, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=2, w=6)
    expected = brute_nsa(q, k[:, :15], v[:, :15], gates, spec, first_row=10)
    k[:, 15:], v[:, 15:] = float("nan"), float("nan")
    assert_result_equals(whole(q, k, v, gates, spec, q_offset=10), expected)


def test_batch_equals_its_samples():
    inputs = make_inputs(19, batch=3, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=2, w=6)
    together = whole(*inputs, spec)
    for i in range(3):
        one = [x[i : i + 1] for x in inputs]
        assert_result_equals(together, brute_nsa(*one, spec), sample=i)


@pytest.mark.parametrize("init, local", [(1, 0), (0, 2), (1, 1), (2, 1)])
def test_forced_blocks_equal_the_loops(init, local):
    inputs = make_inputs(27, heads=4, kv_heads=2)
    spec = make_spec(s=3, n=4, w=2, num_init_blocks=init, num_local_blocks=local)
    assert_result_equals(whole(*inputs, spec), brute_nsa(*inputs, spec))


@pytest.mark.parametrize(
    "branches",
    [(), ("compressed",), ("selected",), ("window",), ("compressed", "window")],
    ids=lambda names: "+".join(names) or "none",
)
def test_branch_that_is_not_listed_adds_nothing(branches):
    inputs = make_inputs(18, heads=4, kv_heads=2)
    spec = make_spec(branches=branches)
    expected = brute_nsa(*inputs, spec)
    assert_result_equals(whole(*inputs, spec), expected)
    alone = nsa_attention(*inputs, spec=spec)
    torch.testing.assert_close(alone[0], torch.tensor(expected.output, dtype=torch.float64))


@pytest.mark.parametrize("size", [54, 60, 200])
def test_frame_aligned_blocks_equal_the_loops(size):
    frames = [size, size]
    rows = 40
    q, k, v, gates = make_inputs(rows, 2 * size, heads=2, kv_heads=1, dim=2)
    spec = make_spec(s="frame", n=2, w=9)
    expected = brute_nsa(q, k, v, gates, spec, frames=frames)
    assert_result_equals(whole(q, k, v, gates, spec, frame_sizes=frames), expected)


def test_frame_that_is_still_arriving_is_not_a_complete_block():
    frames = [5, 7, 300]
    q, k, v, gates = make_inputs(14, heads=2, dim=2)
    spec = make_spec(s="frame", n=2, w=4)
    result = whole(q, k, v, gates, spec, frame_sizes=torch.tensor(frames))
    assert_result_equals(result, brute_nsa(q, k, v, gates, spec, frames=frames))
    assert result.selected_blocks.max() == 2


def test_samples_of_a_batch_may_have_different_frames():
    frames = [[6, 6, 4], [3, 9, 2, 5]]
    inputs = make_inputs(16, batch=2, heads=4, kv_heads=2)
    spec = make_spec(s="frame", n=2, w=4)
    result = whole(*inputs, spec, frame_sizes=[*frames[0], *frames[1]])
    for i in range(2):
        one = [x[i : i + 1] for x in inputs]
        assert_result_equals(result, brute_nsa(*one, spec, frames=frames[i]), sample=i)


@pytest.mark.parametrize("frames", [None, [5, 4, 4, 6, 2, 6, 5, 2]])
def test_packed_samples_equal_the_loops_one_by_one(frames):
    lengths = [9, 4, 0, 12, 7]
    ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    inputs = make_inputs(32, heads=4, kv_heads=2)
    spec = make_spec(s="frame" if frames else 4, n=2, w=5)
    result = whole(*inputs, spec, cu_seqlens_k=ends, frame_sizes=frames)
    per_sample = [[5, 4], [4], [], [6, 2, 6], [5, 2]]
    for i, length in enumerate(lengths):
        if length:
            rows = slice(int(ends[i]), int(ends[i + 1]))
            one = [x[:, rows] for x in inputs]
            expected = brute_nsa(*one, spec, frames=per_sample[i])
            assert_result_equals(result, expected, rows=rows)


def test_packed_rows_are_the_last_of_their_samples():
    cu_q = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
    cu_k = torch.tensor([0, 10, 14, 27], dtype=torch.int32)
    q, k, v, gates = make_inputs(8, 27, heads=2)
    spec = make_spec(s=4, n=2, w=3)
    result = whole(q, k, v, gates, spec, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k)
    for rows, keys in ((slice(0, 3), slice(0, 10)), (slice(3, 8), slice(14, 27))):
        expected = brute_nsa(q[:, rows], k[:, keys], v[:, keys], gates[:, rows], spec)
        assert_result_equals(result, expected, rows=rows)


def test_packed_sample_does_not_see_another():
    ends = torch.tensor([0, 11, 20, 33], dtype=torch.int32)
    q, k, v, gates = make_inputs(33, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=3, w=50)
    before = whole(q, k, v, gates, spec, cu_seqlens_k=ends)
    for x in (q, k, v, gates):
        x[:, 11:20] += 100.0
    after = whole(q, k, v, gates, spec, cu_seqlens_k=ends)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :11], new[:, :11])
        assert torch.equal(old[:, 20:], new[:, 20:])
    assert not torch.equal(before.output[:, 11:20], after.output[:, 11:20])


@pytest.mark.parametrize("position", [1, 7, 8, 20])
def test_future_keys_leave_a_row_as_it_is(position):
    q, k, v, gates = make_inputs(24, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=3, w=5)
    before = whole(q, k, v, gates, spec)
    k[:, position:] += 3.0
    v[:, position:] -= 7.0
    after = whole(q, k, v, gates, spec)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :position], new[:, :position])


@pytest.mark.parametrize("s, frames", [(4, None), ("frame", [5, 3, 6, 4, 2])])
def test_shared_selection_of_a_block_equals_the_loops(s, frames):
    inputs = make_inputs(20, heads=4, kv_heads=2)
    spec = make_spec(s=s, n=3, w=5, selection_scope="block", num_local_blocks=1)
    result = whole(*inputs, spec, frame_sizes=frames)
    assert_result_equals(result, brute_nsa(*inputs, spec, frames=frames or ()))
    first = 8  # both block plans have a border here
    chosen = result.selected_blocks[0, first : first + 4]
    assert (chosen == chosen[:1]).all()


def test_shared_selection_of_a_chunk_equals_the_whole_run():
    q, k, v, gates = make_inputs(24, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=3, w=5, selection_scope="block")
    suffix = whole(q[:, 16:], k, v, gates[:, 16:], spec)
    torch.testing.assert_close(suffix.output, whole(q, k, v, gates, spec).output[:, 16:])


@pytest.mark.parametrize(("rows", "keys"), [(10, 10), (8, 20), (6, 16)])
def test_shared_selection_off_the_borders_is_refused(rows, keys):
    inputs = make_inputs(rows, keys)
    spec = make_spec(s=4, selection_scope="block")
    with pytest.raises(ValueError, match="block borders"):
        nsa_attention(*inputs, spec=spec, q_offset=None if keys != 20 else 10)


def test_given_selection_is_used_and_reported_in_order():
    inputs = make_inputs(16, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=3, w=2)
    generator = torch.Generator().manual_seed(5)
    given_blocks = torch.randint(-1, 4, (1, 16, 2, 3), generator=generator)
    expected = brute_nsa(*inputs, spec, selected=given_blocks[0].tolist())
    expected.selected = [
        [sorted({c for c in row if c >= 0}) for row in rows] for rows in given_blocks[0].tolist()
    ]
    expected.selected = [
        [row + [-1] * (3 - len(row)) for row in rows] for rows in expected.selected
    ]
    result = whole(*inputs, spec, selected_blocks=given_blocks)
    assert_result_equals(result, expected)
    again = whole(*inputs, spec, selected_blocks=result.selected_blocks)
    assert torch.equal(again.output, result.output)


def test_own_selection_given_back_changes_nothing():
    inputs = make_inputs(33, heads=4, kv_heads=2)
    spec = make_spec(s=4, n=3, w=2)
    result = whole(*inputs, spec)
    again = whole(*inputs, spec, selected_blocks=result.selected_blocks)
    assert torch.equal(again.output, result.output)


def test_equal_importance_goes_to_the_lower_index():
    q, k, v, gates = make_inputs(24, heads=2)
    result = whole(torch.zeros_like(q), k, v, gates, make_spec(s=4, n=3, w=2))
    assert result.selected_blocks[0, -1, 0].tolist() == [0, 1, 5]


def test_importance_flushed_to_zero_still_goes_to_the_lower_index():
    q, k, v, gates = (x.float() for x in make_inputs(24, heads=1))
    q[:], k[:] = 1.0, 0.0
    k[:, 12:16] = 1000.0  # block 3 takes all probability, blocks 0 to 2 underflow to 0
    result = whole(q, k, v, gates, make_spec(s=4, n=3, w=2))
    assert result.selected_blocks[0, -1, 0].tolist() == [0, 3, 5]


def test_row_at_the_end_of_its_block_takes_it_once():
    inputs = make_inputs(8, heads=1)
    result = whole(*inputs, make_spec(s=4, n=3, w=2))
    assert result.selected_blocks[0, 3, 0].tolist() == [0, -1, -1]
    assert result.selected_blocks[0, 7, 0].tolist() == [0, 1, -1]


def test_row_without_visible_block_gets_zero_and_no_gradient():
    q, k, v, gates = make_inputs(9, heads=2, grad=True)
    result = whole(q, k, v, gates, make_spec(s=4, n=2, w=3, branches=("compressed",)))
    assert (result.o_cmp[:, :3] == 0).all() and (result.lse_cmp[:, :3] == -torch.inf).all()
    (result.output.sum() + result.o_cmp.sum()).backward()
    assert (gates.grad[:, :3] == 0).all() and (q.grad[:, :3] == 0).all()
    assert all(x.grad.isfinite().all() for x in (q, k, v, gates))
    assert (gates.grad[:, 3:, :, 0] != 0).all()


def test_stream_shorter_than_a_block_has_finite_gradients_through_all_results():
    q, k, v, gates = make_inputs(3, heads=2, grad=True)
    result = whole(q, k, v, gates, make_spec(s=4, n=2, w=3))
    (result.output.sum() + result.lse_win.sum() + result.lse_slc.sum()).backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v, gates))


def test_no_rows_give_no_output():
    q, k, v, gates = make_inputs(0, 9, heads=2)
    assert nsa_attention(q, k, v, gates, spec=make_spec()).shape == (1, 0, 2, 4)


@pytest.mark.parametrize("s, frames", [(3, None), ("frame", [4, 1, 3])])
def test_gradients_are_those_of_finite_differences(s, frames):
    q, k, v, gates = make_inputs(8, heads=2, dim=2, grad=True)
    spec = make_spec(s=s, n=2, w=3)
    fixed = whole(q, k, v, gates, spec, frame_sizes=frames).selected_blocks

    def run(*inputs):
        result = whole(*inputs, spec, frame_sizes=frames, selected_blocks=fixed)
        return result.output, result.o_cmp, result.o_slc, result.o_win

    assert torch.autograd.gradcheck(run, (q, k, v, gates))


def test_query_chunks_change_neither_results_nor_gradients():
    spec = make_spec(s=4, n=3, w=6)
    runs = []
    for chunk_size in (None, 1, 5):
        q, k, v, gates = make_inputs(23, batch=2, heads=4, kv_heads=2, grad=True)
        borders = block_borders(4, None, [23])
        result = nsa_reference(
            q,
            k,
            v,
            gates,
            spec=spec,
            blocks=block_table(borders, 23, device=q.device),
            return_branches=True,
            chunk_size=chunk_size,
        )
        (result.output**2).sum().backward()
        runs.append((*result, q.grad, k.grad, v.grad, gates.grad))
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            torch.testing.assert_close(one, other)


def test_shared_selection_does_not_depend_on_query_chunks():
    spec = make_spec(s=4, n=2, w=6, selection_scope="block")
    q, k, v, gates = make_inputs(24, heads=4, kv_heads=2)
    blocks = block_table(block_borders(4, None, [24]), 24, device=q.device)
    one, other = (
        nsa_reference(
            q, k, v, gates, spec=spec, blocks=blocks, return_branches=True, chunk_size=size
        )
        for size in (24, 7)
    )
    assert torch.equal(one.selected_blocks, other.selected_blocks)
    torch.testing.assert_close(one.output, other.output)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_low_precision_inputs_are_computed_in_float32_and_rounded_once(dtype):
    inputs = [x.to(dtype) for x in make_inputs(20, heads=4, kv_heads=2, dim=8)]
    spec = make_spec(s=4, n=5, w=6, branches=("selected", "window"))
    result = nsa_attention(*inputs, spec=spec)
    assert result.dtype == dtype
    exact = nsa_attention(*(x.double() for x in inputs), spec=spec)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {}
    torch.testing.assert_close(result, exact.to(dtype), **close)


def test_autocast_does_not_lower_the_precision():
    inputs = [x.float() for x in make_inputs(20, heads=4, kv_heads=2, dim=8)]
    plain = nsa_attention(*inputs, spec=make_spec())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(nsa_attention(*inputs, spec=make_spec()), plain)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_small_problems_equal_the_loops(data):
    group, kv_heads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 2))
    keys = data.draw(st.integers(1, 24))
    rows = data.draw(st.integers(1, keys))
    framed = data.draw(st.booleans())
    frames = data.draw(st.lists(st.integers(1, 9), min_size=24, max_size=24)) if framed else None
    init, local = data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))
    spec = make_spec(
        s="frame" if framed else data.draw(st.integers(1, 9)),
        n=init + local + data.draw(st.integers(1, 4)),
        w=data.draw(st.integers(1, 12)),
        num_init_blocks=init,
        num_local_blocks=local,
    )
    inputs = make_inputs(
        rows,
        keys,
        heads=group * kv_heads,
        kv_heads=kv_heads,
        dim=data.draw(st.integers(1, 5)),
        seed=data.draw(st.integers(0, 1000)),
    )
    expected = brute_nsa(*inputs, spec, frames=frames or ())
    assert_result_equals(whole(*inputs, spec, frame_sizes=frames), expected)


def test_several_query_chunks_keep_no_scores_for_the_backward_pass():
    q, k, v, gates = make_inputs(64, heads=4, kv_heads=2, grad=True)
    blocks = block_table(block_borders(4, None, [64]), 64, device=q.device)
    largest = []
    for chunk_size in (64, 4):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.numel()) or x, lambda x: x
        ):
            nsa_reference(q, k, v, gates, spec=make_spec(), blocks=blocks, chunk_size=chunk_size)
        largest.append(max(sizes))
    assert largest[0] == 4 * 64 * 64  # HQ * T * S: the probabilities
    assert largest[1] < 4 * 64 * 64 / 4
