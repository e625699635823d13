"""The tasks of lmms-eval as a recipe asks them: its generation and its changes of the prompt.

What a task would score while it is asked is left out: a run is scored from its log alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

from videonsa.errors import DataError, UsageError, VideoNSAError
from videonsa.evals.field.recipe import Recipe
from videonsa.evals.field.tasks import FieldTask, load_tasks
from videonsa.parsing import one_line

DocToText = Callable[..., str]


def asked_tasks(recipe: Recipe) -> list[FieldTask]:
    """The tasks of a recipe's benchmark, with their documents.

    Raises:
        UsageError: lmms-eval or what a task imports is missing; or the recipe changes a prompt in
            a way that the task does not heed.
        DataError: documents that are neither in the cache nor can be downloaded.
    """
    try:
        tasks = load_tasks(recipe.benchmark)
    except VideoNSAError:
        raise
    except Exception as error:  # of datasets, of the hub, or of the network: anything
        raise DataError(
            f"the documents of {recipe.benchmark} can be neither found below HF_HOME nor "
            f"downloaded ({one_line(_cause(error))}): connect, or 'hf auth login' where "
            "the data set is gated"
        ) from error
    for task in tasks:
        _ask_as(task, recipe)
    return tasks


def _cause(error: BaseException) -> BaseException:
    """What made the last of several attempts fail."""
    attempt = getattr(error, "last_attempt", None)
    cause = None if attempt is None else attempt.exception()
    return error if cause is None else _cause(cause)


def _ask_as(task: FieldTask, recipe: Recipe) -> None:
    asked = task.lmms_task
    asked.set_config("generation_kwargs", recipe.generation_values(), update=True)
    asked.set_config("process_results", _no_scores)
    stated = {"pre_prompt": recipe.pre_prompt, "post_prompt": recipe.post_prompt}
    changed = {name: text for name, text in stated.items() if text is not None}
    if changed:
        asked.lmms_eval_specific_kwargs = {**(asked.lmms_eval_specific_kwargs or {}), **changed}
    if recipe.replaced:
        if callable(asked.config.doc_to_messages):
            raise UsageError(
                f"replaced: {task.name} writes its messages itself: want pre_prompt and post_prompt"
            )
        asked.set_config("doc_to_text", _replacing(asked.config.doc_to_text, recipe))
    _check_prompt(task, changed)


def _no_scores(doc: Mapping[str, Any], results: list[str]) -> dict[str, Any]:
    """In place of what a task makes of an answer."""
    return {}


def _replacing(doc_to_text: DocToText, recipe: Recipe) -> DocToText:
    if not callable(doc_to_text):
        raise UsageError(f"replaced: the prompt of {recipe.benchmark} is a field: it cannot change")

    def replaced(*args: Any, **keywords: Any) -> str:
        return recipe.prompt_text(doc_to_text(*args, **keywords))

    return replaced


def _check_prompt(task: FieldTask, changed: Mapping[str, str]) -> None:
    """A change that is not heeded would pass for one that makes no difference."""
    if not len(task.docs):
        raise DataError(f"{task.name} has no documents: download its data set again")
    text = task.lmms_task.doc_to_text(dict(task.docs[0]))  # refuses what cannot be replaced
    for name, stated in changed.items():
        if stated not in text:
            raise UsageError(
                f"{name}: {task.name} does not heed it: leave it out, its prompt is lmms-eval's"
            )
