"""Checkpoints that are whole or absent, and what is recorded beside them."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from videonsa.disk import folder_to_disk, to_disk, write_whole
from videonsa.errors import TrainingError

PARTIAL = ".saving"
_CHECKPOINT = "checkpoint-"


def last_checkpoint(folder: Path) -> Path | None:
    """The latest of the checkpoints in the folder of a run."""
    found = [path for path in folder.glob(f"{_CHECKPOINT}*") if path.is_dir()]
    return max(found, key=lambda path: int(path.name.removeprefix(_CHECKPOINT)), default=None)


def clear_partial(folder: Path) -> None:
    """Remove what a run that was killed while saving has left."""
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """While a checkpoint is written: what goes wrong leaves the last good one.

    Raises:
        TrainingError: a disk that is full, or another reason why it could not be written.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        clear_partial(folder)
        last = last_checkpoint(folder)
        kept = f"the last good one is {last}" if last else "there is none before it"
        raise TrainingError(
            f"the checkpoint cannot be saved in {folder} ({' '.join(str(error).split())}): {kept}; "
            "make room, then start the same command again, which goes on from there"
        ) from error


def publish(folder: Path, name: str, *, keep: int) -> None:
    """Move a complete checkpoint from `PARTIAL` to its place, then remove the oldest."""
    partial, final = folder / PARTIAL / name, folder / name
    folder_to_disk(partial)
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    to_disk(folder)
    clear_partial(folder)
    steps = sorted(
        int(path.name.removeprefix(_CHECKPOINT)) for path in folder.glob(f"{_CHECKPOINT}*")
    )
    for step in steps[:-keep]:
        shutil.rmtree(folder / f"{_CHECKPOINT}{step}")


class LogFile:
    """log.jsonl: a line for each logged step, one history however often the run was resumed."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, history: list[dict[str, Any]]) -> None:
        """Begin with the history of a checkpoint: later lines are of steps that are done anew."""
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in history))

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
