"""Thin the stored outputs of the published code to what the tests need.

    python scripts/thin_golden.py SOURCE tests/fixtures/golden

Keeps the block indices of every stored row, and the outputs of ten rows a file: eight or more
vision rows, evenly spread from the first to the last, and the first and the last text row.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

NUM_OUTPUT_ROWS = 10
SCALARS = ("seed", "N", "block_count", "window", "vision")
OUTPUTS = ("o_cmp", "o_slc", "o_swa", "nsa_output", "attn_output")


def picked_rows(rows: npt.NDArray[np.int64], vision: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
    """Positions in `rows` of the rows whose outputs are kept."""
    is_vision = ((rows[:, None] >= vision[:, 0]) & (rows[:, None] < vision[:, 1])).any(axis=1)
    (of_text,) = np.nonzero(~is_vision)
    (of_vision,) = np.nonzero(is_vision)
    ends = of_text[[0, -1]] if len(of_text) else of_text
    steps = np.linspace(0, len(of_vision) - 1, NUM_OUTPUT_ROWS - len(ends)).round().astype(int)
    return np.unique(np.concatenate((ends, of_vision[steps])))


def thin(source: Path, target: Path) -> None:
    """Write the thinned copy of one file."""
    with np.load(source) as archive:
        rows = archive["rows"]
        picked = picked_rows(rows, archive["vision"])
        kept = {name: archive[name] for name in SCALARS}
        kept |= {"rows": rows, "block_indices": archive["block_indices"].astype(np.int16)}
        kept |= {"output_rows": rows[picked]} | {name: archive[name][picked] for name in OUTPUTS}
    np.savez_compressed(target, **kept)


def main() -> int:
    """Thin every file of a folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    folders = parser.parse_args()
    paths = sorted(folders.source.glob("released_*.npz"))
    if not paths:
        print(f"{folders.source} holds no released_*.npz: give the full files", file=sys.stderr)
        return 2
    folders.target.mkdir(parents=True, exist_ok=True)
    for path in paths:
        thin(path, folders.target / path.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
