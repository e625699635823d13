"""Optimizers and learning rate schedules by the names that transformers gives them."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any

import torch
from transformers import Trainer, get_scheduler
from transformers.trainer_utils import SchedulerType
from transformers.training_args import OptimizerNames

from videonsa.errors import UsageError
from videonsa.parsing import one_line
from videonsa.train.settings import OptimizerSettings

_NO_SCHEDULES = ("reduce_lr_on_plateau", "greedy")
"""They follow a metric, not the number of the step."""
_NO_OPTIMIZERS = ("galore", "apollo", "lomo", "adalomo", "schedule_free")
"""Begins of names. These choose parameters by themselves, step inside the backward pass, or train
with other weights than they answer with; gates could not have a learning rate of their own."""
_OTHER_DEVICES = ("adamw_torch_xla", "adamw_torch_npu_fused")
_OF_ADAM = {"optimizer.betas": "betas", "optimizer.epsilon": "eps"}
"""Settings that only some optimizers take, and their names there."""


def schedules() -> list[str]:
    """The schedules that a recipe may name."""
    return [kind.value for kind in SchedulerType if kind.value not in _NO_SCHEDULES]


def optimizers() -> list[str]:
    """The optimizers that a recipe may name."""
    left_out = (*_NO_OPTIMIZERS, *_OTHER_DEVICES)
    return [kind.value for kind in OptimizerNames if not kind.value.startswith(left_out)]


def check_optimization(settings: OptimizerSettings) -> list[str]:
    """Refuse what transformers does not have, or has without its package.

    Returns:
        What of the settings is not used, one line each.

    Raises:
        UsageError: lists names that are near.
    """
    _check_name("optimizer.schedule", settings.schedule, schedules())
    _check_name("optimizer.name", settings.name, optimizers())
    stated = SimpleNamespace(
        optim=OptimizerNames(settings.name),
        optim_args=None,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_epsilon=settings.epsilon,
    )
    try:
        _, options = Trainer.get_optimizer_cls_and_kwargs(stated)
    except (ImportError, ValueError, AttributeError, OSError) as error:
        raise UsageError(
            f"optimizer.name={settings.name} cannot be used here ({one_line(error)}): install what "
            "it needs, or leave it out for AdamW"
        ) from error
    notes = []
    unused = [ours for ours, theirs in _OF_ADAM.items() if theirs not in options]
    if unused:
        notes.append(f"optimizer.name={settings.name} uses no {' and '.join(unused)}")
    if settings.schedule == SchedulerType.CONSTANT.value and settings.warmup:
        notes.append(
            f"optimizer.schedule=constant has no warm-up: optimizer.warmup={settings.warmup:g} is "
            "not used (constant_with_warmup has one)"
        )
    return notes


def check_schedule(settings: OptimizerSettings, *, steps: int) -> None:
    """Refuse options that a schedule does not take, or of which learning rates come that are none.

    Raises:
        UsageError: says what the schedule says.
    """
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=settings.learning_rate)
    options = dict(settings.schedule_options)
    what = f"optimizer.schedule={settings.schedule} with optimizer.schedule_options={options}"
    try:
        if options and settings.schedule in ("constant", "constant_with_warmup"):
            raise ValueError("it takes none")
        scheduler: Any = get_scheduler(
            settings.schedule,
            optimizer=optimizer,
            num_warmup_steps=warmup_steps(settings, steps=steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=options,
        )
        shares = [scheduler.lr_lambdas[0](step) for step in _looked_at(steps)]
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise UsageError(
            f"{what} over {steps} steps cannot be used ({one_line(error)}): want the options of "
            "transformers' schedule of that name"
        ) from error
    if not all(math.isfinite(share) and share >= 0 for share in shares):
        raise UsageError(f"{what} gives learning rates below 0 or none at all: want other options")


def warmup_steps(settings: OptimizerSettings, *, steps: int) -> int:
    """Steps of the warm-up in a run of so many."""
    return round(settings.warmup * steps)


def _looked_at(steps: int) -> Iterable[int]:
    """At most a thousand steps, evenly spread, with the first and the last."""
    return {0, steps - 1, *range(0, steps, max(steps // 1000, 1))}


def _check_name(what: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = get_close_matches(name, known, n=3) or known
        raise UsageError(f"{what}={name!r}: want a name of transformers, such as {', '.join(near)}")
