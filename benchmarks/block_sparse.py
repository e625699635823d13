"""Time of block-sparse attention at the shape of a 7B layer, beside dense attention and NSA.

cd benchmarks/results/nvidia-h200
python ../../block_sparse.py --out block_sparse.json
python ../../block_sparse.py --out tried.json --try

Lists are forced: random blocks of 128 at given densities, and MInference's vertical-slash pattern
with the sizes of its published file for Qwen2.5-7B, at random places. Estimators are not timed.
Before anything is timed, rows of every result are checked against float64. `factor` is the time
over that of dense attention times the share of its causal pairs (for blocks: of its causal tiles)
that the lists hold: 1 where a pair costs what it costs in dense attention.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from videonsa.bench.attention_inputs import make_inputs
from videonsa.bench.attention_shapes import SHAPES
from videonsa.bench.measure import METHOD, Task, measure_in_turn, watch_of
from videonsa.bench.op_calls import prepare_dense, prepare_videonsa
from videonsa.disk import write_atomic
from videonsa.machine import measurement_facts
from videonsa.ops.block_sparse import BlockLists, check_lists, computed_pairs, from_mask
from videonsa.ops.block_sparse_reference import attended
from videonsa.ops.estimators.vertical_slash import NUM_INIT, NUM_LOCAL, lists_of_lines
from videonsa.ops.triton.block_sparse import block_sparse_triton
from videonsa.ops.triton.sparse_tuning import SparseConfig

SHAPE = SHAPES["7b-128k"]
DENSITIES = (0.1, 0.3, 0.6)
HEADS = ((1000, 6096),) * 15 + ((3500, 100),) * 7 + ((30, 800),) * 3 + ((500, 700),) * 2
VERTICAL_SLASH = {
    "1000 columns, 1000 slashes": ((1000, 1000),) * 28,
    "1000 columns, 6096 slashes": ((1000, 6096),) * 28,
    "1000 columns, 8500 slashes": ((1000, 8500),) * 28,
    "3500 columns, 100 slashes": ((3500, 100),) * 28,
    "as published": (*HEADS, (100, 800)),
}
"""Columns and slashes of each query head; the first and third have about 10 and 60 % of pairs, the
last is the mix of all published heads."""
RUN = 8
"""Slashes beside one another: a video's slashes gather around multiples of a frame."""
CHECKED = 8
"""Query tiles of a result that are checked."""
MOST_ERROR = 5e-3
"""Of their values, relative to float64 in the norm."""
REPEATS = 7
TRIED = (
    "blocks of 128, 30%",
    "vertical-slash, 1000 columns, 6096 slashes",
    "vertical-slash, 3500 columns, 100 slashes",
)
"""Cases that other settings are measured with."""
CANDIDATES = {
    (128, False): (
        SparseConfig(64, 8, 2, maxnreg=128, tma=True),
        SparseConfig(64, 8, 3, maxnreg=128, tma=True),
        SparseConfig(64, 8, 2, maxnreg=128),
        SparseConfig(64, 8, 3, tma=True),
        SparseConfig(64, 4, 2, tma=True),
        SparseConfig(128, 8, 2, tma=True),
        SparseConfig(128, 8, 3, tma=True),
    ),
    (64, True): (
        *(
            SparseConfig(64, 4, stages, tma=True, column_n=columns, column_stages=of_columns)
            for stages in (2, 3)
            for columns, of_columns in ((64, 3), (64, 2), (32, 3), (32, 4))
        ),
        SparseConfig(32, 4, 3, maxnreg=168, tma=True, column_n=32),
        SparseConfig(32, 4, 3, maxnreg=128, tma=True, column_n=32),
        SparseConfig(64, 4, 2, maxnreg=168, tma=True),
        SparseConfig(64, 4, 2),
    ),
}
"""By the rows of a query tile, and whether there are columns."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Lists, and what they hold of dense attention."""

    name: str
    lists: BlockLists
    share: float
    """Of the causal tiles, or pairs, of dense attention."""
    pairs: int
    """Of all heads."""


def cases(device: torch.device) -> Iterator[Case]:
    """Blocks of 128 at each density, then vertical-slash."""
    generator = torch.Generator(device).manual_seed(0)
    num_blocks = SHAPE.tokens // 128
    causal_pairs = SHAPE.query_heads * SHAPE.tokens * (SHAPE.tokens + 1) // 2
    for density in DENSITIES:
        size = (SHAPE.query_heads, num_blocks, num_blocks)
        mask = torch.rand(size, generator=generator, device=device) < density
        mask[:, :, 0] = True
        mask |= torch.eye(num_blocks, dtype=torch.bool, device=device)
        lists = from_mask(mask, 128)
        share = int(lists.num_tiles().sum()) / (
            SHAPE.query_heads * num_blocks * (num_blocks + 1) / 2
        )
        yield Case(
            name=f"blocks of 128, {density:.0%}",
            lists=lists,
            share=share,
            pairs=int(computed_pairs(lists, SHAPE.tokens).sum()),
        )
    for name, heads in VERTICAL_SLASH.items():
        lists = vertical_slash_lists(heads, SHAPE.tokens, device=device)
        pairs = int(computed_pairs(lists, SHAPE.tokens).sum())
        yield Case(
            name=f"vertical-slash, {name}", lists=lists, share=pairs / causal_pairs, pairs=pairs
        )


def vertical_slash_lists(
    heads: tuple[tuple[int, int], ...], num_tokens: int, *, device: torch.device
) -> BlockLists:
    """Random columns, and slashes in runs: each offset o gives a tile the keys [m - o, m - o + 64).

    Args:
        heads: columns and slashes of each.
        num_tokens: T, at least 100.
        device: of the lists.
    """
    generator = torch.Generator().manual_seed(0)
    columns, offsets = torch.zeros(2, len(heads), num_tokens, dtype=torch.bool)
    for head, (num_columns, num_slashes) in enumerate(heads):
        offsets[head, _offsets(num_slashes, num_tokens, generator)] = True
        chosen = torch.randperm(num_tokens, generator=generator)[: num_columns - NUM_INIT]
        columns[head, :NUM_INIT] = columns[head, chosen] = True
    lists = lists_of_lines(columns.to(device), offsets.to(device))
    check_lists(lists, num_tokens)
    return lists


def _offsets(num_slashes: int, num_tokens: int, generator: torch.Generator) -> Tensor:
    """The local ones and random runs, ascending."""
    runs = torch.randint(num_tokens, ((num_slashes - NUM_LOCAL) // RUN, 1), generator=generator)
    scattered = (runs + torch.arange(RUN)).clamp(max=num_tokens - 1).flatten()
    return torch.cat([torch.arange(NUM_LOCAL), scattered]).unique()


def wrong(case: Case, out: Tensor, q: Tensor, k: Tensor, v: Tensor) -> float:
    """The largest error of some query tiles of an output `[T, HQ, D]`, relative in the norm."""
    lists, errors = case.lists, []
    group = SHAPE.query_heads // SHAPE.kv_heads
    for i in range(CHECKED):
        head = i * SHAPE.query_heads // CHECKED
        tile = (i + 1) * lists.num_query_tiles // CHECKED - 1
        rows = slice(tile * lists.query_tile, (tile + 1) * lists.query_tile)
        mask = attended(lists, head, tile, tile + 1, num_tokens=SHAPE.tokens)
        scores = q[rows, head].double() @ k[:, head // group].double().T / SHAPE.head_dim**0.5
        wanted = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, head // group].double()
        errors.append(float((out[rows, head] - wanted).norm() / wanted.norm()))
    return max(errors)


def attend(
    q: Tensor, k: Tensor, v: Tensor, lists: BlockLists, config: SparseConfig | None
) -> tuple[Tensor, ...]:
    """The whole call, and no more."""
    scale = SHAPE.head_dim**-0.5
    return block_sparse_triton(q, k, v, lists, trim=None, scale=scale, config=config)


def measure(device: torch.device, *, tried: bool) -> list[dict[str, Any]]:
    """All in one run, in turn: dense attention, NSA, and every case with one or more settings."""
    inputs = make_inputs(SHAPE, ["random"], device=device)["random"]
    q, k, v = (x[0] for x in inputs[:3])
    dense = prepare_dense(inputs, SHAPE, backend="cudnn").forward
    nsa = prepare_videonsa(inputs, SHAPE, scope="token").forward
    tasks = {"dense, cuDNN": Task.of(lambda: (dense(),))}
    if not tried:
        tasks["NSA, random"] = Task.of(lambda: (nsa(),))
    of_task: dict[str, tuple[Case, float]] = {}
    for case in cases(device):
        if tried and case.name not in TRIED:
            continue
        key = (case.lists.query_tile, case.lists.columns is not None)
        for config in CANDIDATES[key] if tried else (None,):
            name = case.name if config is None else f"{case.name} {tuple(config)}"
            call = partial(attend, q, k, v, case.lists, config)
            try:
                error = wrong(case, call()[0], q, k, v)
            except Exception as reason:  # a setting may not fit the GPU
                if not tried:
                    raise
                print(f"{name}: {type(reason).__name__}: {reason}".splitlines()[0], flush=True)
                continue
            if not error < MOST_ERROR:
                raise SystemExit(f"{name}: an error of {error:.1e}, at most {MOST_ERROR} wanted")
            tasks[name], of_task[name] = Task.of(call), (case, error)
    repeats = 3 if tried else REPEATS
    found = measure_in_turn(tasks, watch=watch_of(device), repeats=repeats, progress=print)
    dense_ms = found["dense, cuDNN"].to_dict()["ms"]
    runs = []
    for name, measured in found.items():
        run = {"name": name, **measured.to_dict()}
        run["ratio"] = run["ms"] / dense_ms if run["ms"] else None
        if name in of_task and run["ms"]:
            case, error = of_task[name]
            run |= {
                "share": case.share,
                "factor": run["ratio"] / case.share,
                "tflop_per_s": 4 * SHAPE.head_dim * case.pairs / run["ms"] / 1e9,
                "relative_error": error,
            }
        print(line_of(run), flush=True)
        runs.append(run)
    return runs


def line_of(run: dict[str, Any]) -> str:
    """For a reader."""
    if run["ms"] is None:
        return f"{run['name']:60} {run['status']}: {run['error']}"
    line = f"{run['name']:60} {run['ms']:8.2f} ms ({run['ms_min']:.2f}-{run['ms_max']:.2f})"
    if "share" in run:
        line += f"  {run['share']:.1%} of dense, factor {run['factor']:.2f}"
        line += f", {run['tflop_per_s']:.0f} TFLOP/s, error {run['relative_error']:.1e}"
    return line


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--try", dest="tried", action="store_true", help="measure other settings of the kernel"
    )
    options = parser.parse_args()
    device = torch.device("cuda")
    with torch.no_grad():
        runs = measure(device, tried=options.tried)
    result = {
        "shape": SHAPE.text,
        "method": METHOD,
        "runs": runs,
        "machine": measurement_facts(device),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
