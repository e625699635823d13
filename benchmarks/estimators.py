"""Time, memory and density of the estimators of sparse prefill, at the shape of a 7B layer.

    python benchmarks/estimators.py --out benchmarks/results/nvidia-h200/estimators.json
    python benchmarks/estimators.py --device cpu --shape tiny-1k --out estimators.json

Each with its published settings: the heads of vertical_slash all keep 1,000 columns and 6,096
offsets, as most published heads do. What is timed makes lists of keys out of q and k; attention
over these lists is not part of it. Dense attention is timed in the same rounds, on a GPU alone.
Inputs are normal numbers, random or coherent, so attention is nearly flat and densities are high:
those of videos are in the comparison of methods.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videonsa.bench.attention_inputs import REGIMES, Inputs, make_inputs
from videonsa.bench.attention_shapes import SHAPES, Shape
from videonsa.bench.measure import METHOD, Task, measure_in_turn, watch_of
from videonsa.bench.op_calls import prepare_dense
from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts
from videonsa.ops.block_sparse import BlockLists, computed_pairs
from videonsa.ops.estimators.flexprefill import flexprefill_lists
from videonsa.ops.estimators.tri_shape import tri_shape_lists
from videonsa.ops.estimators.vertical_slash import vertical_slash_lists
from videonsa.ops.estimators.xattention import xattention_lists

REPEATS = 7
VERTICAL, SLASH = 1000, 6096
DENSE = "dense attention, cuDNN"

Estimate = Callable[[], BlockLists]


def estimates(q: Tensor, k: Tensor) -> dict[str, Estimate]:
    """What is timed, by the name of the method; q `[T, HQ, D]`, k `[T, H, D]`."""
    num_tokens, num_heads, _ = q.shape
    sizes = [(min(VERTICAL, num_tokens), min(SLASH, num_tokens))] * num_heads
    return {
        "tri_shape": partial(
            tri_shape_lists,
            num_tokens,
            num_heads,
            num_init=128,
            window=3968,
            num_last=min(100, num_tokens - 1),
            device=q.device,
        ),
        "minference": partial(vertical_slash_lists, q, k, sizes),
        "flexprefill": partial(flexprefill_lists, q, k),
        "flexprefill, all heads query-aware": partial(flexprefill_lists, q, k, tau=1.0),
        "xattention": partial(xattention_lists, q, k),
        "xattention, stride 8": partial(xattention_lists, q, k, stride=8),
    }


def tensors_of(estimate: Estimate) -> tuple[Tensor, ...]:
    """Of the lists that an estimate gives."""
    lists = estimate()
    found = (lists.row_starts, lists.tiles, lists.columns, lists.column_starts)
    return tuple(x for x in found if x is not None)


def density(lists: BlockLists, num_tokens: int) -> float:
    """The share of the causal pairs that the lists hold, over all heads."""
    pairs = int(computed_pairs(lists, num_tokens).sum())
    return pairs / (lists.num_heads * num_tokens * (num_tokens + 1) / 2)


def measure(shape: Shape, inputs: Inputs, device: torch.device) -> list[dict[str, Any]]:
    """All estimators on one kind of inputs, in turn."""
    q, k, _ = (x[0] for x in inputs[:3])
    named = estimates(q, k)
    densities = {name: density(estimate(), shape.tokens) for name, estimate in named.items()}
    tasks = {name: Task.of(partial(tensors_of, estimate)) for name, estimate in named.items()}
    if device.type == "cuda":
        dense = prepare_dense(inputs, shape, backend="cudnn").forward
        tasks[DENSE] = Task.of(lambda: (dense(),))
    found = measure_in_turn(tasks, watch=watch_of(device), repeats=REPEATS, progress=print)
    runs = [{"name": name, **measured.to_dict()} for name, measured in found.items()]
    return [run | {"density": densities.get(run["name"])} for run in runs]


def lines_of(regimes: Mapping[str, list[dict[str, Any]]]) -> list[str]:
    """For a reader: milliseconds with their spread, memory, and density."""
    lines = []
    for regime, runs in regimes.items():
        for run in runs:
            if run["ms"] is None:
                lines.append(f"{regime:9} {run['name']:36} {run['status']}: {run['error']}")
                continue
            line = f"{regime:9} {run['name']:36} {run['ms']:8.2f} ms"
            line += f" ({run['ms_min']:.2f} to {run['ms_max']:.2f}, host {run['host_ms']:.1f})"
            if run["extra_gb"] is not None:
                line += f", {run['extra_gb']:.2f} GB"
            if run["density"] is not None:
                line += f", density {run['density']:.1%}"
            lines.append(line)
    return lines


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shape", choices=SHAPES, default="7b-128k", metavar="NAME")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    shape, device = SHAPES[options.shape], torch.device(options.device)
    regimes = {}
    for regime in REGIMES:
        with torch.inference_mode():
            inputs = make_inputs(shape, [regime], device=device)[regime]
            regimes[regime] = measure(shape, inputs, device)
    result = {
        "shape": shape.text,
        "method": METHOD,
        "regimes": regimes,
        "machine": measurement_facts(device),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")
    print("\n".join(lines_of(regimes)))


if __name__ == "__main__":
    main()
