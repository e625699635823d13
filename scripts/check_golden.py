"""Compare the `released` preset with stored outputs of the published code.

    python scripts/check_golden.py DIR

DIR holds `released_*.npz` files; tests/fixtures/golden/README.md describes them. Prints one line a
file: for each output the smallest absolute tolerance a with |x - y| <= a + 2^-7 |y| everywhere
(wanted: a <= 1e-2), and how many (row, group) pairs select the stored blocks. Exits 1 if a file
misses.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from videonsa.ops.released import hybrid_released, nsa_released, select_released
from videonsa.ops.spec import NSAResult, NSASpec

NUM_HEADS, NUM_KV_HEADS, HEAD_DIM = 28, 4, 128
ABSOLUTE, RELATIVE = 1e-2, 2.0**-7
VISION_AGREEMENT = 0.985
OUTPUTS = ("o_cmp", "o_slc", "o_swa", "nsa_output", "attn_output")


class Golden(NamedTuple):
    """One file with its inputs made again."""

    q: Tensor  # [1, N, 28, 128] bfloat16
    k: Tensor  # [1, N, 4, 128] bfloat16
    v: Tensor  # [1, N, 4, 128] bfloat16
    gates: Tensor  # [1, N, 28, 3] bfloat16
    vision_mask: Tensor  # [1, N] bool
    rows: Tensor  # [R] int64: rows whose blocks are stored
    output_rows: Tensor  # int64, among rows: those whose outputs are stored too
    spec: NSASpec
    stored: dict[str, Any]

    def nsa_inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """q, k, v with the text rows zeroed, and the gates."""
        mask = self.vision_mask[..., None, None]
        return self.q * mask, self.k * mask, self.v * mask, self.gates


class Agreement(NamedTuple):
    """(row, group) pairs that select exactly the stored blocks."""

    vision: int
    num_vision: int
    text: int
    num_text: int


def load_golden(path: Path, **overrides: Any) -> Golden:
    """Read a file and make its inputs from the seed; `overrides` go to the spec."""
    with np.load(path) as archive:
        stored = {name: archive[name] for name in archive.files}
    num_tokens = int(stored["N"])
    random = np.random.default_rng(int(stored["seed"]))

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(random.standard_normal((1, num_tokens, *shape), dtype=np.float32))

    q, k, v = (
        draw(heads, HEAD_DIM).bfloat16() for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    )
    logits = draw(NUM_HEADS, 3)
    vision_mask = torch.zeros(1, num_tokens, dtype=torch.bool)
    for start, end in stored["vision"]:
        vision_mask[:, start:end] = True
    gates = torch.where(vision_mask[..., None, None], logits, 0).sigmoid().bfloat16()
    spec = NSASpec.released(
        num_selected_blocks=int(stored["block_count"]),
        window_size=int(stored["window"]),
        **overrides,
    )
    rows = torch.from_numpy(stored["rows"])
    output_rows = torch.from_numpy(stored.get("output_rows", stored["rows"]))
    return Golden(q, k, v, gates, vision_mask, rows, output_rows, spec, stored)


def needed_tolerances(golden: Golden) -> dict[str, float]:
    """For each output, given the stored blocks: the largest |x - y| - 2^-7 |y|."""
    blocks = torch.from_numpy(golden.stored["block_indices"])
    options: dict[str, Any] = {
        "spec": golden.spec,
        "selected_blocks": blocks[torch.isin(golden.rows, golden.output_rows)][None],
        "rows": golden.output_rows,
    }
    result = nsa_released(*golden.nsa_inputs(), return_branches=True, **options)
    assert isinstance(result, NSAResult)
    output = hybrid_released(
        golden.q, golden.k, golden.v, golden.gates, golden.vision_mask, **options
    )
    computed = (result.o_cmp, result.o_slc, result.o_win, result.output, output)
    needed = {}
    for name, value in zip(OUTPUTS, computed, strict=True):
        stored = torch.from_numpy(golden.stored[name]).float()
        needed[name] = float(((value[0].float() - stored).abs() - RELATIVE * stored.abs()).max())
    return needed


def own_blocks(golden: Golden) -> Tensor:
    """The blocks that this project selects for the stored rows: `[R, 4, n]`."""
    q, k, _, _ = golden.nsa_inputs()
    return select_released(q, k, spec=golden.spec, rows=golden.rows)[0]


def block_agreement(golden: Golden, selected: Tensor) -> Agreement:
    """How many (row, group) pairs select the stored blocks; later blocks than the row's ignored."""
    num_blocks = -(-golden.q.shape[1] // 64)
    current = (golden.rows // 64)[:, None, None]

    def members(blocks: Tensor) -> Tensor:
        usable = torch.where((blocks < 0) | (blocks > current), num_blocks, blocks.long())
        table = torch.zeros(*blocks.shape[:2], num_blocks + 1, dtype=torch.bool)
        return table.scatter(-1, usable, True)[..., :num_blocks]

    stored = torch.from_numpy(golden.stored["block_indices"])
    equal = (members(selected) == members(stored)).all(dim=-1)
    vision = golden.vision_mask[0, golden.rows]
    return Agreement(
        int(equal[vision].sum()),
        equal[vision].numel(),
        int(equal[~vision].sum()),
        equal[~vision].numel(),
    )


def check(path: Path) -> bool:
    """Print the line of one file; whether it is reproduced."""
    golden = load_golden(path)
    needed = needed_tolerances(golden)
    pairs = block_agreement(golden, own_blocks(golden))
    tolerances = "  ".join(f"{needed[name]:11.1e}" for name in OUTPUTS)
    print(
        f"{path.name:36}  {tolerances}  {pairs.vision}/{pairs.num_vision} vision, "
        f"{pairs.text}/{pairs.num_text} text"
    )
    return (
        max(needed.values()) <= ABSOLUTE
        and pairs.vision >= VISION_AGREEMENT * pairs.num_vision
        and pairs.text == pairs.num_text
    )


def main() -> int:
    """Check every file of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    paths = sorted(folder.glob("released_*.npz"))
    if not paths:
        print(
            f"{folder} holds no released_*.npz: give the folder of the golden files",
            file=sys.stderr,
        )
        return 2
    print(f"{'file':36}  {'  '.join(f'{name:>11}' for name in OUTPUTS)}  selected blocks equal")
    reproduced = [check(path) for path in paths]
    return 0 if all(reproduced) else 1


if __name__ == "__main__":
    sys.exit(main())
