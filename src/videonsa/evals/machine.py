"""What the numbers of an evaluation hold for."""

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import transformers


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Device, threads, versions and the commit, for the JSON."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    """Of the checkout that the package runs from; "unknown" for an installed one."""
    command = ("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
