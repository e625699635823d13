"""The folder of a run: one run writes there at a time, and only that run resumes from it."""

import errno
import json
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from videonsa import __version__
from videonsa.data.manifest import Manifest
from videonsa.disk import sole_writer, write_atomic
from videonsa.errors import TrainingError, UsageError
from videonsa.machine import cpu_model, gpu_name, package_versions
from videonsa.parsing import one_line, read_json_object
from videonsa.train.reading import read_stated_recipe, recipe_to_yaml
from videonsa.train.saving import check_whole, clear_partial, last_checkpoint, steps_of
from videonsa.train.settings import Recipe
from videonsa.train.watch import report_line

MODEL = "model"
RUN, RECIPE, LOG = "run.json", "recipe.yaml", "log.jsonl"
_PACKAGES = ("torch", "transformers", "accelerate", "av", "numpy")
_MAY_CHANGE = ("parallel", "run")
"""Sections whose values may differ when a run resumes, `run.seed` and `run.precision` excepted."""
_MAY_GROW = ("optimizer.steps", "optimizer.epochs")
"""A run may be given more steps, also after its last."""
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def hold_folder(out: Path, processes: Any) -> Iterator[None]:
    """Lock the folder of a run for its processes; the first process holds the lock.

    Raises:
        UsageError: another run holds the folder, or it cannot be written; raised in every process.
    """
    from accelerate.utils import broadcast_object_list

    with ExitStack() as stack:
        refusal: list[str | None] = [None]
        if processes.is_main_process:
            try:
                out.mkdir(parents=True, exist_ok=True)
                stack.enter_context(sole_writer(out, work="training"))
            except UsageError as error:
                refusal = [str(error)]
            except OSError as error:
                reason = one_line(error)
                refusal = [f"{out} cannot be written ({reason}): make room, or name another"]
        broadcast_object_list(refusal)  # otherwise the others would wait for the first
        if refusal[0] is not None:
            raise UsageError(refusal[0])
        yield


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line, while a run writes into its folder.

    Raises:
        TrainingError: a full disk, a folder where a file belongs, and the like.
    """
    try:
        yield
    except OSError as error:
        named = error.filename2 or error.filename
        where = Path(named) if isinstance(named, str) else None
        if error.errno not in _OF_DISKS and (where is None or not where.is_relative_to(out)):
            raise
        raise TrainingError(
            f"{where or out} cannot be written ({one_line(error)}): mend that or make room, then "
            "start the same command again, which goes on from the last checkpoint"
        ) from error


def open_folder(
    recipe: Recipe,
    out: Path,
    manifest: Manifest,
    processes: Any,
    *,
    steps: int,
    epoch: dict[str, Any],
    asked: dict[str, Any],
) -> Path | None:
    """Write the recipe and facts of the run, and find the checkpoint to resume from.

    Args:
        recipe: of the run.
        out: its folder.
        manifest: of its data.
        processes: accelerate's state.
        steps: of the whole run.
        epoch: what an epoch has; recorded in run.json, as what follows.
        asked: how the trained model has to be asked.

    Raises:
        UsageError: the folder belongs to another run, or to one of more steps.
        TrainingError: a file of the checkpoint is missing or damaged.
    """
    if (out / MODEL).exists() and not (out / MODEL).is_dir():
        raise UsageError(f"{out / MODEL} is a file, and the trained model goes there: remove it")
    checkpoint = last_checkpoint(out)
    schedules = [{"from_step": 0, "steps": steps}]
    if checkpoint is not None:
        stated = _check_same(recipe, manifest, out)
        check_whole(checkpoint)
        schedules = _schedules(stated, checkpoint, steps=steps)
    processes.wait_for_everyone()  # all have read before one writes
    if processes.is_main_process:
        clear_partial(out)
        if checkpoint is not None:
            _report_growth(schedules, checkpoint)
        facts = _facts(recipe, manifest, processes.num_processes)
        facts |= {"schedules": schedules, "epoch": epoch, "asked": asked}
        write_atomic(out / RECIPE, recipe_to_yaml(recipe))
        write_atomic(out / RUN, json.dumps(facts, indent=2) + "\n")
    processes.wait_for_everyone()
    return checkpoint


def _schedules(stated: dict[str, Any], checkpoint: Path, *, steps: int) -> list[dict[str, int]]:
    """From which step on the learning rates were those of how many steps; the last is this run's.

    Args:
        stated: run.json of the run so far.
        checkpoint: that the run resumes from.
        steps: of the whole run.

    Raises:
        UsageError: the run so far had more steps.
    """
    done, planned = steps_of(checkpoint)
    if steps < planned:
        raise UsageError(
            f"{checkpoint.parent} has checkpoints of a run of {planned} steps, this run has "
            f"{steps}: name another folder, or want at least {planned}"
        )
    known = stated.get("schedules")
    before = [one for one in known if one["from_step"] < done] if known else []
    before = before or [{"from_step": 0, "steps": planned}]
    same = before[-1]["steps"] == steps
    return before if same else [*before, {"from_step": done, "steps": steps}]


def _report_growth(schedules: list[dict[str, int]], checkpoint: Path) -> None:
    """Say that the run has more steps from the checkpoint on."""
    done, steps = schedules[-1]["from_step"], schedules[-1]["steps"]
    if done < steps_of(checkpoint)[0]:
        return
    model = checkpoint.with_name(MODEL)
    kept = f"; {model} stays until then" if model.exists() else ""
    report_line(
        f"{steps} steps instead of {schedules[-2]['steps']}: from step {done + 1} on, learning "
        f"rates are those of a schedule of {steps} steps{kept}"
    )


def _facts(recipe: Recipe, manifest: Manifest, num_processes: int) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "recipe": recipe.name,
        "data_hash": manifest.data_hash,
        "manifest": recipe.data.manifest,
        "num_samples": len(manifest),
        "processes": num_processes,
        "device": gpu_name(device) or cpu_model(),
        "python": platform.python_version(),
        "versions": {"videonsa": __version__, **package_versions(*_PACKAGES)},
    }


def _check_same(recipe: Recipe, manifest: Manifest, out: Path) -> dict[str, Any]:
    """Refuse to resume from the checkpoint of another run; the content of its run.json."""
    remedy = f"it says what the checkpoints in {out} are of; put it back, or name another folder"
    then = read_stated_recipe(out / RECIPE, remedy=remedy)
    stated = read_json_object(out / RUN, remedy=remedy)
    if stated.get("data_hash") != manifest.data_hash:
        raise UsageError(f"{out} has checkpoints of other data: name another folder")
    for section, keys in then.sections.items():
        for key in keys:
            old, new = (getattr(getattr(one, section), key) for one in (then.recipe, recipe))
            matters = section not in _MAY_CHANGE or key in ("seed", "precision")
            matters = matters and f"{section}.{key}" not in _MAY_GROW
            if matters and key not in ("manifest", "validation") and old != new:
                raise UsageError(
                    f"{out} has checkpoints with {section}.{key}={old}, this run has {new}: name "
                    "another folder, or the same value"
                )
    old, new = (_sharding(one) for one in (then.recipe, recipe))
    if old != new:
        raise UsageError(
            f"{out} has checkpoints of a run with {old}, this run has {new} and cannot read their "
            f"optimizer: want {old}, or name another folder"
        )
    return stated


def _sharding(recipe: Recipe) -> str:
    """The setting that decides how the optimizer is saved."""
    if recipe.parallel.deepspeed is not None:
        return "parallel.deepspeed"
    return f"parallel.fsdp={str(recipe.parallel.shards).lower()}"
