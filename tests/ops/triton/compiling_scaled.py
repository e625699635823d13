"""Compiles the launches that quantise rows to float8, as `compiling` does for attention."""

import json
from dataclasses import asdict

import torch
from compiling import META, recorded_launches, resources_of, source_of

from videonsa.ops.scaled import FLOAT8, LARGEST, SMALLEST
from videonsa.ops.triton.scaled_rows import scale_into

CAPABILITIES = (89, 90, 100)
WIDTHS = (1280, 3584, 18944, 29568)
"""Rows of the 7B tower and layers, and of the 72B model's MLP."""


def main() -> None:
    """Every launch."""
    found = []
    for capability in CAPABILITIES:
        for width in WIDTHS:
            for gated in (False, True):
                x = torch.empty(64, width, dtype=torch.bfloat16, device=META)
                values = torch.empty(64, width, dtype=FLOAT8, device=META)
                scales = torch.empty(64, dtype=torch.float32, device=META)
                up = x if gated else None
                with recorded_launches() as launches:
                    scale_into(x, up, values, scales, largest=LARGEST, smallest=SMALLEST)
                for launch in launches:
                    name = f"{'gated ' if gated else ''}rows of {width}"
                    source = source_of(launch)
                    found.append(resources_of(source, launch.options, capability, name))
    print(json.dumps([asdict(resources) for resources in found], indent=1))


if __name__ == "__main__":
    main()
