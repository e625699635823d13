"""The suite asked of a model while it trains: training and evaluation do not know each other."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.cli.common import parse_tokens

if TYPE_CHECKING:
    from videonsa.evals.tasks.suite.suite_line import SuiteLine
    from videonsa.train.settings import Recipe
    from videonsa.train.trainer import Evaluation


def suite_evaluation(recipe: "Recipe", out: Path) -> "Evaluation | None":
    """What asks the suite's test split and gives the share of right answers of each length.

    The first process keeps what it asked in OUT/eval/step-N, as `videonsa eval synthetic` does; the
    others ask the same, as sharded weights want, and keep nothing.

    Raises:
        UsageError: lengths that cannot be rendered, kinds that are none, or a style that the suite
            does not have.
    """
    settings = recipe.run
    if not settings.evaluate_every or not settings.evaluate_lengths:
        return None
    from videonsa.evals.tasks.suite.suite_run import SuiteRun
    from videonsa.rendered.suite import KINDS
    from videonsa.rendered.suite2 import ANY

    request = SuiteRun(
        model=recipe.name,
        lengths=tuple(
            parse_tokens(length, "run.evaluate_lengths") for length in settings.evaluate_lengths
        ),
        samples=settings.evaluate_samples,
        conditions=("whole",),
        kinds=settings.evaluate_kinds or (KINDS if settings.evaluate_suite == 1 else ANY),
        frame_size=settings.evaluate_frame_size,
        style=settings.evaluate_style,
        suite=settings.evaluate_suite,
    )

    def evaluate(model: Any, tokenizer: Any, step: int) -> dict[str, float]:
        from accelerate import PartialState

        from videonsa.evals.runner import run_task
        from videonsa.evals.tasks.suite.suite_task import SuiteTask
        from videonsa.evals.tasks.suite.video_answerer import ModelAnswerer
        from videonsa.inference.engine import VideoQA
        from videonsa.machine import evaluation_facts

        answerer = ModelAnswerer(VideoQA(model, tokenizer), request)
        method, dtype = answerer.method, str(model.dtype).removeprefix("torch.")
        asked = replace(request, attention=method.full_name, dtype=dtype, device=model.device.type)
        with tempfile.TemporaryDirectory() as scratch:
            is_first = PartialState().is_main_process
            folder = out / "eval" / f"step-{step}" if is_first else Path(scratch)
            # Answers from before the run died: all processes have to ask all questions together.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            machine = evaluation_facts(model.device)
            task = SuiteTask(asked, answerer)
            lines = run_task(task, folder, machine=machine, progress=False)
        return _shares(lines)

    return evaluate


def _shares(lines: "list[SuiteLine]") -> dict[str, float]:
    """Right answers of each length and of all; of all, also those that are the likeliest option."""
    right: dict[str, list[bool]] = {"all": []}
    for line in lines:
        right.setdefault(f"{line.length}_tokens", []).append(line.right)
        right["all"].append(line.right)
        if line.likeliest is not None:
            right.setdefault("likeliest", []).append(line.likeliest == line.answer)
    return {f"accuracy/{name}": sum(found) / len(found) for name, found in right.items()}
