"""Compiles the launches that draw frames, as `compiling` does for attention."""

import json
from dataclasses import asdict

import torch
import triton
from compiling import META, recorded_launches, resources_of, source_of
from triton.backends.compiler import GPUTarget

from videonsa.ops.drawing import NOISE_SHIFTS
from videonsa.ops.triton.drawing import Canvas, Patches, draw_into

CAPABILITIES = (80, 90, 100)
SIZE = 112
WHAT = ("frames", "patches")


def empty(*shape, dtype=torch.int32):
    return torch.empty(shape, dtype=dtype, device=META)


def main() -> None:
    """Every launch, and whether it fuses products and sums."""
    canvas = Canvas(
        shade=empty(SIZE, dtype=torch.float32),
        background=empty(8, 3, dtype=torch.float32),
        noise_of=empty(8),
        shifts=empty(8, 2),
        ends=empty(9),
        places=empty(5, 3),
        table=empty(4, 4),
        colours=empty(4, 3, dtype=torch.float32),
        masks=empty(99, dtype=torch.float32),
    )
    side = SIZE + NOISE_SHIFTS - 1
    fields = empty(2, 3, side, side, dtype=torch.float32)
    with recorded_launches() as launches:
        draw_into(empty(8, 3, SIZE, SIZE, dtype=torch.uint8), canvas, fields)
        levels = empty(3, 256, dtype=torch.bfloat16)
        draw_into(empty(256, 1176, dtype=torch.bfloat16), canvas, fields, Patches(levels, 14, 2, 2))
    found = []
    for capability in CAPABILITIES:
        for launch, what in zip(launches, WHAT, strict=True):
            source = source_of(launch)
            target = GPUTarget("cuda", capability, 32)
            ptx = triton.compile(source, target=target, options=launch.options).asm["ptx"]
            needs = asdict(resources_of(source, launch.options, capability, what))
            found.append(needs | {"fused": "fma" in ptx})
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
