"""Tasks as a recipe asks them: prompts and generation are the recipe's, or it is refused."""

import pytest

from videonsa.errors import UsageError
from videonsa.evals.field.asked_tasks import asked_tasks
from videonsa.evals.field.recipe import changed_recipe, read_recipe


def text(task, doc_id=0):
    return task.messages(doc_id)[0]["content"][-1]["text"]


def test_the_papers_prompts_are_asked_and_not_those_of_today():
    (mlvu,) = asked_tasks(read_recipe("mlvu_test"))
    assert text(mlvu, 1).endswith("(D) 4\nOnly give the best option.\nBest option: (")
    (tomato,) = asked_tasks(read_recipe("tomato"))
    assert text(tomato).startswith("You will be provided with 16 separate frames uniformly sampled")
    (today,) = asked_tasks(read_recipe("tomato", name="long"))
    assert text(today).startswith("You will be provided with frames uniformly sampled")


def test_generation_is_the_recipes():
    (lsdbench,) = asked_tasks(read_recipe("lsdbench"))  # whose task asks for temperature 0.7
    stated = {"max_new_tokens": 2048, "temperature": 0.0, "do_sample": False}
    assert stated.items() <= lsdbench.generation.items()
    assert len(asked_tasks(read_recipe("mvbench"))) == 20


@pytest.mark.parametrize(
    ("benchmark", "setting", "message"),
    [
        ("timescope", "post_prompt=Answer!", "post_prompt: timescope does not heed it"),
        ("timescope", "replaced=[[a, b]]", "replaced: the prompt of timescope is a field"),
        ("vsibench", "replaced=[[a, b]]", "replaced: vsibench writes its messages itself"),
        ("mlvu_test", "replaced=[[nowhere, b]]", "'nowhere' does not stand in the prompt"),
    ],
)
def test_a_change_that_would_change_nothing_is_refused(benchmark, setting, message):
    with pytest.raises(UsageError, match=message):
        asked_tasks(changed_recipe(read_recipe(benchmark), [setting]))
