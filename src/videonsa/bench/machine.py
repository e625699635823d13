"""What the numbers hold for: GPU, driver, versions, code."""

import hashlib
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import videonsa
from videonsa.errors import UsageError

_PACKAGES = ("torch", "triton", "fla-core")


def machine(device: torch.device) -> dict[str, Any]:
    """All of it for JSON; None for what cannot be found out."""
    on_gpu = device.type == "cuda"
    return {
        "device": device_name(device),
        "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9
        if on_gpu
        else None,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if on_gpu
        else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "videonsa": videonsa.__version__,
        **_code(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or that this is a CPU and how many threads are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {platform.machine()}, {torch.get_num_threads()} threads"


def slug(name: str) -> str:
    """A device's name as that of a folder: "NVIDIA H200" -> "nvidia-h200"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def check_one(one: Mapping[str, Any], *, device: torch.device, **wanted: object) -> None:
    """Refuse a result that the times of several processes cannot be compared with.

    Args:
        one: the result of one process.
        device: of this process.
        wanted: what its fields have to be.

    Raises:
        UsageError: naming the first that is not.
    """
    found = {key: one.get(key) for key in wanted}
    found["device"] = one.get("machine", {}).get("device")
    for key, value in {**wanted, "device": device_name(device)}.items():
        if found[key] != value:
            raise UsageError(
                f"--one: its {key} is {found[key]!r}, not {value!r}: want what this command wrote "
                "with one process of the same model on the same device"
            )


def comparable(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Numbers of both may stand in one file: all is the same but the day and the commit.

    The digest of the sources stands for what of a commit matters.
    """
    free = {"date": None, "commit": None, "dirty": None}
    return {**one, **free} == {**other, **free}


def _code() -> dict[str, Any]:
    """The commit where this is a checkout; anywhere a digest of what is measured and measures."""
    package = Path(videonsa.__file__).parent
    digest = hashlib.sha256()
    sources = [path for room in ("ops", "bench") for path in (package / room).rglob("*.py")]
    for path in sorted(sources):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    commit, changed = None, None
    if (package.parents[1] / ".git").exists():
        git = ("git", "-C", str(package))
        commit = _output(*git, "rev-parse", "HEAD")
        changed = _output(*git, "status", "--porcelain", "--", ".")
    return {
        "commit": commit,
        "dirty": None if changed is None else bool(changed),
        "sources_sha256": digest.hexdigest()[:16],
    }


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
