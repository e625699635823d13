"""Compiles every launch of the `released` preset, as `compiling` does for `paper`."""

import json
from dataclasses import asdict

import torch
from compiling import META, recorded_launches, resources_of, source_of

from videonsa.ops import NSASpec
from videonsa.ops.triton.released import dense_rows, released_forward
from videonsa.ops.triton.tuning import hopper, portable

TARGETS = {90: hopper, 80: portable, 100: portable}
NUM_ROWS = 2**13


def main() -> None:
    """Every different launch at the shape of the 7B model."""

    def empty(*size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.bfloat16, device=META)

    q, k, gates = empty(NUM_ROWS, 28, 128), empty(NUM_ROWS, 4, 128), empty(NUM_ROWS, 28, 3)
    found = {}
    for capability, tuning_of in TARGETS.items():
        tuning = tuning_of(64)
        with recorded_launches() as launches:
            released_forward(
                q, k, k, gates, None, spec=NSASpec.released(), return_branches=False, tuning=tuning
            )
            positions = torch.empty(NUM_ROWS, dtype=torch.int64, device=META)
            dense_rows(q, k, k, positions, tuning=tuning)
        for launch in launches:
            source = source_of(launch)
            key = (capability, source.hash(), *launch.options.items())
            if key not in found:
                found[key] = resources_of(source, launch.options, capability, "released")
    print(json.dumps([asdict(resources) for resources in found.values()], indent=1))


if __name__ == "__main__":
    main()
