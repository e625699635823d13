"""Processes as torchrun makes them, without its price: each is forked from a warm server.

Two processes of torchrun import PyTorch and transformers three times, which takes ten seconds of a
core. Here a server imports them once for all tests of a process; a rank is a fork of it with the
variables that torchrun sets. Other tests take single processes from `warm_context`.
"""

import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from multiprocessing import forkserver, get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist

IMPORTED = (
    *("pytest", "accelerate", "torch.distributed.fsdp", "torch.distributed.checkpoint"),
    *("videonsa.cli.main", "videonsa.cli.train_evaluation", "videonsa.train.run"),
    *("videonsa.inference.engine", "videonsa.bench.training", "videonsa.bench.prefill"),
)
"""What ranks need, apart from their tests."""
MOST_SECONDS = 240.0
GRACE = 20.0
"""Seconds for the others when one has failed: they may be about to say the same."""


class Ranks(NamedTuple):
    """How the processes ended."""

    statuses: tuple[int, ...]
    """Negative: the signal that ended it."""
    output: str
    """Stdout and stderr of all, one after another."""


def warm_context() -> Any:
    """Of multiprocessing: its processes have all of `IMPORTED` and see no GPU."""
    forkserver.set_forkserver_preload(list(IMPORTED))
    with patch.dict(os.environ, CUDA_VISIBLE_DEVICES=""):  # what knows of GPUs cannot fork
        forkserver.ensure_running()
    return get_context("forkserver")


def run_ranks(
    function: Callable[..., int | None],
    *arguments: Any,
    folder: Path,
    count: int = 2,
    threads: int = 1,
    on_gpus: bool = False,
) -> Ranks:
    """Call a function of a module in each of some processes that know of each other.

    Args:
        function: what it returns is the exit status; None is 0.
        arguments: of the function.
        folder: for the output of the processes; made if it is absent.
        count: of processes.
        threads: of PyTorch in each of them.
        on_gpus: the processes see the GPUs of this one; otherwise none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    gpus = {} if on_gpus else {"CUDA_VISIBLE_DEVICES": ""}
    context = get_context("spawn") if on_gpus else warm_context()
    name = (function.__module__, function.__qualname__)  # imported when the variables are set
    processes = []
    for rank in range(count):
        variables = os.environ | gpus | _variables(rank, count, store.port)
        task = (dict(variables), threads, _output(folder, rank), name, arguments)
        processes.append(context.Process(target=_be_a_rank, args=task))
        processes[-1].start()
    _wait(processes)
    return Ranks(
        tuple(process.exitcode for process in processes),
        "".join(_output(folder, rank).read_text() for rank in range(count)),
    )


def _output(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}.txt"


def _variables(rank: int, count: int, port: int) -> dict[str, str]:
    """Those of torchrun that tell a process who it is and where the store of all is."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    return {
        **{name: str(number) for name, number in numbers.items()},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        **{"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"},
    }


def _wait(processes: list[Any]) -> None:
    """Until all have ended; when one has failed, or at the end of the time, kill the others."""
    end = time.monotonic() + MOST_SECONDS
    try:
        while alive := [process for process in processes if process.is_alive()]:
            if any(process.exitcode for process in processes):
                end = min(end, time.monotonic() + GRACE)
            if not wait([process.sentinel for process in alive], max(0, end - time.monotonic())):
                return
    finally:
        for process in processes:
            process.kill()
            process.join()


def _be_a_rank(
    variables: dict[str, str],
    threads: int,
    output: Path,
    name: tuple[str, str],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    with output.open("w") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    torch.set_num_threads(threads)
    module, function = name
    status = getattr(import_module(module), function)(*arguments)
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(status)
