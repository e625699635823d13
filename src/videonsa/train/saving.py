"""Atomic checkpoints, their checksums, and the log beside them."""

import json
import pickle
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from videonsa.disk import mode_of_new_files, place_folder, write_atomic
from videonsa.errors import TrainingError
from videonsa.parsing import one_line, read_json_object

PARTIAL = ".saving"
CONTENTS = "contents.json"
"""File in a checkpoint with the size and checksum of each of its files."""
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})")
_SUMMED = 2**26
"""Bytes. Larger files have no checksum: reading them once more would take minutes."""
_UNREADABLE = (
    *(OSError, EOFError, SafetensorError, pickle.UnpicklingError, RuntimeError, AssertionError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)
"""What libraries raise on a damaged file."""


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in the folder of a run, the latest last."""
    found = [path for path in folder.glob("checkpoint-*") if path.is_dir()]
    return sorted(filter(_step_of, found), key=_step_of)


def last_checkpoint(folder: Path) -> Path | None:
    """The latest checkpoint."""
    return next(reversed(checkpoints(folder)), None)


def _step_of(path: Path) -> int:
    """The step in the name of a checkpoint; 0 for any other name."""
    named = _CHECKPOINT.fullmatch(path.name)
    return int(named[1]) if named else 0


def check_whole(checkpoint: Path) -> None:
    """Refuse a checkpoint whose files are not as they were saved.

    Raises:
        TrainingError: names what is missing or damaged.
    """
    path = checkpoint / CONTENTS
    stated = read_json_object(path, error=TrainingError, remedy=_remedy(checkpoint))
    for name, facts in {TRAINER_STATE_NAME: None, **stated}.items():
        file = checkpoint / name
        if not file.is_file():
            raise TrainingError(f"{checkpoint} lacks {name}: {_remedy(checkpoint)}")
        if _facts(file) != facts:
            raise TrainingError(
                f"{file} is damaged, it is not what was saved: {_remedy(checkpoint)}"
            )
    with reading(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if state.global_step != _step_of(checkpoint):
            raise ValueError(f"it is of step {state.global_step}")
        if not all(isinstance(line, dict) for line in state.log_history):
            raise ValueError("its log is no list of lines")


def steps_of(checkpoint: Path) -> tuple[int, int]:
    """Steps that a checkpoint has done, and those that its run was to do.

    Raises:
        TrainingError: it cannot be read.
    """
    with reading(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        return int(state.global_step), int(state.max_steps)


def _facts(file: Path) -> dict[str, int]:
    size = file.stat().st_size
    return {"bytes": size} | ({"crc32": zlib.crc32(file.read_bytes())} if size <= _SUMMED else {})


def _remedy(checkpoint: Path) -> str:
    known = checkpoints(checkpoint.parent)
    before = known[: known.index(checkpoint)] if checkpoint in known else []
    then = f"go on from {before[-1].name}" if before else "begin anew"
    return f"put it back, or remove {checkpoint} to {then}"


@contextmanager
def reading(checkpoint: Path) -> Iterator[None]:
    """Turn what libraries raise on a damaged file into one line, while they read a checkpoint.

    Raises:
        TrainingError: the checkpoint cannot be read.
    """
    try:
        yield
    except torch.OutOfMemoryError:  # a RuntimeError too
        raise
    except _UNREADABLE as error:
        raise TrainingError(
            f"{checkpoint} cannot be read ({type(error).__name__}: {one_line(error)}): "
            f"{_remedy(checkpoint)}"
        ) from error


def clear_partial(folder: Path) -> None:
    """Remove the unfinished checkpoint of a run that was killed while saving."""
    partial = folder / PARTIAL
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial, ignore_errors=True)
    else:
        partial.unlink(missing_ok=True)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Clean up and explain if writing a checkpoint fails; the last good one stays.

    Raises:
        TrainingError: the disk is full, or the checkpoint could not be written for another reason.
    """
    try:
        yield
    except TrainingError:
        clear_partial(folder)
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        clear_partial(folder)
        last = last_checkpoint(folder)
        kept = f"the last good one is {last}" if last else "there is none before it"
        raise TrainingError(
            f"the checkpoint cannot be saved in {folder} ({' '.join(str(error).split())}): {kept}; "
            "make room, then start the same command again, which goes on from there"
        ) from error


def publish(folder: Path, name: str, *, keep: int) -> None:
    """Rename a complete folder from `PARTIAL` to its place, then remove the oldest checkpoints."""
    partial, final = folder / PARTIAL / name, folder / name
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    for path in files:
        path.chmod(mode_of_new_files())  # safetensors makes files that only their owner can read
    contents = {str(path.relative_to(partial)): _facts(path) for path in files}
    if _CHECKPOINT.fullmatch(name):
        (partial / CONTENTS).write_text(json.dumps(contents, indent=2) + "\n", "utf-8")
    place_folder(partial, final)
    clear_partial(folder)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)


class LogFile:
    """log.jsonl: one line for each logged step, also of a run that was resumed many times."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin(self, history: list[dict[str, Any]]) -> None:
        """Start with the history of a checkpoint; lines of later steps go, as those run again."""
        write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in history))

    def add(self, line: dict[str, Any]) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
