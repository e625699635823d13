"""The `released` preset against plain loops written from docs/semantics.md."""

import math

import pytest
import torch
from test_released_bitonic import plain_network

from videonsa.ops import hybrid_attention, nsa_attention
from videonsa.ops.released import hybrid_released, nsa_released, select_released
from videonsa.ops.spec import NSASpec

MASKS = ("current_and_later", "past_complete", "past_and_current")
HEADS, KV_HEADS = 28, 4


def make_inputs(num_tokens, dim=4, *, seed=0, dtype=torch.float64, spans=None):
    """Raw q, k, v, gates and a vision mask with text at both ends and in the middle."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(1, num_tokens, *shape, generator=generator, dtype=torch.float64)

    q, k, v = draw(HEADS, dim) * 2, draw(KV_HEADS, dim), draw(KV_HEADS, dim)
    gates = draw(HEADS, 3).sigmoid()
    vision = torch.zeros(1, num_tokens, dtype=torch.bool)
    for start, end in spans or [(5, num_tokens // 2), (num_tokens // 2 + 3, num_tokens - 4)]:
        vision[:, start:end] = True
    return *(x.to(dtype) for x in (q, k, v, gates)), vision


def zero_text(q, k, v, vision):
    return tuple(x * vision[..., None, None] for x in (q, k, v))


def plain_attention(query, keys, values):
    """Softmax attention of one query over lists of keys; (zero, -inf) over none."""
    if not keys:
        return [0.0] * len(query), -math.inf
    scores = [
        sum(a * b for a, b in zip(query, key, strict=True)) / len(query) ** 0.5 for key in keys
    ]
    lse = max(scores) + math.log(sum(math.exp(s - max(scores)) for s in scores))
    weights = [math.exp(s - lse) for s in scores]
    output = [
        sum(w * value[d] for w, value in zip(weights, values, strict=True))
        for d in range(len(query))
    ]
    return output, lse


class PlainReleased:
    """The published computation, one row, head and key at a time."""

    def __init__(self, q, k, v, spec):
        self.spec = spec
        self.num_tokens, _, self.dim = q[0].shape
        self.k, self.v = k[0].transpose(0, 1).tolist(), v[0].transpose(0, 1).tolist()
        zero = [0.0] * self.dim
        self.q = [[*row, *row, *([zero] * 8)] for row in q[0].tolist()]
        self.num_blocks = -(-self.num_tokens // 64)
        self.k_cmp, self.v_cmp = ([self.pool(x) for x in heads] for heads in (self.k, self.v))
        self.lse = [
            self.compressed(token, head)[1]
            for head in range(64)
            for token in range(self.num_tokens)
        ]  # head-major, as the published kernel stores it

    def pool(self, tokens):
        blocks = [tokens[c * 64 : (c + 1) * 64] for c in range(self.num_blocks)]
        return [[sum(t[d] for t in b) / len(b) for d in range(self.dim)] for b in blocks]

    def compressed(self, t, head):
        sees = {
            "current_and_later": lambda c: t <= (c + 1) * 64 - 1,
            "past_complete": lambda c: (c + 1) * 64 - 1 <= t,
            "past_and_current": lambda c: c <= t // 64,
        }[self.spec.compressed_mask]
        seen = [c for c in range(self.num_blocks) if sees(c)]
        keys, values = self.k_cmp[head // 16], self.v_cmp[head // 16]
        return plain_attention(self.q[t][head], [keys[c] for c in seen], [values[c] for c in seen])

    def selected(self, t, group):
        importance = [0.0] * (64 * -(-self.num_blocks // 64))
        for c in range(t // 64):
            for head in range(16 * group, 16 * group + 16):
                key = self.k_cmp[group][c]
                score = sum(a * b for a, b in zip(self.q[t][head], key, strict=True))
                lse = self.lse[64 * t + head]  # row-major reading of the same memory
                lse = 0.0 if lse == -math.inf else lse
                importance[c] += math.exp(score / self.dim**0.5 - lse)
        importance[t // 64] = 16.0
        num_slots = 2 ** math.ceil(math.log2(self.spec.num_selected_blocks))
        return plain_network(importance, t // 64)[:num_slots]

    def branches(self, t, head):
        """((output, lse) of compressed, selected, window)."""
        group, query = head // 16, self.q[t][head]
        keys, values = self.k[group], self.v[group]
        blocks = set(self.selected(t, group))
        chosen = [i for i in range(t + 1) if i // 64 in blocks]
        window = range(max(0, t - self.spec.window_size + 1), t + 1)
        return (
            self.compressed(t, head),
            plain_attention(query, [keys[i] for i in chosen], [values[i] for i in chosen]),
            plain_attention(query, [keys[i] for i in window], [values[i] for i in window]),
        )


@pytest.mark.parametrize("compressed_mask", MASKS)
def test_every_part_equals_the_plain_loops(compressed_mask):
    num_tokens = 330  # 5 full blocks and a partial one of 10
    *raw, gates, vision = make_inputs(num_tokens, dim=2)
    q, k, v = zero_text(*raw, vision)
    spec = NSASpec.released(num_selected_blocks=2, window_size=20, compressed_mask=compressed_mask)
    rows = torch.tensor([0, 6, 63, 64, 166, 200, 255, 321, 329])
    result = nsa_released(q, k, v, gates, spec=spec, rows=rows, return_branches=True)
    plain = PlainReleased(q, k, v, spec)
    for i, t in enumerate(rows.tolist()):
        expected = [plain.branches(t, head) for head in range(64)]
        for branch in range(3):
            outputs = torch.tensor([one[branch][0] for one in expected], dtype=torch.float64)
            lses = torch.tensor([one[branch][1] for one in expected])
            torch.testing.assert_close(result[1 + branch][0, i], outputs)
            torch.testing.assert_close(result[4 + branch][0, i], lses)
        blocks = [sorted(set(plain.selected(t, group)) - {-1}) for group in range(4)]
        assert [
            [c for c in row if c >= 0] for row in result.selected_blocks[0, i].tolist()
        ] == blocks
        gated = (gates[0, t, :, :, None] * torch.stack([x[0, i, :28] for x in result[1:4]], 1)).sum(
            1
        )
        copies = (
            gates[0, t, :, :, None] * torch.stack([x[0, i, 28:56] for x in result[1:4]], 1)
        ).sum(1)
        torch.testing.assert_close(result.output[0, i], (gated + copies) / 2)


def plain_dense(q, k, v, t, *, zero_query):
    """Causal attention of row t with KV head h // 7."""
    rows = []
    for head in range(HEADS):
        query = q[0, t, head] * (0 if zero_query else 1)
        keys, values = k[0, : t + 1, head // 7], v[0, : t + 1, head // 7]
        weights = (keys @ query / len(query) ** 0.5).softmax(dim=0)
        rows.append(weights @ values)
    return torch.stack(rows)


def test_hybrid_adds_dense_attention_with_vision_queries_zeroed():
    q, k, v, gates, vision = make_inputs(150)
    spec = NSASpec.released(num_selected_blocks=2, window_size=16)
    output = hybrid_released(q, k, v, gates, vision, spec=spec)
    nsa = nsa_released(
        *zero_text(q, k, v, vision),
        torch.where(vision[..., None, None], gates, 0.5),
        spec=spec,
    )
    for t in range(0, 150, 7):
        dense = plain_dense(q, k, v, t, zero_query=bool(vision[0, t]))
        torch.testing.assert_close(output[0, t], nsa[0, t] + dense)


def test_hybrid_ignores_gates_of_text_rows():
    q, k, v, gates, vision = make_inputs(100)
    spec = NSASpec.released(num_selected_blocks=2, window_size=16)
    other = torch.where(vision[..., None, None], gates, 0.9)
    assert torch.equal(
        hybrid_released(q, k, v, gates, vision, spec=spec),
        hybrid_released(q, k, v, other, vision, spec=spec),
    )


def test_rows_of_vision_only_add_the_mean_of_the_values():
    q, k, v, gates, _ = make_inputs(100)
    spec = NSASpec.released(window_size=16)
    output = hybrid_released(q, k, v, gates, torch.ones(1, 100, dtype=torch.bool), spec=spec)
    mean = torch.stack([v[0, : t + 1].mean(dim=0) for t in range(100)]).repeat_interleave(7, dim=1)
    torch.testing.assert_close(output[0], nsa_released(q, k, v, gates, spec=spec)[0] + mean)


@pytest.mark.parametrize(("num_rows", "spans"), [(1, None), (3, None), (90, [(0, 0)])])
def test_step_without_vision_tokens_is_dense_causal(num_rows, spans):
    q, k, v, gates, vision = make_inputs(90, spans=spans)
    q, gates = q[:, -num_rows:], gates[:, -num_rows:]
    result = hybrid_released(q, k, v, gates, vision, spec=NSASpec.released(), return_branches=True)
    padded = torch.cat((q.new_zeros(1, 90 - num_rows, HEADS, 4), q), dim=1)
    for i in range(0, num_rows, 11):
        t = 90 - num_rows + i
        torch.testing.assert_close(
            result.output[0, i], plain_dense(padded, k, v, t, zero_query=False)
        )
    assert not any(o.any() for o in result[1:4])
    assert all((lse == -torch.inf).all() for lse in result[4:7])
    assert (result.selected_blocks == -1).all()


def test_row_without_visible_block_gets_zero_and_no_gradient():
    q, k, v, gates, _ = make_inputs(130, dim=2)
    spec = NSASpec.released(compressed_mask="past_complete", branches=("compressed",))
    inputs = [x.requires_grad_() for x in (q, k, v, gates)]
    result = nsa_released(*inputs, spec=spec, return_branches=True)
    assert not result.o_cmp[:, :63].any()
    assert (result.lse_cmp[:, :63] == -torch.inf).all()
    gradients = torch.autograd.grad(result.output[:, :63].sum(), inputs)
    assert not any(gradient.any() for gradient in gradients)
    assert torch.autograd.grad(nsa_released(*inputs, spec=spec).sum(), q)[0].isfinite().all()


def test_query_chunks_change_neither_outputs_nor_gradients():
    *raw, gates, vision = make_inputs(130, dim=2)
    spec = NSASpec.released(num_selected_blocks=1, window_size=16)

    def run(query_chunk):
        inputs = [x.clone().requires_grad_() for x in (*raw, gates)]
        output = hybrid_released(*inputs, vision, spec=spec, query_chunk=query_chunk)
        weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
        return output, torch.autograd.grad((output * weight).sum(), inputs)

    whole, whole_gradients = run(None)
    for query_chunk in (23, 64, 129):
        output, gradients = run(query_chunk)
        torch.testing.assert_close(output, whole)
        torch.testing.assert_close(gradients, whole_gradients)


def test_gradients_are_those_of_finite_differences():
    *raw, gates, vision = make_inputs(80, dim=2)
    spec = NSASpec.released(num_selected_blocks=1, window_size=9)
    selected = select_released(*zero_text(*raw, vision)[:2], spec=spec)

    def function(q, k, v, gates):
        return hybrid_released(
            q, k, v, gates, vision, spec=spec, selected_blocks=selected, query_chunk=50
        )

    inputs = [x.requires_grad_() for x in (*raw, gates)]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_rows_are_those_of_the_whole_result():
    q, k, v, gates, vision = make_inputs(200)
    spec = NSASpec.released(num_selected_blocks=2, window_size=16)
    whole = hybrid_released(q, k, v, gates, vision, spec=spec, return_branches=True)
    rows = torch.tensor([3, 64, 101, 199])
    some = hybrid_released(q, k, v, gates, vision, spec=spec, return_branches=True, rows=rows)
    for name, part in some._asdict().items():
        torch.testing.assert_close(part, getattr(whole, name)[:, rows])


def test_unlisted_branch_counts_as_gate_zero():
    q, k, v, gates, _ = make_inputs(100)
    spec = NSASpec.released(window_size=16)
    without = gates.clone()
    without[..., 1] = 0
    assert torch.equal(
        nsa_released(q, k, v, gates, spec=spec.with_options(branches=("compressed", "window"))),
        nsa_released(q, k, v, without, spec=spec),
    )


def test_given_blocks_replace_the_selection_and_repeats_and_strangers_do_not_count():
    q, k, v, gates, _ = make_inputs(200)
    spec = NSASpec.released(num_selected_blocks=4, window_size=16)
    plain = torch.tensor([0, 2]).expand(1, 200, 4, 2)
    noisy = torch.tensor([2, -1, 0, 2, 99]).expand(1, 200, 4, 5)
    given, messy = (
        nsa_released(q, k, v, gates, spec=spec, selected_blocks=blocks, return_branches=True)
        for blocks in (plain, noisy)
    )
    assert torch.equal(given.output, messy.output)
    assert messy.selected_blocks[0, 0, 0].tolist() == [0, 2, -1, -1, -1]
    # Keys 64 to 127 are in no given block: their values cannot reach the selected branch.
    changed = v.clone()
    changed[:, 64:128] += 1
    again = nsa_released(
        q, k, changed, gates, spec=spec, selected_blocks=plain, return_branches=True
    )
    assert torch.equal(again.o_slc, given.o_slc)


def test_number_of_blocks_is_rounded_up_to_a_power_of_two():
    q, k, *_ = make_inputs(500)
    three, four = (
        select_released(
            q, k, spec=NSASpec.released(num_selected_blocks=n), rows=torch.tensor([499])
        )
        for n in (3, 4)
    )
    assert three.shape == (1, 1, 4, 4)
    assert torch.equal(three, four)


def test_later_blocks_reach_a_row_through_the_default_mask_only():
    """The published mask looks ahead; this is what tells it from the paper's."""
    q, k, v, gates, _ = make_inputs(200)
    changed = v.clone()
    changed[:, 150:] += 1
    for mask in MASKS:
        spec = NSASpec.released(window_size=16, compressed_mask=mask)
        before, after = (
            nsa_released(q, k, x, gates, spec=spec, rows=torch.arange(64)) for x in (v, changed)
        )
        assert torch.equal(before, after) == (mask != "current_and_later")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_outputs_have_the_dtype_of_the_inputs_and_stay_near_float64(dtype):
    *inputs, vision = make_inputs(150, dim=16, dtype=dtype)
    spec = NSASpec.released(window_size=16)
    selected = select_released(*zero_text(*inputs[:3], vision)[:2], spec=spec)
    result, exact = (
        hybrid_released(*values, vision, spec=spec, selected_blocks=selected, return_branches=True)
        for values in (inputs, [x.double() for x in inputs])
    )
    assert all(x.dtype == dtype for x in result[:4])
    assert all(x.dtype == torch.float32 for x in result[4:7])
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(result.output.double(), exact.output, rtol=tolerance, atol=tolerance)


def test_autocast_does_not_lower_the_precision():
    *inputs, vision = make_inputs(150, dtype=torch.float32)
    spec = NSASpec.released(window_size=16)
    plain = hybrid_released(*inputs, vision, spec=spec)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(hybrid_released(*inputs, vision, spec=spec), plain)


def arguments(num_tokens=70, **changes):
    q, k, v, gates, vision = make_inputs(num_tokens)
    return {"q": q, "k": k, "v": v, "gates": gates, "vision_mask": vision} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spec": NSASpec.paper()}, "released"),
        ({"spec": NSASpec.released(num_init_blocks=1)}, "forces no block"),
        ({"spec": NSASpec.released(num_local_blocks=1)}, "forces no block"),
        ({"spec": NSASpec.released(selection_scope="block")}, "for every token"),
        ({"rows": torch.tensor([3, 2])}, "ascending"),
        ({"rows": torch.tensor([2, 2])}, "ascending"),
        ({"rows": torch.tensor([70])}, "within 0 and 69"),
        ({"rows": torch.tensor([1.0])}, "int64"),
        ({"selected_blocks": torch.zeros(1, 69, 4, 2, dtype=torch.int32)}, r"\[1, 70, 4, n\]"),
        ({"selected_blocks": torch.zeros(1, 70, 4, 2)}, "integers"),
        ({"q": make_inputs(69)[0], "gates": make_inputs(69)[3]}, "whole sequence"),
    ],
)
def test_what_lies_outside_the_domain_is_refused(changes, message):
    call = {"spec": NSASpec.released()} | arguments(**changes)
    positional = [call.pop(name) for name in ("q", "k", "v", "gates", "vision_mask")]
    with pytest.raises(ValueError, match=message):
        hybrid_released(*positional, **call)


def test_nsa_of_fewer_rows_than_keys_is_refused():
    q, k, v, gates, _ = make_inputs(70)
    with pytest.raises(ValueError, match="hybrid"):
        nsa_released(q[:, -5:], k, v, gates[:, -5:], spec=NSASpec.released())


def test_public_ops_come_here():
    q, k, v, gates, vision = make_inputs(70)
    spec = NSASpec.released()
    assert torch.equal(
        nsa_attention(q, k, v, gates, spec=spec), nsa_released(q, k, v, gates, spec=spec)
    )
    assert torch.equal(
        hybrid_attention(q, k, v, gates, vision, spec=spec),
        hybrid_released(q, k, v, gates, vision, spec=spec),
    )
    with pytest.raises(ValueError, match="batch of 2"):
        nsa_attention(*(torch.cat((x, x)) for x in (q, k, v, gates)), spec=spec)
    with pytest.raises(ValueError, match="14 query"):
        nsa_attention(q[:, :, :14], k[:, :, :2], v[:, :, :2], gates[:, :, :14], spec=spec)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    *inputs, vision = make_inputs(200)
    spec = NSASpec.released(num_selected_blocks=2, window_size=16)
    expected = hybrid_released(*inputs, vision, spec=spec)
    output = hybrid_released(*(x.cuda() for x in inputs), vision.cuda(), spec=spec)
    torch.testing.assert_close(output.cpu(), expected)
