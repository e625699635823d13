"""What a number holds for: device, versions and code."""

import hashlib
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import videonsa

if TYPE_CHECKING:
    import torch

_CPUS = Path("/proc/cpuinfo")
_MEASURED = ("ops", "bench")
"""Rooms whose code times depend on: what is measured, and what measures."""


class Checkout(NamedTuple):
    """The code that runs; None where it is installed, not checked out."""

    commit: str | None
    """40 hexadecimal digits."""
    dirty: bool | None
    """Whether files of the package differ from the commit."""


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the CPU."""
    import torch

    exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return exhausted or (isinstance(error, RuntimeError) and "allocate memory" in str(error))


def evaluation_facts(device: "torch.device") -> dict[str, Any]:
    """What the answers of an evaluation hold for, for JSON."""
    import torch

    commit = checkout().commit
    return {
        "device": gpu_name(device) or "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **package_versions("torch", "transformers"),
        "commit": "unknown" if commit is None else commit[:7],
    }


def measurement_facts(device: "torch.device") -> dict[str, Any]:
    """What times and sizes hold for, for JSON; None for what cannot be found out."""
    import torch

    memory, driver = None, None
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory / 1e9
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": device_name(device),
        "memory_gb": memory,
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        **package_versions("torch", "triton", "fla-core"),
        "videonsa": videonsa.__version__,
        **checkout()._asdict(),
        "sources_sha256": _digest_of_measured(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def gpu_name(device: "torch.device") -> str | None:
    """The name of a GPU; None for a CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def device_name(device: "torch.device") -> str:
    """The GPU's name, or that this is a CPU and how many threads are used."""
    import torch

    return gpu_name(device) or f"cpu {platform.machine()}, {torch.get_num_threads()} threads"


def cpu_model() -> str:
    """The processor as Linux names it, elsewhere its architecture."""
    lines = _CPUS.read_text().splitlines() if _CPUS.exists() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def usable_cores() -> int:
    """Cores that this process may use: in a container, often fewer than there are."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def slug(name: str) -> str:
    """A device's name as that of a folder: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def package_versions(*names: str) -> dict[str, str | None]:
    """Versions of distributions; None for what is not installed, even if it runs from a folder."""
    return {name: _version(name) for name in names}


def checkout() -> Checkout:
    """The commit that the package runs from, if its folder lies in a checkout of this project."""
    package = _package()
    if not (package.parents[1] / ".git").exists():
        return Checkout(None, None)
    git = ("git", "-C", str(package))
    changed = _output(*git, "status", "--porcelain", "--", ".")
    return Checkout(
        commit=_output(*git, "rev-parse", "HEAD"),
        dirty=None if changed is None else bool(changed),
    )


def _package() -> Path:
    return Path(videonsa.__file__).parent


def _digest_of_measured() -> str:
    """16 hexadecimal digits, which also tell installed packages apart."""
    digest = hashlib.sha256()
    for path in sorted(path for room in _MEASURED for path in (_package() / room).rglob("*.py")):
        digest.update(path.relative_to(_package()).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """The first line that a program prints, of several GPUs the first's; None where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip().partition("\n")[0]
