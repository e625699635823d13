"""GPUs that a question can be planned for without having one, by their makers' data sheets."""

from dataclasses import dataclass
from types import MappingProxyType

from videonsa.errors import UsageError
from videonsa.ops.triton.support import why_not_elsewhere

RESERVED = 10**9
"""Bytes that no model gets: an allowance for the driver and the CUDA context."""
_GB = 10**9
_SHARED_KB = MappingProxyType(
    {
        (7, 0): 96,
        (7, 5): 64,
        (8, 0): 163,
        (8, 6): 99,
        (8, 9): 99,
        (9, 0): 227,
        (10, 0): 227,
        (12, 0): 99,
    }
)
"""Most shared memory of a thread block by compute capability (CUDA programming guide)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GPU:
    """What a data sheet says of a GPU."""

    name: str
    """As its driver calls it."""
    memory: int
    """Bytes, GB taken as 10^9."""
    capability: tuple[int, int]
    """Compute capability."""

    @property
    def usable(self) -> int:
        """Bytes that a model may count on."""
        return self.memory - RESERVED

    @property
    def capability_text(self) -> str:
        """As in "compute capability 9.0"."""
        return "compute capability {}.{}".format(*self.capability)

    def why_no_kernels(self) -> str | None:
        """Why the GPU kernels do not run there; None where they do."""
        return why_not_elsewhere(self.capability, _SHARED_KB[self.capability] * 1024)


def _gpu(name: str, gigabytes: int, major: int, minor: int) -> GPU:
    return GPU(name=f"NVIDIA {name}", memory=gigabytes * _GB, capability=(major, minor))


GPUS = MappingProxyType(
    {
        "b200": _gpu("B200", 180, 10, 0),
        "h200": _gpu("H200", 141, 9, 0),
        "gh200": _gpu("GH200 96GB", 96, 9, 0),
        "h100": _gpu("H100 80GB HBM3", 80, 9, 0),
        "h100-nvl": _gpu("H100 NVL", 94, 9, 0),
        "a100": _gpu("A100-SXM4-80GB", 80, 8, 0),
        "a100-40gb": _gpu("A100-SXM4-40GB", 40, 8, 0),
        "l40s": _gpu("L40S", 48, 8, 9),
        "l40": _gpu("L40", 48, 8, 9),
        "l4": _gpu("L4", 24, 8, 9),
        "a40": _gpu("A40", 48, 8, 6),
        "a10": _gpu("A10", 24, 8, 6),
        "a10g": _gpu("A10G", 24, 8, 6),
        "a6000": _gpu("RTX A6000", 48, 8, 6),
        "6000-ada": _gpu("RTX 6000 Ada Generation", 48, 8, 9),
        "5090": _gpu("GeForce RTX 5090", 32, 12, 0),
        "4090": _gpu("GeForce RTX 4090", 24, 8, 9),
        "4080": _gpu("GeForce RTX 4080", 16, 8, 9),
        "3090": _gpu("GeForce RTX 3090", 24, 8, 6),
        "t4": _gpu("T4", 16, 7, 5),
        "v100": _gpu("V100-SXM2-32GB", 32, 7, 0),
    }
)
"""By the names that `--gpu` takes."""


def find_gpu(name: str) -> GPU:
    """The GPU of a name such as "h200" or "RTX 4090".

    Raises:
        UsageError: a name that is not in `GPUS`; lists them.

    """
    short = "-".join(name.lower().split())
    for maker in ("nvidia", "geforce", "rtx"):
        short = short.removeprefix(maker).removeprefix("-")
    if short not in GPUS:
        raise UsageError(
            f"GPU {name[:40]!r} is not known: want one of {', '.join(GPUS)}; for another pass its "
            "--memory"
        )
    return GPUS[short]
