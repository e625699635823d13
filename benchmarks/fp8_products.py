"""Times of the products of a 7B layer and of a block of its tower: bf16, fp8, and torchao's fp8.

    python benchmarks/fp8_products.py --out benchmarks/results/nvidia-h200/fp8_products.json

`bf16`: PyTorch's Linear. `scaled`: `torch._scaled_mm` alone, of rows that are quantised already;
`exact`: the same with sums in float32 throughout. `own`: what the model does, rows quantised once
for the products that share them. `torchao`: its dynamic quantisation, row by row, as it comes.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts, package_versions
from videonsa.models.checkpoints.quantised import import_torchao
from videonsa.models.fp8 import Fp8Linear
from videonsa.models.fused import silu_mul
from videonsa.models.linears import linear_rows
from videonsa.ops.scaled import ScaledRows, scale_gated_rows, scale_rows

TOKENS = 2**17
GROUPS: dict[str, tuple[int, tuple[int, ...], bool]] = {
    "q, k, v": (3584, (3584, 512, 512), True),
    "o": (3584, (3584,), False),
    "gate, up": (3584, (18944, 18944), False),
    "down": (18944, (3584,), False),
    "tower: q, k, v": (1280, (3840,), True),
    "tower: o": (1280, (1280,), True),
    "tower: gate, up": (1280, (3456, 3456), True),
    "tower: down": (3456, (1280,), True),
}
"""Products of the same rows: their width, their outputs, and whether they have biases."""
LAYERS, BLOCKS, PATCHES_A_TOKEN = 28, 32, 4
FEW_ROWS = (1, 4, 16)
COPIES = 4
"""Of the weights of few rows, in turn: more than the L2 cache holds."""

Work = Callable[[], object]


def time_ms(work: Work, repeats: int) -> float:
    """Median of runs after the first, by CUDA events."""
    work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def graph_ms(work: Work, calls: int = 5) -> float:
    """Of one of several calls in a CUDA graph: without launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            work()
    return time_ms(graph.replay, 5) / calls


def linears_of(group: str, device: torch.device) -> list[nn.Linear]:
    """The layers that share their rows, with random weights."""
    inner, outputs, bias = GROUPS[group]
    options = {"bias": bias, "dtype": torch.bfloat16, "device": device}
    return [nn.Linear(inner, outer, **options) for outer in outputs]


def in_torchao(linears: Iterable[nn.Linear]) -> list[nn.Module]:
    """The same layers as torchao quantises them, each with rows of its own."""
    torchao = import_torchao()
    copies = nn.Sequential()
    for linear in linears:
        copy = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None)
        copies.append(copy.to(linear.weight))
        copies[-1].load_state_dict(linear.state_dict())
    config = torchao.Float8DynamicActivationFloat8WeightConfig(granularity=torchao.PerRow())
    torchao.quantize_(copies, config)
    return list(copies)


def scaled_products(rows: ScaledRows, layers: Iterable[Fp8Linear], *, fast: bool) -> list[Tensor]:
    """`torch._scaled_mm` alone."""
    return [
        torch._scaled_mm(
            rows.values,
            layer.weight.t(),
            scale_a=rows.scales,
            scale_b=layer.scales.t(),
            bias=layer.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=fast,
        )
        for layer in layers
    ]


def group_times(group: str, num_rows: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Milliseconds of one group by all ways."""
    linears = linears_of(group, device)
    inner, outputs, _ = GROUPS[group]
    own, torchao = [Fp8Linear.of(linear) for linear in linears], in_torchao(linears)
    x = torch.randn(num_rows, inner, dtype=torch.bfloat16, device=device)
    rows = scale_rows(x)
    work: dict[str, Work] = {
        "bf16": lambda: [linear(x) for linear in linears],
        "scaled": lambda: scaled_products(rows, own, fast=True),
        "exact": lambda: scaled_products(rows, own, fast=False),
        "own": lambda: linear_rows(x, own),
        "quantising": lambda: scale_rows(x),
        "torchao": lambda: [linear(x) for linear in torchao],
    }
    if "down" in group:
        up = torch.randn_like(x)
        work |= {
            "silu times up": lambda: silu_mul(x, up),
            "silu times up, quantised": lambda: scale_gated_rows(x, up),
        }
    times = {name: time_ms(f, repeats) for name, f in work.items()}
    operations = 2 * num_rows * inner * sum(outputs)
    return (
        times
        | {"tflops_bf16": 1e-9 * operations / times["bf16"]}
        | {"tflops_scaled": 1e-9 * operations / times["scaled"]}
    )


def sums_of(groups: dict[str, dict[str, Any]], num_rows: int) -> dict[str, dict[str, float]]:
    """Seconds of all layers and of all blocks for `TOKENS`, that many rows at a time."""
    found: dict[str, dict[str, float]] = {"decoder": {}, "tower": {}}
    for group, times in groups.items():
        in_tower = group.startswith("tower")
        calls = BLOCKS * PATCHES_A_TOKEN if in_tower else LAYERS
        sums = found["tower" if in_tower else "decoder"]
        for name, ms in times.items():
            if not name.startswith("tflops"):
                sums[name] = sums.get(name, 0.0) + 1e-3 * ms * calls * TOKENS / num_rows
    return found


def few_row_ways(x: Tensor, group: str) -> dict[str, Work]:
    """One group of products by all ways, `COPIES` times."""
    copies = [linears_of(group, x.device) for _ in range(COPIES)]
    quantised = [[Fp8Linear.of(linear) for linear in linears] for linears in copies]
    return {
        "bf16": lambda: [linear(x) for linears in copies for linear in linears],
        "bf16, few rows": lambda: [linear_rows(x, linears) for linears in copies],
        "own": lambda: [linear_rows(x, layers) for layers in quantised],
        "scaled": lambda: [
            scaled_products(scale_rows(x), layers, fast=True) for layers in quantised
        ],
    }


def few_row_times(num_rows: int, device: torch.device) -> dict[str, dict[str, float]]:
    """Microseconds of the products of a decoder layer, in a graph, weights from memory."""
    found = {}
    for group in [name for name in GROUPS if not name.startswith("tower")]:
        x = torch.randn(num_rows, GROUPS[group][0], dtype=torch.bfloat16, device=device)
        ways = few_row_ways(x, group)
        found[group] = {name: 1e3 * graph_ms(f) / COPIES for name, f in ways.items()}
    return found


@torch.inference_mode()
def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device, begin = torch.device("cuda"), time.perf_counter()
    torch.manual_seed(0)
    result: dict[str, Any] = {
        "unit": "ms; of few rows, us; sums in s",
        "machine": measurement_facts(device) | package_versions("torchao", "liger-kernel"),
        "rows": {},
        "sums": {},
        "few_rows": {},
    }
    for num_rows, repeats in ((2**14, 9), (2**17, 3)):
        groups = {group: group_times(group, num_rows, device, repeats) for group in GROUPS}
        result["rows"][num_rows] = groups
        result["sums"][num_rows] = sums_of(groups, num_rows)
        for group, times in groups.items():
            print(f"{num_rows:>7} {group:<16}", {k: round(v, 3) for k, v in times.items()})
        for what, sums in result["sums"][num_rows].items():
            print(f"{num_rows:>7} {what}, s:", {k: round(v, 3) for k, v in sums.items()})
    for num_rows in FEW_ROWS:
        result["few_rows"][num_rows] = few_row_times(num_rows, device)
        print(f"{num_rows:>7} rows, us:", result["few_rows"][num_rows])
    result["seconds"] = time.perf_counter() - begin
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
