"""The tasks of lmms-eval: their documents, their prompts, and what lmms-eval scores an answer.

Nothing here is scored anew: the functions are those that a task's own file names. Importing this
module does not need lmms-eval; using it does.
"""

import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from videonsa.env import has_judge_key
from videonsa.errors import DataError, UsageError
from videonsa.evals.field.benchmarks import MVBENCH
from videonsa.parsing import one_line

LMMS_EVAL = "0.7.3"
"""The release whose tasks and scores these are."""

FOLDERS: Mapping[str, str] = {
    "longvideobench_val_v": "longvideobench",
    "longvideobench_val_i": "longvideobench",
    "mlvu_dev": "mlvu",
    "mlvu_test": "mlvu",
    "timescope": "timescope",
    "longtimescope": "longtimescope",
    "tomato": "tomato",
    "vsibench": "vsibench",
    "vsibench_debiased": "vsibench",
    "vsibench_pruned": "vsibench",
    "lsdbench": "lsdbench",
    "videoevalpro": "videoevalpro",
    "videoevalpro_mcq": "videoevalpro",
    "videomme": "videomme",
    "videomme_long": "videomme",
    "videomme_w_subtitle": "videomme",
    "videomme_v2": "videomme_v2",
    "videomme_v2_w_subtitle": "videomme_v2",
    "videomme_v2_reasoning": "videomme_v2",
    "lvbench": "lvbench",
    "mvbench": "mvbench",
    **dict.fromkeys(MVBENCH, "mvbench"),
}
"""Of each listed task, its folder among the tasks of lmms-eval."""

PACKAGES: Mapping[str, Mapping[str, str]] = {
    "longvideobench": {"decord": "decord"},
    "tomato": {"cv2": "opencv-python-headless"},
    "videomme": {"cv2": "opencv-python-headless"},
    "vsibench": {"pandas": "pandas"},
}
"""By folder: modules that its tasks import and that lmms-eval does not bring; what to install.

decord has files for Linux on x86-64 and for Windows; elsewhere LongVideoBench cannot be imported.
"""

JUDGED: Mapping[str, str] = {"videoevalpro": "videoevalpro_mcq"}
"""Tasks whose answers are weighed by gpt-4o over the network: the task that asks for letters."""

_JUDGE_LOG = "lmms_eval.verifiers.openai"
_PARSES = ("parsed_pred", "pred_answer", "parsed_prediction", "pred_ans")
_VALUES = ("score", "correct", "judge_result", "accuracy", "MRA:.5:.95:.05")
_NO_OPTION = "Z"
"""What Video-MME-v2 writes for an answer that names no option."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LmmsScore:
    """What lmms-eval makes of one answer."""

    value: float
    """From 0 to 1."""
    parse: str | None
    """What it took for the answer; None where it found nothing."""
    drawn: bool = False
    """Whether it then drew an option at random, as LongVideoBench does."""
    items: Mapping[str, Any]
    """By metric, what its aggregation takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LmmsTotals:
    """What lmms-eval makes of all answers of a task."""

    values: Mapping[str, Any]
    """By metric: a number, or several by name; on the task's own scale, 0 to 1 or 0 to 100."""
    notes: tuple[str, ...] = ()
    """Metrics that have no value, and why, one line each."""


def check_lmms_eval() -> None:
    """Refuse an environment without this release of lmms-eval.

    Raises:
        UsageError: it is missing, or another one is installed.
    """
    try:
        found = version("lmms-eval")
    except PackageNotFoundError:
        found = "none"
    if found != LMMS_EVAL:
        raise UsageError(
            f"lmms-eval {LMMS_EVAL} is wanted, {found} is installed: make its environment with "
            "scripts/lmms_eval_env.sh"
        )


def missing_packages(task: str) -> list[str]:
    """What to install before a listed task can be imported here."""
    needed = PACKAGES.get(FOLDERS[task], {})
    return [package for module, package in needed.items() if find_spec(module) is None]


def check_task(task: str) -> None:
    """Refuse a task that is not listed or that cannot be imported here.

    Raises:
        UsageError: with what to do.
    """
    if task not in FOLDERS:
        listed = ", ".join(name for name in FOLDERS if not name.startswith("mvbench_"))
        raise UsageError(f"task {task!r} is not listed: want one of {listed}")
    check_lmms_eval()
    if missing := missing_packages(task):
        raise UsageError(
            f"{task} of lmms-eval imports what is not installed here: pip install "
            f"{' '.join(missing)}"
        )


def task_files(tasks: Sequence[str]) -> Any:
    """A `TaskManager` of lmms-eval that has read the folders of these tasks only.

    Reading all folders takes some 10 s.

    Raises:
        UsageError: as `check_task`.
    """
    for task in tasks:
        check_task(task)
    from lmms_eval.tasks import TaskManager

    root = _tasks_folder()
    folders = [str(root / name) for name in sorted({FOLDERS[task] for task in tasks})]
    return TaskManager(include_path=folders, include_defaults=False)


def _tasks_folder() -> Path:
    spec = find_spec("lmms_eval.tasks")
    assert spec is not None and spec.origin is not None, "check_lmms_eval has found it"
    return Path(spec.origin).parent


class FieldTask:
    """A task with its documents. They are read from the Hugging Face cache, or downloaded."""

    def __init__(self, task: str, lmms_task: Any) -> None:
        """Name and task object of lmms-eval."""
        self.name = task
        self._task = lmms_task

    @property
    def lmms_task(self) -> Any:
        """As lmms-eval asks it."""
        return self._task

    @property
    def split(self) -> str:
        """That is asked."""
        return str(self._task.config.test_split)

    @property
    def docs(self) -> Any:
        """Its documents, a `datasets.Dataset`."""
        return self._task.test_docs()

    @property
    def generation(self) -> dict[str, Any]:
        """How the task wants its answers generated."""
        return dict(self._task.config.generation_kwargs)

    def messages(self, doc_id: int) -> list[dict[str, Any]]:
        """The prompt of a document in the form of a chat.

        Raises:
            DataError: the task ends the process because a video is missing.
        """
        try:
            return list(self._task.doc_to_messages(dict(self.docs[doc_id])))
        except SystemExit as exit_:
            raise DataError(one_line(exit_)) from exit_


def load_tasks(name: str, *, files: Any = None) -> list[FieldTask]:
    """The tasks of a name: itself, or those of its group.

    Args:
        name: a listed task.
        files: from `task_files`; None reads those of this task.

    Raises:
        UsageError: as `check_task`.
    """
    check_task(name)
    from lmms_eval.tasks import get_task_dict

    found = get_task_dict([name], files or task_files([name]), task_type="chat")
    return [FieldTask(key, task) for key, task in _leaves(found)]


def _leaves(tasks: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tasks.items():
        if isinstance(task, Mapping):
            yield from _leaves(task)
        else:
            yield str(name), task


class LmmsScoring:
    """How lmms-eval scores a task. Its data set is not read: a log holds the documents."""

    def __init__(self, task: str) -> None:
        """Read the file of a task.

        Raises:
            UsageError: as `check_task`; a group; a judged task without a key for its judge.
        """
        check_task(task)
        if task in JUDGED and not has_judge_key():
            raise UsageError(
                f"lmms-eval has the answers of {task} weighed by gpt-4o-2024-11-20, and there is "
                "no key for it: set OPENAI_API_KEY (and OPENAI_API_URL for another server), or "
                f"ask {JUDGED[task]} by 'lmms-eval --model videonsa'"
            )
        self.task = task

    @cached_property
    def _config(self) -> dict[str, Any]:
        from lmms_eval.utils import load_yaml_config

        entry = task_files([self.task]).task_index[self.task]
        if entry["type"] != "task":
            raise UsageError(f"{self.task} is a group: score each of its tasks")
        config: dict[str, Any] = load_yaml_config(entry["yaml_path"], mode="full")
        return config

    @property
    def _process(self) -> Callable[[dict[str, Any], list[str]], dict[str, Any]]:
        process: Callable[[dict[str, Any], list[str]], dict[str, Any]] = self._config[
            "process_results"
        ]
        return process

    @property
    def metrics(self) -> list[str]:
        """Of the task, in its order; the first is the one that is cited."""
        return [str(one["metric"]) for one in self._config["metric_list"]]

    def score(self, doc: Mapping[str, Any], doc_id: int, answer: str) -> LmmsScore:
        """Score one answer.

        Args:
            doc: the document, as the data set has it.
            doc_id: seeds, with the name of the task, the draw of a task that draws.
            answer: as the model wrote it.

        Raises:
            DataError: the judge could not be reached.
        """
        process = self._process  # whose modules seed the draw as they are imported
        with _judge_must_answer(self.task), _drawing(f"{self.task}/{doc_id}") as is_drawn:
            items = process(dict(doc), [answer.strip()])
            drawn = is_drawn()
        item = items[self.metrics[0]]
        parse = None if drawn else self._parse(doc, item, answer.strip())
        return LmmsScore(value=self._value(item), parse=parse, drawn=drawn, items=items)

    def totals(self, scores: Sequence[LmmsScore]) -> LmmsTotals:
        """Aggregate all answers of the task as lmms-eval does."""
        values, notes = {}, []
        for metric in self._config["metric_list"]:
            name = str(metric["metric"])
            items = [score.items[name] for score in scores]
            try:
                values[name] = _aggregation(metric["aggregation"])(items)
            except (KeyError, ValueError, ZeroDivisionError, IndexError) as error:
                notes.append(
                    f"{name} has no value: lmms-eval cannot aggregate these {len(items)} answers, "
                    f"for want of a kind of question that it counts on: {one_line(error)}"
                )
        return LmmsTotals(values=values, notes=tuple(dict.fromkeys(notes)))

    def _value(self, item: Any) -> float:
        if not isinstance(item, Mapping):
            return float(item)
        for key in _VALUES:
            if key in item:
                return float(item[key])
        parse, truth = next(item[key] for key in _PARSES if key in item), item["answer"]
        if self.task.endswith("timescope"):
            parse, truth = parse.lower(), truth.lower()
        return float(parse == truth)

    def _parse(self, doc: Mapping[str, Any], item: Any, answer: str) -> str | None:
        if self.task in _TRUTHS or self.task.startswith("mvbench"):
            return self._option_taken(doc, answer)
        if "question_type" in item and self.task.startswith("vsibench"):
            function = "fuzzy_matching" if "accuracy" in item else "extract_number"
            found = self._process.__globals__[function](answer)
            return None if found is None or found == "" else str(found)
        parse = next(str(item[key]) for key in _PARSES if key in item)
        return None if parse in ("", _NO_OPTION) else parse

    def _option_taken(self, doc: Mapping[str, Any], answer: str) -> str | None:
        """The option that would have to be true for the answer to be right.

        For tasks that do not tell what they took.
        """
        truths = _TRUTHS.get(self.task, _mvbench_truths)
        for letter, changed in truths(doc):
            item = self._process({**doc, **changed}, [answer])[self.metrics[0]]
            if self._value(item) == 1:
                return letter
        return None


def _mvbench_truths(doc: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for index, option in enumerate(doc["candidates"]):
        yield chr(ord("A") + index), {"answer": option}


def _tomato_truths(doc: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for index in range(len(doc["options"])):
        yield chr(ord("A") + index), {"answer": index}


def _lvbench_truths(doc: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for letter in "ABCD":
        yield letter, {"answer": letter}


_TRUTHS = {"tomato": _tomato_truths, "lvbench": _lvbench_truths}


def _aggregation(named: Any) -> Callable[[list[Any]], Any]:
    from lmms_eval.api.registry import get_aggregation

    found: Callable[[list[Any]], Any] = named if callable(named) else get_aggregation(named)
    return found


@contextmanager
def _drawing(seed: str) -> Iterator[Callable[[], bool]]:
    """Draw from `seed`, so that no order of the answers changes a score; tells whether it drew."""
    kept = random.getstate()
    random.seed(seed)
    begun = random.getstate()
    try:
        yield lambda: random.getstate() != begun
    finally:
        random.setstate(kept)


@contextmanager
def _judge_must_answer(task: str) -> Iterator[None]:
    """lmms-eval counts an answer as wrong where its judge fails, and only logs the failure."""
    if task not in JUDGED:
        yield
        return
    failures = _Failures(logging.ERROR)
    log = logging.getLogger(_JUDGE_LOG)
    log.addHandler(failures)
    try:
        yield
    finally:
        log.removeHandler(failures)
    if failures.messages:
        raise DataError(f"{task} was not scored: {failures.messages[0]}")


class _Failures(logging.Handler):
    """Keeps what was logged, a line each."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.messages.append(" ".join(record.getMessage().split()))
