"""The only reader of `os.environ`.

videonsa has no variables of its own: every choice is an argument. These belong to the libraries
below it and change what a run does, so `videonsa doctor` shows those that are set.
"""

import os

VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "TRANSFORMERS_OFFLINE",
    "TRITON_INTERPRET",
)


def variables() -> dict[str, str]:
    """The variables of `VARIABLES` that are set, by name."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def num_processes() -> int:
    """Processes that torchrun or accelerate launch started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def processes_here() -> int:
    """Those of them on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", num_processes()))
