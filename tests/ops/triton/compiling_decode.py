"""Compiles every launch of a decode step, as `compiling` does for `paper`."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import torch
from compiling import META, Launch, recorded_launches, resources_of, source_of

from videonsa.ops.triton import cached
from videonsa.ops.triton.decode_tuning import cached_tuning

CAPABILITIES = (90, 80, 100)
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ATTENTION = {
    f"{tokens} tokens, {group} heads a group, dim {dim}, {dtype}": (tokens, group, dim, dtype)
    for tokens, group, dim, dtype in (
        *((tokens, 7, 128, "bfloat16") for tokens in (1, 4, 8, 16)),
        (16, 7, 128, "float32"),
        (16, 4, 256, "bfloat16"),
    )
}


def attention_launches(capability: int) -> Iterator[tuple[str, list[Launch]]]:
    """Of a sample that grows behind keys that all share, by a name that says the shape."""
    for name, (tokens, group, dim, dtype) in ATTENTION.items():

        def empty(*size: int, dtype: torch.dtype = DTYPES[dtype]) -> torch.Tensor:
            return torch.empty(size, dtype=dtype, device=META)

        q, k = empty(1, tokens, 4 * group, dim), empty(1, 2**17, 4, dim)
        starts = empty(1, dtype=torch.int32)
        width = dim * q.element_size()
        tuning = cached_tuning(tokens * group, width, capability=capability // 10)
        with recorded_launches() as launches:
            cached.cached_attention_triton(q, k, k, starts, None, tunings=(tuning, tuning))
        yield name, launches


def main() -> None:
    """Every different launch."""
    found = {}
    for capability in CAPABILITIES:
        for name, launches in attention_launches(capability):
            for launch in launches:
                source = source_of(launch)
                key = (capability, source.hash(), *launch.options.items())
                if key not in found:
                    found[key] = resources_of(source, launch.options, capability, name)
    print(json.dumps([asdict(resources) for resources in found.values()], indent=1))


if __name__ == "__main__":
    main()
