"""The hybrid layer against plain loops: text rows dense, vision rows NSA."""

from itertools import pairwise

import brute
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nsa_cases import make_inputs, make_spec, options_of

from videonsa.ops import hybrid_attention, hybrid_layout, nsa_attention

SPEC = make_spec(s=4, n=2, w=3)


def vision_runs(length, *runs):
    mask = torch.zeros(1, length, dtype=torch.bool)
    for start, stop in runs:
        mask[:, start:stop] = True
    return mask


def loops(q, k, v, gates, vision, *, valid=None, frames=(), offset=None, spec=SPEC):
    """The loops on a batch of one: `[T, HQ, D]`."""
    valid = torch.ones_like(vision) if valid is None else valid
    lists = [x[0].tolist() for x in (q, k, v, gates, vision, valid)]
    output = brute.hybrid(*lists, options_of(spec, frames), offset=offset)
    return torch.tensor(output, dtype=torch.float64)


@pytest.mark.parametrize(
    "runs",
    [(), [(0, 29)], [(4, 25)], [(3, 9), (10, 11), (14, 27)], [(x, x + 1) for x in range(0, 29, 2)]],
    ids=["text", "vision", "one run", "three runs", "alternating"],
)
def test_any_mix_of_text_and_vision_equals_the_loops(runs):
    inputs = make_inputs(29, heads=4, kv_heads=2)
    vision = vision_runs(29, *runs)
    output = hybrid_attention(*inputs, vision, spec=SPEC)
    torch.testing.assert_close(output[0], loops(*inputs, vision))


def test_gates_of_text_rows_are_not_read():
    q, k, v, gates = make_inputs(20, heads=4, kv_heads=2)
    vision = vision_runs(20, (5, 15))
    before = hybrid_attention(q, k, v, gates, vision, spec=SPEC)
    gates[~vision] = float("nan")
    assert torch.equal(hybrid_attention(q, k, v, gates, vision, spec=SPEC), before)


@pytest.mark.parametrize("runs", [(), [(5, 15)]], ids=["text alone", "both"])
def test_gates_of_text_rows_have_a_gradient_of_zero(runs):
    q, k, v, gates = make_inputs(20, heads=4, kv_heads=2, grad=True)
    vision = vision_runs(20, *runs)
    hybrid_attention(q, k, v, gates, vision, spec=SPEC).sum().backward()
    assert not gates.grad[~vision].any()
    assert gates.grad.any() == vision.any()


def test_vision_rows_do_not_see_text_keys():
    q, k, v, gates = make_inputs(20, heads=4, kv_heads=2)
    vision = vision_runs(20, (5, 9), (11, 18))
    before = hybrid_attention(q, k, v, gates, vision, spec=SPEC)
    k[~vision], v[~vision] = 50.0, -50.0
    after = hybrid_attention(q, k, v, gates, vision, spec=SPEC)
    assert torch.equal(after[vision], before[vision])
    assert not torch.equal(after[:, 18:], before[:, 18:])


@pytest.mark.parametrize("equal_counts", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_batch_equals_the_loops_sample_by_sample(side, equal_counts):
    q, k, v, gates = make_inputs(18, batch=3, heads=4, kv_heads=2)
    valid, vision = torch.zeros(2, 3, 18, dtype=torch.bool)
    for i, length in enumerate((18, 13, 15)):
        start = 18 - length if side == "left" else 0
        valid[i, start : start + length] = True
        vision[i, start + 2 : start + 11 + (0 if equal_counts else i)] = True
    output = hybrid_attention(q, k, v, gates, vision, spec=SPEC, attention_mask=valid)
    for i in range(3):
        one = [x[i : i + 1] for x in (q, k, v, gates, vision)]
        torch.testing.assert_close(output[i], loops(*one, valid=valid[i : i + 1]))
    assert (output[~valid] == 0).all()


def test_padding_gets_no_gradient_and_gives_none():
    q, k, v, gates = make_inputs(12, batch=2, heads=4, kv_heads=2, grad=True)
    valid = torch.ones(2, 12, dtype=torch.bool)
    valid[1, :5] = False
    vision = torch.zeros(2, 12, dtype=torch.bool)
    vision[:, 4:9] = True
    hybrid_attention(q, k, v, gates, vision, spec=SPEC, attention_mask=valid).sum().backward()
    for x in (q, k, v):
        assert x.grad.isfinite().all()
        assert (x.grad[1, :5] == 0).all() and (x.grad[1, 6:9] != 0).any()


@pytest.mark.parametrize("rows", [1, 4, 11])
def test_later_turns_see_the_cache(rows):
    q, k, v, gates = make_inputs(rows, 26, heads=4, kv_heads=2)
    vision = vision_runs(26, (2, 13), (17, 22))
    output = hybrid_attention(q, k, v, gates, vision, spec=SPEC)
    torch.testing.assert_close(output[0], loops(q, k, v, gates, vision))


def test_decode_step_needs_no_frames():
    q, k, v, gates = make_inputs(1, 20, heads=4, kv_heads=2)
    vision = vision_runs(20, (2, 13))
    spec = make_spec(s="frame")
    output = hybrid_attention(q, k, v, gates, vision, spec=spec)
    torch.testing.assert_close(output[0], loops(q, k, v, gates, vision))


def test_offset_ignores_later_keys_of_a_static_cache():
    q, k, v, gates = make_inputs(6, 30, heads=4, kv_heads=2)
    vision = vision_runs(30, (2, 13), (25, 28))
    k[:, 16:], v[:, 16:] = float("nan"), float("nan")
    output = hybrid_attention(q, k, v, gates, vision, spec=SPEC, q_offset=10)
    torch.testing.assert_close(output[0], loops(q, k, v, gates, vision, offset=10))


def test_frames_count_vision_tokens_over_all_samples():
    q, k, v, gates = make_inputs(20, batch=2, heads=4, kv_heads=2)
    vision = torch.zeros(2, 20, dtype=torch.bool)
    vision[0, 3:9], vision[0, 12:16], vision[1, 1:14] = True, True, True
    frames = [[6, 2, 2], [5, 5, 5]]
    spec = make_spec(s="frame")
    output = hybrid_attention(
        q, k, v, gates, vision, spec=spec, frame_sizes=[*frames[0], *frames[1]]
    )
    for i in range(2):
        one = [x[i : i + 1] for x in (q, k, v, gates, vision)]
        torch.testing.assert_close(output[i], loops(*one, frames=frames[i], spec=spec))


def test_packed_samples_equal_the_loops_and_do_not_see_each_other():
    q, k, v, gates = make_inputs(30, heads=4, kv_heads=2)
    vision = vision_runs(30, (2, 9), (11, 13), (15, 27))
    ends = torch.tensor([0, 12, 19, 19, 30], dtype=torch.int32)
    options = {"spec": SPEC, "cu_seqlens_q": ends, "cu_seqlens_k": ends}
    before = hybrid_attention(q, k, v, gates, vision, **options)
    for rows in (slice(0, 12), slice(12, 19), slice(19, 30)):
        one = [x[:, rows] for x in (q, k, v, gates, vision)]
        torch.testing.assert_close(before[0, rows], loops(*one))
    for x in (q, k, v, gates):
        x[:, 12:19] += 100.0
    after = hybrid_attention(q, k, v, gates, vision, **options)
    assert torch.equal(after[:, :12], before[:, :12])
    assert torch.equal(after[:, 19:], before[:, 19:])


def test_packed_suffixes_equal_the_loops():
    q, k, v, gates = make_inputs(9, 30, heads=4, kv_heads=2)
    vision = vision_runs(30, (2, 9), (14, 28))
    cu_q = torch.tensor([0, 5, 9], dtype=torch.int32)
    cu_k = torch.tensor([0, 13, 30], dtype=torch.int32)
    output = hybrid_attention(
        q, k, v, gates, vision, spec=SPEC, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k
    )
    for rows, keys in ((slice(0, 5), slice(0, 13)), (slice(5, 9), slice(13, 30))):
        one = [q[:, rows], k[:, keys], v[:, keys], gates[:, rows], vision[:, keys]]
        torch.testing.assert_close(output[0, rows], loops(*one))


def test_branches_come_back_in_sequence_order():
    inputs = make_inputs(20, heads=4, kv_heads=2)
    vision = vision_runs(20, (3, 9), (12, 18))
    result = hybrid_attention(*inputs, vision, spec=SPEC, return_branches=True)
    stream = nsa_attention(*(x[vision][None] for x in inputs), spec=SPEC, return_branches=True)
    for whole, of_vision in zip(result, stream, strict=True):
        assert torch.equal(whole[vision], of_vision[0])
    assert torch.equal(result.output, hybrid_attention(*inputs, vision, spec=SPEC))
    assert (result.o_slc[~vision] == 0).all() and (result.selected_blocks[~vision] == -1).all()
    assert (result.lse_cmp[~vision] == -torch.inf).all()


def test_without_branches_vision_rows_give_zero():
    inputs = make_inputs(12, heads=4, kv_heads=2)
    vision = vision_runs(12, (3, 9))
    spec = SPEC.with_options(branches=())
    output = hybrid_attention(*inputs, vision, spec=spec)
    assert (output[vision] == 0).all()
    full = hybrid_attention(*inputs, vision, spec=SPEC)
    assert torch.equal(output[~vision], full[~vision])


def test_layout_made_once_gives_the_same():
    inputs = make_inputs(12, batch=2, heads=4, kv_heads=2)
    vision = vision_runs(12, (3, 9)).repeat(2, 1)
    valid = torch.ones_like(vision)
    valid[0, 11] = False
    layout = hybrid_layout(vision, spec=SPEC, num_rows=12, attention_mask=valid)
    assert len(layout.vision) == len(layout.text) == 1  # one batched call of each
    output = hybrid_attention(*inputs, vision, spec=SPEC, layout=layout)
    expected = hybrid_attention(*inputs, vision, spec=SPEC, attention_mask=valid)
    assert torch.equal(output, expected)


def test_gradients_are_those_of_finite_differences():
    q, k, v, gates = make_inputs(7, batch=2, heads=2, dim=2, grad=True)
    vision = vision_runs(7, (1, 6)).repeat(2, 1)
    spec = make_spec(s=2, n=3, w=2)  # few enough blocks that all are selected

    def run(*inputs):
        return hybrid_attention(*inputs, vision, spec=spec)

    assert torch.autograd.gradcheck(run, (q, k, v, gates))


def test_thousands_of_text_runs_are_gathered_in_one_call():
    q, k, v, gates = (x.float() for x in make_inputs(6000, heads=1, dim=4))
    vision = vision_runs(6000)
    vision[:, ::2] = True
    spec = make_spec(s=64, n=4, w=64)
    layout = hybrid_layout(vision, spec=spec, num_rows=6000)
    assert len(layout.vision) == len(layout.text) == 1
    output = hybrid_attention(q, k, v, gates, vision, spec=spec, layout=layout)
    stream = nsa_attention(*(x[:, ::2] for x in (q, k, v, gates)), spec=spec)
    torch.testing.assert_close(output[:, ::2], stream)
    row, keys = q[0, 5999, 0], k[0, :, 0]
    dense = (keys @ row / 2).softmax(0) @ v[0, :, 0]
    torch.testing.assert_close(output[0, 5999, 0], dense)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_packed_samples_equal_the_loops(data):
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    total = sum(lengths)
    bits = data.draw(st.lists(st.booleans(), min_size=total, max_size=total))
    ends = [sum(lengths[:i]) for i in range(len(lengths) + 1)]
    vision = torch.tensor([bits])
    inputs = make_inputs(total, heads=2, kv_heads=1, seed=data.draw(st.integers(0, 100)))
    spec = make_spec(s=data.draw(st.integers(1, 4)), n=data.draw(st.integers(1, 3)), w=2)
    cu_seqlens = torch.tensor(ends, dtype=torch.int32)
    output = hybrid_attention(*inputs, vision, spec=spec, cu_seqlens_k=cu_seqlens)
    for start, stop in pairwise(ends):
        one = [x[:, start:stop] for x in (*inputs, vision)]
        torch.testing.assert_close(output[0, start:stop], loops(*one, spec=spec))
