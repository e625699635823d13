"""The arithmetic of the kernels' buffers, against the kernels and against a GPU's measurements."""

import json
from pathlib import Path

import pytest
import torch
from allocations import allocations

from videonsa.ops.nsa import nsa_attention
from videonsa.ops.spec import NSASpec
from videonsa.ops.triton.memory import AttentionShape, kernel_bytes, released_bytes
from videonsa.ops.triton.tuning import hopper, interpreter

MEASURED = Path(__file__).parents[3] / "benchmarks/results/nvidia-h200/attention.json"
SHAPES = json.loads(MEASURED.read_text())["shapes"]


@pytest.mark.parametrize("measured", SHAPES, ids=[one["shape"]["name"] for one in SHAPES])
def test_buffers_are_those_measured_on_a_gpu(measured):
    named = measured["shape"]
    size = named["frame_size"] if named["block_size"] == "frame" else named["block_size"]
    shape = AttentionShape(
        num_rows=named["tokens"],
        num_keys=named["tokens"],
        num_blocks=-(-named["tokens"] // size),
        num_selected=named["num_selected"],
        num_heads=named["query_heads"],
        num_kv_heads=named["kv_heads"],
        head_dim=named["head_dim"],
        value_bytes=2,
    )
    predicted = kernel_bytes(shape, hopper(size))
    runs = [run for run in measured["runs"] if run["op"] == "videonsa"]
    assert len(runs) == 2
    for run in runs:  # what was measured leaves out the output, which is not alive at the peak
        assert predicted == pytest.approx(run["extra_gb"] * 1e9 + shape.query_bytes, rel=0.01)


def inputs(rows, heads, kv_heads, dim):
    torch.manual_seed(0)
    q = torch.randn(1, rows, heads, dim, dtype=torch.float16)
    k, v = (torch.randn(1, rows, kv_heads, dim, dtype=torch.float16) for _ in range(2))
    return q, k, v, torch.rand(1, rows, heads, 3, dtype=torch.float16)


@pytest.mark.parametrize(
    ("rows", "heads", "kv_heads", "dim", "block", "selected"),
    [(70, 14, 2, 32, 16, 4), (53, 6, 3, 16, 4, 6)],
)
def test_buffers_are_those_of_a_run(rows, heads, kv_heads, dim, block, selected):
    spec = NSASpec(block_size=block, num_selected_blocks=selected, window_size=16)
    arguments = inputs(rows, heads, kv_heads, dim)
    with allocations(torch.Tensor) as counted:
        nsa_attention(*arguments, spec=spec, backend="triton")
    shape = AttentionShape(
        num_rows=rows,
        num_keys=rows,
        num_blocks=-(-rows // block),
        num_selected=selected,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        value_bytes=2,
    )
    assert kernel_bytes(shape, interpreter(block)) == pytest.approx(counted.peak, rel=0.05)


@pytest.mark.parametrize(("tokens", "measured_gb"), [(65_536, 2.9), (131_072, 5.8)])
def test_buffers_of_the_released_preset_are_those_measured_on_a_gpu(tokens, measured_gb):
    """The numbers of docs/kernels.md: one layer on an H200, its output left out."""
    shape = AttentionShape(
        num_rows=tokens,
        num_keys=tokens,
        num_blocks=tokens // 64,
        num_selected=32,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        value_bytes=2,
    )
    predicted = released_bytes(shape, hopper(64)) - shape.query_bytes
    assert predicted == pytest.approx(measured_gb * 1e9, rel=0.05)
