"""What is counted here of a benchmark is what lmms-eval itself makes of the same answers."""

import pytest

from videonsa.evals.field.recipe import read_recipe
from videonsa.evals.field.sample_line import LineMessage, LinePart, SampleLine, json_values
from videonsa.evals.field.scoring.line_scores import score_line
from videonsa.evals.field.scoring.rules import RULES
from videonsa.evals.field.scoring.totals import totals
from videonsa.evals.field.tasks import LmmsScoring, load_tasks

ANSWERS = (
    "A",
    "about 2",
    "(B)",
    "C. it is",
    "The best answer is D",
    "4",
    "about three",
    "Best option: A",
    "none",
)


class Kept(LmmsScoring):
    """Keeps its scores."""

    def __init__(self, task):
        super().__init__(task)
        self.kept = []

    def score(self, doc, doc_id, answer):
        self.kept.append(super().score(doc, doc_id, answer))
        return self.kept[-1]


def lines(task):
    """Every document with every answer."""
    for doc_id, doc in enumerate(task.docs):
        for answer in ANSWERS:
            parts = (LinePart(kind="video", text=f"{doc_id % 3}.mp4"),)
            yield SampleLine(
                task=task.name,
                split=task.split,
                doc_id=doc_id,
                messages=(LineMessage(role="user", parts=parts),),
                generation={},
                doc=json_values(doc),
                method="dense",
                method_parameters=None,
                answer=answer,
            )


@pytest.mark.parametrize(
    ("benchmark", "metric", "scale"),
    [
        ("longvideobench_val_v", "lvb_acc", 100),
        ("mlvu_dev", "mlvu_percetion_score", 1),
        ("mlvu_test", "mlvu_percetion_score", 1),
        ("timescope", "timescope_perception_score", 1),
        ("longtimescope", "timescope_perception_score", 1),
        ("tomato", "tomato_score", 100),
        ("vsibench", "vsibench_overall", 100),
        ("lsdbench", "accuracy", 1),
        ("videomme", "videomme_perception_score", 1),
        ("videomme_v2", "videomme_v2_overall_acc", 1),
        ("lvbench", "lvbench_score", 100),
    ],
)
def test_our_aggregate_is_lmms_evals_and_equal_rules_score_alike(benchmark, metric, scale):
    (task,) = load_tasks(benchmark)
    scorer, rules = Kept(benchmark), RULES[benchmark]
    scored = [score_line(line, lmms=scorer) for line in lines(task)]
    found = totals(scored, rules).answered
    assert found[1].value == pytest.approx(
        scale * scorer.totals(scorer.kept).values[metric], abs=1e-3
    )
    assert 0 < found[1].value < 100
    values = [[score.value for score in one.scores] for one in scored]
    if rules.same:
        assert all(len(set(pair)) == 1 for pair in values)
    elif rules.paper is not None:
        assert any(len(set(pair)) == 2 for pair in values), "these answers tell the rules apart"
    assert not rules.paper or {score.note for one in scored for score in one.scores} == {None}


def test_mvbench_is_the_mean_of_its_tasks_but_for_empty_answers():
    tasks = load_tasks("mvbench")[:3]
    scorers = {task.name: Kept(task.name) for task in tasks}
    scored = [score_line(line, lmms=scorers[task.name]) for task in tasks for line in lines(task)]
    own = [one.totals(one.kept).values["mvbench_accuracy"] for one in scorers.values()]
    found = totals(scored, RULES["mvbench"])
    assert found.answered[1].value == pytest.approx(sum(own) / len(own))
    assert found.notes[0].startswith("3 of 20 kinds of task have an answer")
    assert read_recipe("mvbench").tasks[:1] == (tasks[0].name,)
