"""Where a model runs, in which dtype, and how much memory is there."""

import mmap
import re
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch

from videonsa.errors import UsageError
from videonsa.models.shape import ModelShape
from videonsa.planning.gpus import GPU, find_gpu

_MEMORY, _OWN_PAGES = Path("/proc/meminfo"), Path("/proc/self/statm")
_CONTAINER = Path("/sys/fs/cgroup/memory.max")
_UNITS = MappingProxyType({"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30})
_MOST_MEMORY = 2**63


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """What a plan is made for."""

    kind: Literal["cpu", "cuda"]
    name: str
    memory: int | None
    """Bytes that a model may take; None where there is no bound to plan for, or it is not known."""
    gpu: GPU | None = None
    """The data sheet that stands for a GPU which is not here."""


def find_machine(device: torch.device, memory: int | None = None) -> Machine:
    """The GPU or CPU of a device, and its memory: all that this process holds or could get.

    Args:
        device: where the model will run.
        memory: bytes to plan for instead; where the device is a CPU, those of a GPU elsewhere.

    Raises:
        UsageError: a memory that is no number of bytes.

    """
    check_memory(memory)
    if device.type != "cuda":
        if memory is not None:
            return Machine(kind="cuda", name="a GPU elsewhere", memory=memory)
        return Machine(kind="cpu", name="the CPU", memory=_system_memory())
    free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    name = torch.cuda.get_device_name(device)
    return Machine(kind="cuda", name=name, memory=free if memory is None else memory)


def machine_elsewhere(gpu: str) -> Machine:
    """A GPU that is not here, with the memory of its data sheet less `RESERVED`.

    Args:
        gpu: its name, as for `find_gpu`.

    Raises:
        UsageError: a name that is not known.

    """
    found = find_gpu(gpu)
    return Machine(kind="cuda", name=found.name, memory=found.usable, gpu=found)


def check_memory(memory: int | None) -> None:
    """Refuse what is no number of bytes: UsageError."""
    if memory is not None and not (type(memory) is int and memory >= 1):
        raise UsageError(f"memory={memory!r}: want bytes, an int of at least 1, such as 24 * 10**9")


def _system_memory() -> int | None:
    """Bytes that this process holds or could get, as Linux says; None elsewhere."""
    try:
        free = re.search(r"^MemAvailable:\s*(\d+) kB", _MEMORY.read_text(), re.MULTILINE)
        held = int(_OWN_PAGES.read_text().split()[1]) * mmap.PAGESIZE
    except (IndexError, OSError, ValueError):
        return None
    if free is None:
        return None
    here = int(free[1]) * 1024 + held
    try:
        return min(here, int(_CONTAINER.read_text()))
    except (OSError, ValueError):  # no container, or one without bound ("max")
        return here


def parse_memory(text: str, what: str = "memory") -> int:
    """Bytes of a size such as "24GB" (10^9 each) or "24GiB" (2^30); `what` it is, for refusals.

    Raises:
        UsageError: another form.

    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([MG]i?B)\s*", text, re.IGNORECASE)
    size = float(found[1]) * _UNITS[found[2].upper()] if found else 0.0
    if not 1 <= size < _MOST_MEMORY:
        raise UsageError(f"{what} {text[:40]!r}: want a size such as 24GB or 16GiB")
    return int(size)


def runs_by_kernels(shape: ModelShape, machine: Machine) -> bool:
    """Whether vision rows attend by the kernels on a GPU of a kind that has them."""
    if machine.kind != "cuda" or (machine.gpu and machine.gpu.why_no_kernels()):
        return False
    dtype = getattr(torch, shape.dtype)
    q, k = (
        torch.empty(1, 1, heads, shape.head_dim, dtype=dtype, device="meta")
        for heads in (shape.num_heads, shape.num_kv_heads)
    )
    return shape.method.runs_by_kernels(q, k)


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; by default the first GPU, or the CPU.

    Raises:
        UsageError: a device that torch does not know or this machine lacks.

    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
        torch.empty(1, device=place).item()  # also refuses "meta", which holds no values
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        raise UsageError(
            f"device {str(device)!r} is not there: want 'cpu' or a GPU such as 'cuda:0' that "
            "'videonsa doctor' lists"
        ) from error
    return place


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """The dtype asked for; by default float32 on a CPU and None, the weights' own, elsewhere.

    Raises:
        UsageError: another dtype.

    """
    if dtype is None:
        return torch.float32 if device.type == "cpu" else None
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    found = known.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise UsageError(f"dtype={str(dtype)!r}: want one of {', '.join(known)}")
    return found
