"""Compiles every launch of a decode step, as `compiling` does for `paper`."""

import json
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain

import torch
from compiling import META, Launch, recorded_launches, resources_of, source_of

from videonsa.ops.scaled import FLOAT8, ScaledRows
from videonsa.ops.triton import cached
from videonsa.ops.triton.decode_tuning import ProductConfig, cached_tuning, product_tuning
from videonsa.ops.triton.few_rows import gated_triton, products_triton

CAPABILITIES = (90, 80, 100)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ATTENTION = {
    f"{tokens} tokens, {group} heads a group, dim {dim}, {dtype}": (tokens, group, dim, dtype)
    for tokens, group, dim, dtype in (
        *((tokens, 7, 128, "bfloat16") for tokens in (1, 4, 16)),
        (1, 7, 128, "float32"),
        (16, 4, 256, "bfloat16"),
        (8, 7, 128, "bfloat16"),
    )
}


def attention_launches(capability: int) -> Iterator[tuple[str, list[Launch]]]:
    """Of a sample that grows behind keys that all share, by a name that says the shape."""
    shapes = list(ATTENTION.items())
    for name, (tokens, group, dim, dtype) in shapes if capability == 90 else shapes[-1:]:

        def empty(*size: int, dtype: torch.dtype = DTYPES[dtype]) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=META)

        q, k = empty(1, tokens, 4 * group, dim), empty(1, 2**17, 4, dim)
        starts = empty(1, dtype=torch.int32)
        width = dim * q.element_size()
        tuning = cached_tuning(tokens * group, width, capability=capability // 10)
        with recorded_launches() as launches:
            cached.cached_attention_triton(q, k, k, starts, None, tunings=(tuning, tuning))
        yield name, launches


def product_launches(capability: int) -> Iterator[tuple[str, list[Launch]]]:
    """Of one layer of the 7B model: q, k and v; gate and up; down."""
    for num_rows in (1, 16) if capability == 90 else (16,):

        def empty(*size: int) -> torch.Tensor:
            return torch.empty(size, dtype=torch.bfloat16, device=META)

        x, mlp = empty(num_rows, 3584), empty(18944, 3584)
        qkv = [(empty(size, 3584), empty(size)) for size in (3584, 512, 512)]

        def config(num_out: int, size: int, num_rows: int = num_rows) -> ProductConfig:
            return product_tuning(num_rows, num_out, size, capability=capability // 10)

        with recorded_launches() as launches:
            products_triton(x, qkv, config=config(4608, 3584))
            gated_triton(x, mlp, mlp, config=config(2 * 18944, 3584))
            down = empty(3584, 18944)
            products_triton(empty(num_rows, 18944), [(down, None)], config=config(3584, 18944))
        yield f"{num_rows} rows", launches
        if capability != 90:  # others have its tiles or smaller ones, of fewer bytes than above
            continue
        with recorded_launches() as launches:
            in_fp8 = [(_scaled(w), bias) for w, bias in qkv]
            products_triton(x, in_fp8, config=config(4608, 3584))
            if num_rows == 1:  # fewer weights, and weights without biases
                for weights in (qkv[:2], in_fp8):
                    bare = [(w, None) for w, _ in weights]
                    products_triton(x, bare, config=config(4608, 3584))
            gated_triton(x, _scaled(mlp), _scaled(mlp), config=config(2 * 18944, 3584))
            rows = empty(num_rows, 18944)
            products_triton(rows, [(_scaled(down), None)], config=config(3584, 18944))
        yield f"{num_rows} rows, weights in float8", launches


def _scaled(w: torch.Tensor) -> ScaledRows:
    """Of the same shape."""
    scales = torch.empty((len(w), 1), dtype=torch.float32, device=META)
    return ScaledRows(torch.empty(w.shape, dtype=FLOAT8, device=META), scales)


def main() -> None:
    """Every different launch."""
    found = {}
    for capability in CAPABILITIES:
        for name, launches in chain(attention_launches(capability), product_launches(capability)):
            for launch in launches:
                source = source_of(launch)
                key = (capability, source.hash(), *launch.options.items())
                if key not in found:
                    found[key] = resources_of(source, launch.options, capability, name)
    print(json.dumps([asdict(resources) for resources in found.values()], indent=1))


if __name__ == "__main__":
    main()
