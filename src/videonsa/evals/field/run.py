"""A benchmark from its recipe to its report: asked through lmms-eval, scored from the log alone."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from videonsa.env import num_processes
from videonsa.errors import UsageError
from videonsa.evals.field.asked_tasks import asked_tasks
from videonsa.evals.field.benchmark_report import write_report
from videonsa.evals.field.recipe import Recipe, differences
from videonsa.evals.field.sample_line import as_json
from videonsa.evals.field.sample_log import PATTERN
from videonsa.evals.field.scored_run import (
    FieldScores,
    LmmsScorer,
    RunConfig,
    find_config,
    read_config,
    score_run,
)
from videonsa.evals.field.tasks import LMMS_EVAL, FieldTask, LmmsScoring, task_files
from videonsa.evals.journal import digest, read_run, write_run
from videonsa.parsing import one_line

if TYPE_CHECKING:
    from videonsa.evals.field.lmms_model import VideoNSAChat


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRequest:
    """What is asked for."""

    published: Recipe
    recipe: Recipe
    """The published one with changes."""
    model: str
    folder: Path
    base: str | None = None
    revision: str | None = None
    method: str | None = None
    """None: as the weights were trained."""
    dtype: str | None = None
    device: str | None = None
    limit: int | None = None
    """Documents of each task, from the first; None is all."""
    batch_size: int = 1
    retry_failed: bool = False
    """Whether samples that failed are asked again."""


def run_benchmark(request: RunRequest, *, debug: bool = False) -> FieldScores | None:
    """Ask what the folder does not answer yet, score it, and write the report.

    Under `accelerate launch` each process asks its share; the first one scores.

    Args:
        request: what is asked for.
        debug: show what lmms-eval logs.

    Returns:
        The scores; None in all processes but the first.

    Raises:
        UsageError: what cannot be asked here, or a folder of another run.
        VideoNSAError: as for `load`.
    """
    check_locks()
    _join_processes()
    with lmms_eval_logs(shown=debug):
        tasks = asked_tasks(request.recipe)
        check_folder(request)
        model = _load(request)
        if model.rank == 0:
            _write_config(request, model)
        _ask(model, tasks, request)
    return score_folder(request.folder, debug=debug) if model.rank == 0 else None


def check_locks() -> None:
    """Refuse a filelock whose inner module, which lmms-eval changes, is gone.

    Raises:
        UsageError: says which one is wanted.
    """
    if find_spec("filelock._api") is None:
        raise UsageError(
            f"filelock {version('filelock')} is installed, and lmms-eval {LMMS_EVAL} wants an "
            "older one: pip install 'filelock<4'"
        )


def _join_processes() -> None:
    """Reading a task makes an `Accelerator` that takes each process on a CPU for the only one.

    All in a process share the state of the first, so that this has to be it.
    """
    if num_processes() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available())


def check_folder(request: RunRequest) -> None:
    """Refuse a folder whose samples were asked otherwise.

    Raises:
        UsageError: says what differs.
    """
    before = find_config(request.folder)
    if before is None:
        if any(path.stat().st_size for path in request.folder.glob(PATTERN)):
            raise UsageError(
                f"{request.folder} holds samples of lmms-eval by itself: name another folder with "
                "--out"
            )
        return
    found = differences(before.asked, request.recipe)
    if before.benchmark != request.recipe.benchmark:
        found = (f"{before.benchmark} (now: {request.recipe.benchmark})",)
    if found:
        told = "; ".join(one.replace("(recipe:", "(now:") for one in found)
        raise UsageError(
            f"{request.folder} holds a run with {told}: name another folder with --out, or give "
            "the settings of that run"
        )


def score_folder(folder: Path, *, debug: bool = False) -> FieldScores:
    """Score a run from its log, and write `scores.json` and `report.md`.

    Args:
        folder: of the run.
        debug: show what lmms-eval logs.

    Raises:
        UsageError: no run of a benchmark.
    """
    config = read_config(folder)
    with lmms_eval_logs(shown=debug):
        scores = score_run(folder, {task: _scorer(task) for task in config.asked.tasks})
    run = read_run(folder) or {}
    write_report(folder, config, scores, run.get("machine", {}))
    return scores


def _scorer(task: str) -> LmmsScorer | str:
    try:
        return LmmsScoring(task)
    except UsageError as error:
        return one_line(error, most=500)


def _load(request: RunRequest) -> "VideoNSAChat":
    from videonsa.evals.field.lmms_model import VideoNSAChat

    recipe = request.recipe
    return VideoNSAChat(
        pretrained=request.model,
        base=request.base,
        revision=request.revision,
        method=request.method,
        dtype=request.dtype,
        device=request.device,
        fps=recipe.fps,
        min_num_frames=recipe.min_frames,
        max_num_frames=recipe.max_frames,
        min_pixels=recipe.min_pixels,
        max_pixels=recipe.max_pixels,
        max_video_tokens=recipe.max_video_tokens,
        system_prompt=recipe.system,
        log=str(request.folder),
        retry_failed=request.retry_failed,
        batch_size=request.batch_size,
    )


def _write_config(request: RunRequest, model: "VideoNSAChat") -> None:
    """Beside what the plug-in states of the model, all that the recipe states."""
    method = model.qa.model.method
    config = RunConfig(
        benchmark=request.recipe.benchmark,
        recipe=request.published.title,
        differences=differences(request.recipe, request.published),
        settings=asdict(request.recipe),
        settings_digest=request.recipe.digest,
        model=request.model + (f"@{request.revision}" if request.revision else ""),
        demonstration=model.qa.demonstration,
        method=method.full_name,
        method_parameters=as_json(method.parameters()),
        weights_dtype=str(model.qa.model.dtype).removeprefix("torch."),
        limit=request.limit,
        batch_size=request.batch_size,
        lmms_eval=LMMS_EVAL,
    )
    run = read_run(request.folder) or {}
    stated: dict[str, Any] = {**run.get("config", {}), **as_json(asdict(config))}
    write_run(request.folder, {**run, "config": stated, "digest": digest(stated)})


def _ask(model: "VideoNSAChat", tasks: Sequence[FieldTask], request: RunRequest) -> None:
    from lmms_eval.evaluator import simple_evaluate

    simple_evaluate(
        model=model,
        tasks=[task.lmms_task for task in tasks],
        limit=request.limit,
        batch_size=request.batch_size,
        bootstrap_iters=0,
        log_samples=False,
        task_manager=task_files(request.recipe.tasks),
        process_docs_parallel=1,
        verbosity="ERROR",
    )


@contextmanager
def lmms_eval_logs(*, shown: bool) -> Iterator[None]:
    """Keep off stderr what lmms-eval logs of its own doings, where it is installed."""
    if shown or find_spec("loguru") is None:
        yield
        return
    from loguru import logger

    logger.disable("lmms_eval")
    try:
        yield
    finally:
        logger.enable("lmms_eval")
