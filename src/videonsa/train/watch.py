"""Progress on stderr, log.jsonl, when a run evaluates and when it stops."""

import math
import sys
import time
from typing import Any, Self

import torch
import torch.distributed as dist
from tqdm import tqdm
from transformers import TrainerCallback

from videonsa.train.saving import LogFile


class Watch(TrainerCallback):
    """Shows progress and remaining time on stderr, writes log.jsonl, times evaluations and the end.

    As a context manager it closes the progress bar, however the run ends.

    Args:
        log: log.jsonl.
        evaluate_every: in steps; 0: never.
        at_end: evaluate after the last step too.
        end: when the run saves a checkpoint and stops, by `time.monotonic`.
    """

    def __init__(
        self, *, log: LogFile, evaluate_every: int, at_end: bool = False, end: float = math.inf
    ) -> None:
        self._log = log
        self._every = evaluate_every
        self._at_end = at_end
        self._end = end
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start progress and log at the step of the checkpoint."""
        # The state is the checkpoint's, and this run may log and save at other steps than that one.
        state.logging_steps, state.save_steps = args.logging_steps, args.save_steps
        if state.is_world_process_zero:
            self._log.begin([_finite(line) for line in state.log_history])
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                desc="training",
                unit="step",
                file=sys.stderr,
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Advance progress; decide on evaluation and stop."""
        is_last = state.global_step >= state.max_steps
        if (self._at_end and is_last) or (self._every and state.global_step % self._every == 0):
            control.should_evaluate = True
        if self._end < math.inf and self._is_over(args.device):
            control.should_save = control.should_training_stop = True
        if self._bar is not None:
            self._bar.update()

    def _is_over(self, device: torch.device) -> bool:
        """Whether time is up for any process: then all of them stop."""
        over = time.monotonic() >= self._end
        if not dist.is_initialized():
            return over
        found = torch.tensor(float(over), device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write what was logged as a line."""
        if self._bar is not None:
            self._log.add(_finite(state.log_history[-1]))
            shown = ("loss", "tokens_per_second", "mfu")
            self._bar.set_postfix({name: logs[name] for name in shown if name in logs})


def _finite(line: dict[str, Any]) -> dict[str, Any]:
    """The line with NaN and infinities as text, which JSON lacks."""
    return {
        k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()
    }


def report_line(line: str) -> None:
    """Print a line on stderr, above the progress bar."""
    tqdm.write(line, file=sys.stderr)
