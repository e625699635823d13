"""The only reader of `os.environ`.

videonsa has no variables of its own: every choice is an argument. These belong to the libraries
below it and change what a run does, so `videonsa doctor` shows those that are set.
"""

import os

from videonsa.errors import UsageError

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


def has_judge_key() -> bool:
    """Whether there is a key with which lmms-eval can ask a judge."""
    return any(os.environ.get(name) for name in ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY"))


def num_processes() -> int:
    """Processes that torchrun or accelerate launch started; 1 without them.

    Raises:
        UsageError: variables that no launcher sets so.
    """
    return _processes()[0]


def processes_here() -> int:
    """Those of them on this machine.

    Raises:
        UsageError: as for `num_processes`.
    """
    return _processes()[1]


def _processes() -> tuple[int, int]:
    """Of all machines and of this one; a rank beyond them would wait for ever."""
    world = _count("WORLD_SIZE", least=1, default=1)
    here = _count("LOCAL_WORLD_SIZE", least=1, default=world)
    for name, number in (("RANK", world), ("LOCAL_RANK", here), ("LOCAL_WORLD_SIZE", world + 1)):
        if _count(name, least=0, default=0) >= number:
            raise UsageError(
                f"{name}={os.environ[name]} with {world} processes, {here} of them here: want at "
                f"most {number - 1}; start them by torchrun, or unset it"
            )
    return world, here


def _count(name: str, *, least: int, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 7 and int(text) >= least):
        raise UsageError(
            f"{name}={text!r}: want a whole number from {least} on, as torchrun sets it; unset it "
            "to run alone"
        )
    return int(text)
