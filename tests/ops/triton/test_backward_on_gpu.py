"""Gradients on a GPU: real dtypes and sizes, repetition, no waiting, graphs, memory, training."""

from itertools import product

import pytest
import torch
from gradient_cases import assert_gradients_close, kernel_gradients, leaves, make_grad
from kernel_cases import Case, make_inputs, no_waiting

from videonsa.ops import NSASpec, hybrid_attention, hybrid_layout, nsa_attention

pytestmark = pytest.mark.gpu

BF16, HALF = torch.bfloat16, torch.float16
LAYER_7B = {"group": 7, "kv_heads": 4, "dim": 128, "s": 64, "n": 8, "w": 256}
NARROW = LAYER_7B | {"kv_heads": 2}
STUDY = {"group": 3, "kv_heads": 2, "dim": 32, "s": "frame", "n": 8, "w": 64}
CASES = {
    f"{group} heads, {dtype}, {regime}, {rows}": Case(
        **LAYER_7B | {"group": group, "kv_heads": 28 // group},
        dtype=dtype,
        coherence=regime,
        rows=rows,
    )
    for group, dtype, regime, rows in product((7,), (BF16, HALF), (0.0, 0.9), (1000, 2048))
} | {
    "eight heads": Case(**NARROW | {"group": 8}, rows=2000),
    "sixteen heads, dim 80": Case(**NARROW | {"group": 16, "dim": 80}, rows=1500),
    "three heads, dim 48": Case(**NARROW | {"group": 3, "dim": 48}, rows=1500),
    "one head, dim 16": Case(**NARROW | {"group": 1, "dim": 16}, rows=1500),
    "dim 64": Case(**NARROW | {"dim": 64}, rows=1500),
    "frames of 60": Case(**NARROW | {"s": "frame"}, frames=(60,) * 30, rows=1800),
    "coherent frames of 54": Case(
        **NARROW | {"s": "frame"}, frames=(54,) * 30, rows=1620, coherence=0.9
    ),
    "frames of more than 128": Case(**NARROW | {"s": "frame"}, frames=(150, 33) * 9, rows=1647),
    "the study's": Case(**STUDY, frames=(16,) * 120, rows=1920),
    "blocks of 128": Case(**NARROW | {"s": 128}, rows=2000),
    "blocks of 16, n of 64": Case(**NARROW | {"s": 16, "n": 64}, rows=1500),
    "blocks of 20": Case(**NARROW | {"s": 20}, rows=1000),
    "block scope": Case(**NARROW, rows=2048, options={"selection_scope": "block"}),
    "suffix": Case(**NARROW, rows=300, keys=3000),
    "batch of two": Case(**NARROW, rows=700, batch=2),
    "packed": Case(
        **NARROW, q_lengths=(700, 0, 300, 1), k_lengths=(1500, 64, 300, 77), coherence=0.5
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_error_is_at_most_twice_that_of_plain_pytorch(case, device):
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs)
    assert_gradients_close(case, inputs, grad, kernel_gradients(case, inputs, grad))


@pytest.mark.parametrize("coherence", [0.0, 0.9], ids=("random", "coherent"))
def test_a_thousand_runs_give_the_same_bits(coherence, device):
    case = Case(**LAYER_7B, rows=2048, coherence=coherence)
    own = leaves(make_inputs(case, device))
    grad = make_grad(case, own)
    output = nsa_attention(*own, spec=case.spec, backend="triton")
    first = torch.autograd.grad(output, own, grad, retain_graph=True)
    differs = torch.zeros((), dtype=torch.bool, device=device)
    for _ in range(1000):
        again = torch.autograd.grad(output, own, grad, retain_graph=True)
        for ours, theirs in zip(again, first, strict=True):
            differs |= (ours.view(torch.uint8) != theirs.view(torch.uint8)).any()
    assert not differs


def test_forward_and_backward_never_wait_for_the_gpu(device):
    case = Case(**LAYER_7B, rows=4096)
    own = leaves(make_inputs(case, device))
    grad = make_grad(case, own)
    wanted = kernel_gradients(case, own, grad)
    with no_waiting():
        output = nsa_attention(*own, spec=case.spec, backend="triton")
        found = torch.autograd.grad(output, own, grad)
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("selection", ["scores", "random"])
def test_text_and_vision_of_alike_samples_never_wait_for_the_gpu(selection, device):
    case = Case(**NARROW | {"dim": 64}, rows=1000, batch=4, options={"selection": selection})
    own = leaves(make_inputs(case, device))
    grad = make_grad(case, own)
    vision = torch.zeros(4, 1000, dtype=torch.bool, device=device)
    vision[:, 20:800] = True
    layout = hybrid_layout(vision, spec=case.spec, num_rows=1000)
    assert layout.num_alike == 4
    assert len(layout.text[0].runs) == 2

    def gradients(**options):
        output = hybrid_attention(*own, vision, spec=case.spec, **options)
        return output, *torch.autograd.grad(output, own, grad)

    gradients(layout=layout)  # compiles
    with no_waiting():
        found = gradients(layout=layout)
    wanted = gradients(backend="reference")
    for ours, theirs in zip(found, wanted, strict=True):
        error = (ours - theirs).float().abs()
        # A near tie selects another block: a few rows may differ.
        assert (error > 0.02 * theirs.float().abs().max()).float().mean() < 1e-3


def test_a_captured_graph_replays_the_gradients_of_a_call(device):
    case = Case(**LAYER_7B, rows=2048)
    own, others = (leaves(make_inputs(case, device, seed=seed)) for seed in (0, 1))
    grad = make_grad(case, own)
    wanted = kernel_gradients(case, others, grad)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.autograd.grad(nsa_attention(*own, spec=case.spec), own, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = torch.autograd.grad(nsa_attention(*own, spec=case.spec), own, grad)
    with torch.no_grad():
        for x, other in zip(own, others, strict=True):
            x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    for ours, theirs in zip(found, wanted, strict=True):
        assert torch.equal(ours, theirs)


def extra_bytes(num_rows, device):
    """Peak of forward and backward minus inputs, output and gradients."""
    case = Case(**LAYER_7B | {"n": 32}, rows=num_rows)
    own = leaves(make_inputs(case, device))
    grad = make_grad(case, own)
    kernel_gradients(case, own, grad)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = nsa_attention(*own, spec=case.spec)
    found = torch.autograd.grad(output, own, grad)
    returned = output.nbytes + sum(x.nbytes for x in found)
    return torch.cuda.max_memory_allocated() - before - returned


def test_memory_grows_no_faster_than_the_rows(device):
    at_16k, at_32k = (extra_bytes(num_rows, device) for num_rows in (2**14, 2**15))
    assert at_32k <= 2.1 * at_16k
    at_128k = at_16k + 7 * (at_32k - at_16k)
    assert at_128k <= 6 * 10**9, "outputs that nobody differentiates get no gradients of zeros"


def test_compiled_function_has_one_graph_and_the_same_gradients(device):
    case = Case(**LAYER_7B, rows=2048)
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs)
    wanted = kernel_gradients(case, inputs, grad)
    torch._dynamo.reset()

    def attend(*tensors):
        return nsa_attention(*tensors, spec=case.spec)

    own = leaves(inputs)
    output = torch.compile(attend, fullgraph=True)(*own)
    for ours, theirs in zip(torch.autograd.grad(output, own, grad), wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_autocast_gives_float32_gradients_of_bfloat16_kernels(device):
    case = Case(**LAYER_7B, rows=1000, dtype=torch.float32)
    inputs = make_inputs(case, device)
    grad = make_grad(case, inputs).to(BF16).float()
    own = leaves(inputs)
    with torch.autocast("cuda", dtype=BF16):
        output = nsa_attention(*own, spec=case.spec)
    found = torch.autograd.grad(output, own, grad)
    halves = [*(x.to(BF16) for x in inputs[:3]), inputs[3]]
    wanted = kernel_gradients(case, halves, grad.to(BF16))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())


def toy_losses(backend, dtype, device, *, steps=200):
    """Two layers of projections and attention that learn to repeat an early vector; the losses."""
    generator = torch.Generator().manual_seed(0)
    width, heads, kv_heads, dim, rows = 128, 8, 2, 64, 512
    spec = NSASpec(block_size=32, num_selected_blocks=4, window_size=32)
    sizes = (heads * dim, kv_heads * dim, kv_heads * dim, heads * 3)

    def normal(*shape, scale=1.0):
        return (scale * torch.randn(*shape, generator=generator)).to(device)

    weights = [
        [normal(width, sum(sizes), scale=width**-0.5), normal(heads * dim, width, scale=0.04)]
        for _ in range(2)
    ]
    for layer in weights:
        for weight in layer:
            weight.requires_grad_()
    x = normal(1, rows, width)
    target = x[:, :1].expand(-1, rows, -1) + 0.5 * x.roll(100, dims=1)
    optimizer = torch.optim.AdamW([w for layer in weights for w in layer], lr=3e-3)
    losses = []
    for _ in range(steps):
        h = x
        for fused, out in weights:
            q, k, v, g = (h @ fused).split(sizes, dim=2)
            parts = [y.unflatten(2, (-1, dim)).to(dtype) for y in (q, k, v)]
            gates = g.unflatten(2, (-1, 3)).sigmoid()
            attended = nsa_attention(*parts, gates, spec=spec, backend=backend)
            h = h + attended.flatten(2).float() @ out
        loss = (h - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).cpu()


def test_a_toy_of_two_layers_learns_as_with_the_reference(device):
    """Within bfloat16 noise: that between the reference in bfloat16 and in float32, doubled."""
    ours = toy_losses("triton", BF16, device)
    in_bf16, in_float32 = (
        toy_losses("reference", dtype, device) for dtype in (BF16, torch.float32)
    )
    assert ours[-1] < 0.5 * ours[0], "the toy learns nothing"
    noise = ((in_bf16 - in_float32) / in_float32).abs().max()
    difference = ((ours - in_bf16) / in_bf16).abs().max()
    assert difference <= 2 * noise + 1e-3, f"losses differ by {difference:.2g}, noise {noise:.2g}"
