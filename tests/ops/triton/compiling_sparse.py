"""Compiles launches of attention over block lists, as `compiling` does for `paper`.

`compiling_sparse.py` compiles what the test looks at, `compiling_sparse.py all` every case.
"""

import json
import sys
from dataclasses import asdict, dataclass

import torch
import triton
from compiling import META, Launch, recorded_launches, resources_of, source_of

from videonsa.ops.block_lists import BlockLists, Trim
from videonsa.ops.triton.block_sparse import block_sparse_triton
from videonsa.ops.triton.sparse_tuning import SparseConfig, sparse_config

CAPABILITIES = (90, 80, 100)
TRIM = Trim(128, 3968, 100)
TESTED = {
    90: ("blocks of 128", "vertical-slash"),
    80: ("vertical-slash, query tiles of 128", "dim 256"),
    100: ("dim 80",),
}
"""By capability; each takes seconds."""


@dataclass(frozen=True)
class Case:
    """A layer and its lists."""

    query_tile: int = 128
    key_tile: int = 128
    columns: bool = False
    trim: Trim | None = None
    group: int = 7
    dim: int = 128
    num_tokens: int = 2**17
    dtype: torch.dtype = torch.bfloat16


CASES = {
    "blocks of 128": Case(),
    "blocks of 64": Case(64, 64),
    "blocks of 128, trimmed": Case(trim=TRIM),
    "vertical-slash": Case(64, 64, columns=True),
    "vertical-slash, query tiles of 128": Case(128, 64, columns=True),
    "dim 64, float16": Case(dim=64, group=1, dtype=torch.float16),
    "dim 80": Case(dim=80, group=16),
    "dim 256": Case(dim=256, group=3),
    "dim 256, vertical-slash": Case(64, 64, columns=True, dim=256, group=3),
}


def launches_of(case: Case, config: SparseConfig) -> list[Launch]:
    """All launches of one call; nothing is computed."""

    def empty(*size: int, dtype: torch.dtype = torch.int32) -> torch.Tensor:
        return torch.empty(size, dtype=dtype, device=META)

    num_heads = 4 * case.group
    num_tiles = triton.cdiv(case.num_tokens, case.query_tile)
    lists = BlockLists(
        query_tile=case.query_tile,
        key_tile=case.key_tile,
        row_starts=empty(num_heads, num_tiles + 1),
        tiles=empty(999),
        columns=empty(1000 * num_heads) if case.columns else None,
        column_starts=empty(num_heads + 1) if case.columns else None,
    )
    q = empty(case.num_tokens, num_heads, case.dim, dtype=case.dtype)
    k = empty(case.num_tokens, 4, case.dim, dtype=case.dtype)
    with recorded_launches() as launches:
        block_sparse_triton(q, k, k, lists, trim=case.trim, scale=0.1, config=config)
    return launches


def main() -> None:
    """Every different launch."""
    found = {}
    for capability in CAPABILITIES:
        for name in CASES if "all" in sys.argv else TESTED[capability]:
            case = CASES[name]
            width = triton.next_power_of_2(case.dim) * 2
            config = sparse_config(case.query_tile, width, capability=capability // 10)
            for launch in launches_of(case, config):
                source = source_of(launch)
                key = (capability, source.hash(), *launch.options.items())
                if key not in found:
                    found[key] = resources_of(source, launch.options, capability, name)
    print(json.dumps([asdict(resources) for resources in found.values()], indent=1))


if __name__ == "__main__":
    main()
