"""Trackers beside log.jsonl: they get the same lines, through transformers' callbacks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import get_reporting_integration_callbacks

from videonsa.errors import UsageError
from videonsa.parsing import one_line


def tracker_callbacks(names: Iterable[str]) -> list[TrainerCallback]:
    """A callback for each tracker.

    Raises:
        UsageError: a tracker does not begin, for want of a package, a network or a login; raised
            here or when training begins.
    """
    made: list[TrainerCallback] = []
    for name in names:
        with _beginning(name):
            (kind,) = get_reporting_integration_callbacks([name])
            made.append(_explained(name, kind)())
    return made


@contextmanager
def _beginning(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the tracker's package raises
        raise UsageError(
            f"{name} does not begin ({one_line(error)}): mend that, let it work offline "
            f"(WANDB_MODE=offline for wandb), or leave {name} out of run.report_to"
        ) from error


def _explained(name: str, kind: type[Any]) -> type[Any]:
    class Explained(kind):
        """The callback of a tracker, with one line where it does not begin."""

        def setup(self, *arguments: Any, **named: Any) -> None:
            with _beginning(name):
                super().setup(*arguments, **named)

    return Explained
