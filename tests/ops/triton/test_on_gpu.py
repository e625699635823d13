"""What only a GPU can show: the real dtypes and lengths, no waiting, graphs, memory, repetition."""

from itertools import product

import pytest
import torch
from kernel_cases import (
    Case,
    assert_close_to_reference,
    cumulative,
    differing_rows,
    make_inputs,
    no_waiting,
    run_kernels,
)

from videonsa.ops import NSAResult, hybrid_attention, hybrid_layout, nsa_attention

pytestmark = pytest.mark.gpu

BF16, HALF = torch.bfloat16, torch.float16
LAYER_7B = {"group": 7, "kv_heads": 4, "dim": 128, "s": 64, "n": 32, "w": 256}
LAYER_3B = LAYER_7B | {"group": 8, "kv_heads": 2}
LAYERS = {"7B": LAYER_7B, "3B": LAYER_3B}
REGIMES = {"random": 0.0, "coherent": 0.9}
DTYPES = {"bfloat16": BF16, "float16": HALF}
PER_BLOCK = {"selection_scope": "block"}
NARROW = {"kv_heads": 2, "s": 64, "n": 8, "w": 256}
STUDY = {"group": 3, "kv_heads": 2, "dim": 32, "s": "frame", "n": 8, "w": 64}

CASES = {
    f"{layer}, {dtype}, {regime}, {rows}": Case(
        **LAYERS[layer], dtype=DTYPES[dtype], coherence=REGIMES[regime], rows=rows
    )
    for layer, dtype, regime, rows in product(LAYERS, DTYPES, REGIMES, (1000, 4096))
} | {
    "frames of 60": Case(**LAYER_7B | {"s": "frame", "n": 8}, frames=(60,) * 50, rows=3000),
    "coherent frames of 54": Case(
        **LAYER_7B | {"s": "frame", "n": 8}, frames=(54,) * 40, rows=2160, coherence=0.9
    ),
    "frames of more than 128": Case(
        **NARROW | {"s": "frame"}, group=7, dim=128, frames=(150, 33) * 12, rows=2196
    ),
    "the study's": Case(**STUDY, frames=(16,) * 200, rows=3200),
    "block scope": Case(**LAYER_7B, rows=4096, options=PER_BLOCK),
    "block scope of frames": Case(
        **LAYER_7B | {"s": "frame"}, frames=(60,) * 50, rows=3000, options=PER_BLOCK
    ),
    "n of 64": Case(**LAYER_7B | {"s": 16, "n": 64}, rows=3000),
    "more blocks than are ranked at once": Case(**NARROW | {"s": 16}, group=1, rows=10000),
    "blocks of 128": Case(**LAYER_7B | {"s": 128, "n": 8}, rows=3000),
    "blocks of 20": Case(**LAYER_7B | {"s": 20}, rows=2000),
    "sixteen heads, dim 80": Case(**NARROW, group=16, dim=80, rows=2000),
    "three heads, dim 48": Case(**NARROW, group=3, dim=48, rows=2000),
    "one head, dim 16": Case(**NARROW, group=1, dim=16, rows=2000),
    "dim 64": Case(**NARROW, group=7, dim=64, rows=2000),
    "init and local blocks": Case(
        **LAYER_7B, rows=4096, options={"num_init_blocks": 1, "num_local_blocks": 2}
    ),
    "suffix": Case(**LAYER_7B, rows=300, keys=8000),
    "inside a static cache": Case(**LAYER_7B, rows=300, keys=8000, q_offset=5000),
    "batch of two": Case(**LAYER_7B, rows=1500, batch=2),
    "packed": Case(
        **LAYER_7B, q_lengths=(700, 0, 300, 1), k_lengths=(1500, 64, 300, 77), coherence=0.5
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_error_is_at_most_twice_that_of_plain_pytorch(case, device, record_property):
    inputs = make_inputs(case, device)
    if case.q_offset is not None:
        for x in inputs[1:3]:
            x[:, case.q_offset + case.rows :] = torch.nan
    found = run_kernels(case, inputs)
    record_property("differing_rows", differing_rows(case, inputs, found.selected_blocks))
    assert_close_to_reference(case, inputs, found)


@pytest.mark.parametrize("regime", REGIMES)
def test_twenty_runs_give_the_same_bits(regime, device):
    case = Case(**LAYER_7B, rows=8192, coherence=REGIMES[regime])
    inputs = make_inputs(case, device)
    first = run_kernels(case, inputs)
    for _ in range(20):
        for ours, theirs in zip(run_kernels(case, inputs), first, strict=True):
            assert torch.equal(ours, theirs)


def test_a_captured_graph_replays_the_bits_of_a_call(device):
    case = Case(**LAYER_7B, rows=4096)
    inputs, others = (make_inputs(case, device, seed=seed) for seed in (0, 1))
    wanted = run_kernels(case, others, return_branches=False)
    run_kernels(case, inputs, return_branches=False)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = run_kernels(case, inputs, return_branches=False)
    for x, other in zip(inputs, others, strict=True):
        x.copy_(other)
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output, wanted)


@pytest.mark.parametrize(
    "case",
    [
        Case(**LAYER_7B, rows=4096),
        Case(**LAYER_7B, rows=4096, options=PER_BLOCK),
        Case(**LAYER_7B, q_lengths=(700, 0, 300), k_lengths=(1500, 64, 300)),
        Case(**LAYER_7B | {"s": "frame"}, frames=(60,) * 50, rows=3000),
    ],
    ids=["blocks", "block scope", "packed", "frames"],
)
def test_a_call_never_waits_for_the_gpu(case, device):
    inputs, arguments = make_inputs(case, device), case.arguments(device)
    with torch.no_grad():
        wanted = nsa_attention(*inputs, **arguments, backend="triton")
        with no_waiting():
            found = nsa_attention(*inputs, **arguments, backend="triton")
    assert torch.equal(found, wanted)


def test_lengths_on_host_and_device_give_the_same_bits(device):
    case = Case(**LAYER_7B, q_lengths=(700, 0, 300), k_lengths=(1500, 64, 300))
    inputs = make_inputs(case, device)
    on_host = {
        "cu_seqlens_q": cumulative(case.q_lengths, torch.device("cpu")),
        "cu_seqlens_k": cumulative(case.k_lengths, torch.device("cpu")),
    }
    for ours, theirs in zip(
        run_kernels(case, inputs, **on_host), run_kernels(case, inputs), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_compiled_function_has_one_graph_and_the_same_bits(device):
    case = Case(**LAYER_7B, rows=2048)
    inputs = make_inputs(case, device)
    torch._dynamo.reset()

    def attend(*tensors):
        return nsa_attention(*tensors, spec=case.spec, backend="triton")

    with torch.no_grad():
        found = torch.compile(attend, fullgraph=True)(*inputs)
    assert torch.equal(found, run_kernels(case, inputs, return_branches=False))


def test_autocast_takes_float32_inputs_to_its_dtype(device):
    case = Case(**LAYER_7B, rows=1000, dtype=torch.float32)
    inputs = make_inputs(case, device)
    with torch.autocast("cuda", dtype=BF16):
        found = run_kernels(case, inputs)
    wanted = run_kernels(case, [*(x.to(BF16) for x in inputs[:3]), inputs[3]])
    assert found.output.dtype == torch.float32
    assert torch.equal(found.output, wanted.output.float())


def test_default_backend_takes_the_kernels(device):
    case = Case(**LAYER_7B, rows=1000)
    inputs = make_inputs(case, device)
    with torch.no_grad():
        found = nsa_attention(*inputs, spec=case.spec)
    assert torch.equal(found, run_kernels(case, inputs, return_branches=False))


def extra_bytes(num_rows, device):
    """Peak of a call minus its inputs and its output."""
    case = Case(**LAYER_7B, rows=num_rows)
    inputs = make_inputs(case, device)
    run_kernels(case, inputs, return_branches=False)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    output = run_kernels(case, inputs, return_branches=False)
    return torch.cuda.max_memory_allocated() - before - output.nbytes


def test_memory_grows_no_faster_than_the_rows(device):
    at_16k, at_32k = (extra_bytes(num_rows, device) for num_rows in (2**14, 2**15))
    assert at_32k <= 2.1 * at_16k
    assert at_32k <= 4 * 10**9, "the allowance at 128K"


def test_offsets_beyond_32_bits_are_right(device):
    """A million rows: q has 3.8e9 elements. The last rows against the reference on them alone."""
    layer, num_rows = LAYER_7B | {"n": 4}, 2**20
    generator = torch.Generator(device).manual_seed(0)

    def normal(heads):
        shape = (1, num_rows, heads, 128)
        return torch.randn(shape, generator=generator, device=device, dtype=BF16)

    q, k, v = normal(28), normal(4), normal(4)
    gates = torch.rand(1, num_rows, 28, 3, generator=generator, device=device, dtype=BF16)
    assert q.numel() > 2**31
    case = Case(**layer, rows=16, keys=num_rows, gate_dtype=BF16)
    result = run_kernels(case, (q, k, v, gates))
    last = NSAResult(*(x[:, -16:].clone() for x in result))
    inputs = (q[:, -16:].clone(), k, v, gates[:, -16:].clone())
    del q, gates, result
    differing_rows(case, inputs, last.selected_blocks)
    assert_close_to_reference(case, inputs, last)


def test_vision_rows_of_a_sequence_are_those_of_the_stream(device):
    case = Case(**LAYER_7B, rows=2000)
    inputs = make_inputs(case, device)
    vision = torch.zeros(1, 2000, dtype=torch.bool, device=device)
    vision[:, 20:900], vision[:, 950:1980] = True, True
    layout = hybrid_layout(vision, spec=case.spec, num_rows=2000)
    options = {"spec": case.spec, "layout": layout}
    with torch.no_grad():
        reference = hybrid_attention(*inputs, vision, backend="reference", **options)
        hybrid_attention(*inputs, vision, backend="triton", **options)
        with no_waiting():
            found = hybrid_attention(*inputs, vision, backend="triton", **options)
        stream = [x[vision][None] for x in inputs]
        wanted = nsa_attention(*stream, spec=case.spec, backend="triton")
    assert torch.equal(found[vision], wanted[0])
    noise = 4 * torch.finfo(case.dtype).eps
    torch.testing.assert_close(found[~vision], reference[~vision], rtol=noise, atol=noise)
