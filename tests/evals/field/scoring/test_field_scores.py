"""Both scores of a line, and what a run counts of them, by hand."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from videonsa.errors import DataError
from videonsa.evals.field.benchmarks import BENCHMARKS, tasks_of
from videonsa.evals.field.sample_line import LineMessage, LinePart, SampleLine
from videonsa.evals.field.scoring.line_scores import score_line
from videonsa.evals.field.scoring.rules import RULES, paper_rule
from videonsa.evals.field.scoring.totals import totals


class FirstLetter:
    """Stands for lmms-eval: right if the answer begins with the truth."""

    def score(self, doc, doc_id, answer):
        if answer == "broken":
            raise DataError("the judge is away")
        value = float(answer[:1] == doc["answer"])
        return SimpleNamespace(value=value, parse=answer[:1], drawn=False)


def line(doc_id, *, answer="A", video="a.mp4", task="mlvu_test", failure=None, **doc):
    parts = (LinePart(kind="video", text=video), LinePart(kind="text", text="Which?"))
    return SampleLine(
        task=task,
        split="test",
        doc_id=doc_id,
        messages=(LineMessage(role="user", parts=parts),),
        generation={},
        doc={"answer": "A", "task_type": "ego", **doc},
        method="nsa",
        method_parameters=None,
        answer=None if failure else answer,
        failure=failure,
    )


def test_every_benchmark_says_how_its_rules_differ_or_that_they_are_the_same():
    assert set(RULES) == set(BENCHMARKS)
    for name, rules in RULES.items():
        assert rules.same or rules.differs, name
        assert paper_rule(name, seed="") or rules.same or "younger" in rules.differs
    assert len(tasks_of("mvbench")) == 20 == RULES["mvbench"].kinds


def test_a_line_has_both_scores_and_what_each_rule_took():
    found = score_line(line(3, answer=" A. a cat "), lmms=FirstLetter())
    paper, lmms = found.scores
    assert (paper.scoring, paper.value, paper.parse) == ("paper", 0.0, "A. a cat")
    assert (lmms.scoring, lmms.value, lmms.parse) == ("lmms-0.7.3", 1.0, "A")
    assert (found.key, found.video) == ("mlvu_test/test/3", "a.mp4")
    assert found.categories == {"task_type": ("ego",)}


def test_where_the_rules_are_the_same_and_not_written_twice_the_score_is_lmms_evals():
    found = score_line(line(0, task="mvbench_action_count"), lmms=FirstLetter())
    assert [score.value for score in found.scores] == [1.0, 1.0]
    assert found.categories == {"task": ("mvbench_action_count",)}
    taken_for_want_of_any = replace(
        line(0, task="tomato", answer="no"), doc={"options": ["cat", "dog"], "answer": 1}
    )
    found = score_line(taken_for_want_of_any, lmms=FirstLetter())
    assert [score.parse for score in found.scores] == [None, None]
    none = score_line(line(0, task="videomme_v2"), lmms=FirstLetter())
    assert none.scores[0].value is None and "younger" in none.scores[0].note


@pytest.mark.parametrize(
    ("changed", "lmms", "notes"),
    [
        ({}, "lmms-eval is not here", (None, "lmms-eval is not here")),
        ({"answer": "broken"}, FirstLetter(), (None, "the judge is away")),
        ({"task_type": None}, SimpleNamespace(), (None, "lmms-eval failed: AttributeError")),
    ],
)
def test_an_answer_without_a_score_says_why(changed, lmms, notes):
    found = score_line(line(0, **changed), lmms=lmms)
    for score, note in zip(found.scores, notes, strict=True):
        assert score.note == note or score.note.startswith(note)
        assert (score.value is None) == (note is not None)
    broken = replace(line(0), doc={})
    assert "not as mlvu_test publishes it" in score_line(broken, lmms="").scores[0].note


def test_kinds_count_the_same_however_many_samples_they_have_and_a_failure_is_no_wrong_answer():
    lines = [
        line(0, answer="A)", video="a.mp4", task_type="ego"),
        line(1, answer="B)", video="a.mp4", task_type="ego"),
        line(2, answer="B)", video="b.mp4", task_type="ego"),
        line(3, answer="A)", video="c.mp4", task_type="order"),
        line(4, failure="no such file", video="d.mp4", task_type="order"),
    ]
    found = totals([score_line(one, lmms=FirstLetter()) for one in lines], RULES["mlvu_test"])
    paper = found.answered[0]
    assert (paper.samples, paper.value) == (4, pytest.approx(100 * (1 / 3 + 1) / 2))
    assert found.all[0].samples == 5
    assert found.all[0].value == pytest.approx(100 * (1 / 3 + 1 / 2) / 2)
    assert paper.low <= paper.value <= paper.high
    kinds = {one.kind: one.totals[0].value for one in found.categories}
    assert kinds == {"ego": pytest.approx(100 / 3), "order": 100}
    assert found.notes[0].startswith("2 of 9 kinds of task_type have an answer")
    only_failed = [line(5, failure="no such file", video="e.mp4", task_type="count"), *lines]
    found = totals([score_line(one, lmms=FirstLetter()) for one in only_failed], RULES["mlvu_test"])
    assert found.notes[0].startswith("2 of 9 kinds of task_type have an answer")


def test_the_levels_of_one_kind_share_its_weight():
    kinds = [f"object_rel_direction_{level}" for level in ("easy", "medium", "hard", "hard")]
    lines = [
        line(number, task="vsibench", answer=answer, question_type=kind, ground_truth="A")
        for number, (kind, answer) in enumerate(zip(kinds, "AAAB", strict=True))
    ]
    lines.append(
        line(9, task="vsibench", answer="B", question_type="route_planning", ground_truth="A")
    )
    found = totals([score_line(one, lmms="") for one in lines], RULES["vsibench"])
    # easy 1, medium 1, hard 1/2: 5/6 of one kind; route planning 0.
    assert found.answered[0].value == pytest.approx(100 * (5 / 6 + 0) / 2)
    assert found.answered[1].value is None


def test_values_of_a_list_are_kinds_each_and_lengths_come_by_size():
    lines = [
        line(0, task="timescope", length=600, type="QA"),
        line(1, task="timescope", length=60, type="OCR"),
    ]
    found = totals([score_line(one, lmms="") for one in lines], RULES["timescope"])
    assert [one.kind for one in found.categories] == ["60", "600", "OCR", "QA"]
    listed = score_line(line(0, task="lvbench", question_type=["a", "b"]), lmms="")
    assert listed.categories == {"question_type": ("a", "b")}
