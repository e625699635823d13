"""A run is scored from its log alone: failures are counted, both scorings stand side by side."""

from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from videonsa.errors import UsageError
from videonsa.evals.field.benchmark_report import report_text, write_report
from videonsa.evals.field.recipe import changed_recipe, differences, read_recipe
from videonsa.evals.field.sample_line import LineMessage, LinePart, SampleLine
from videonsa.evals.field.sample_log import sample_log
from videonsa.evals.field.scored_run import RunConfig, read_config, read_scores, score_run
from videonsa.evals.journal import write_run


class Exact:
    """Stands for lmms-eval: right if the answer is the truth; aggregates to a mean of 1."""

    def score(self, doc, doc_id, answer):
        value = float(answer.strip("()") == doc["answer"])
        return SimpleNamespace(value=value, parse=answer.strip("()"), drawn=False)

    def totals(self, scores):
        values = {"acc": sum(one.value for one in scores) / len(scores)}
        return SimpleNamespace(values=values, notes=("a note of lmms-eval",))


def line(doc_id, answer, *, video="a.mp4", failure=None, tokens=100):
    parts = (LinePart(kind="video", text=video), LinePart(kind="text", text="Which?"))
    return SampleLine(
        task="lsdbench",
        split="test",
        doc_id=doc_id,
        messages=(LineMessage(role="user", parts=parts),),
        generation={},
        doc={"correct_answer": "A", "answer": "A"},
        method="dense",
        method_parameters=None,
        answer=answer,
        failure=failure,
        prompt_tokens=None if failure else tokens,
        video_tokens=None if failure else tokens - 40,
    )


LINES = [
    line(0, "A"),
    line(1, "(B) or A", tokens=300),  # by the paper's rule the last letter, which is right
    line(2, "B", video="b.mp4"),
    line(3, None, failure="c.mp4 cannot be read: it is no video", video="c.mp4"),
]


@pytest.fixture
def folder(tmp_path):
    published = read_recipe("lsdbench")
    recipe = changed_recipe(published, ["max_frames=64"])
    config = RunConfig(
        benchmark="lsdbench",
        recipe=published.title,
        differences=differences(recipe, published),
        settings=asdict(recipe),
        settings_digest=recipe.digest,
        model="embedded",
        demonstration=True,
        method="dense",
        method_parameters={"a": 1},
        weights_dtype="float32",
        limit=4,
        batch_size=1,
        lmms_eval="0.7.3",
    )
    write_run(tmp_path, {"config": asdict(config), "machine": {"device": "cpu"}, "seconds": 1.0})
    with sample_log(tmp_path) as journal:
        for one in LINES:
            journal.append(one)
    return tmp_path


def test_scores_come_from_the_log_and_count_failures_apart(folder):
    scores = score_run(folder, {"lsdbench": Exact()})
    assert read_scores(folder) == scores
    assert (scores.samples, scores.failed) == (4, 1)
    assert [(one.reason, one.count) for one in scores.reasons] == [(LINES[3].failure, 1)]
    assert [one.value for one in scores.totals.answered] == pytest.approx([200 / 3, 100 / 3])
    assert [one.value for one in scores.totals.all] == pytest.approx([50, 25])
    spread = scores.prompt_tokens
    assert (spread.least, spread.median, spread.most) == (100, 100, 300)
    assert scores.own == {"lsdbench": {"acc": 1 / 3}} and scores.density is None
    assert "a note of lmms-eval" in scores.notes


def test_a_report_says_what_was_asked_and_where_the_scorings_differ(folder):
    config, scores = read_config(folder), score_run(folder, {"lsdbench": Exact()})
    text = report_text(config, scores, {"device": "cpu"})
    assert "**NOT COMPARABLE: the model is the embedded demonstration model" in text
    assert "4 samples, 1 of them failed." in text
    row = "| paper (the published number's) | 66.67 (0.0-100.0) | 3 | 50.00 (0.0-100.0) | 4 |"
    assert row in text
    assert "- Differs from the recipe: max_frames 64 (recipe: 512)." in text
    assert "- 1: c.mp4 cannot be read: it is no video" in text
    assert "They score 1 samples differently: lsdbench/test/1." in text
    assert "| tokens of a prompt | 100 | 100 | 300 |" in text
    assert "| lsdbench | acc | 0.333" in text
    assert report_text(replace(config, demonstration=False), scores, {}).count("NOT COMP") == 0


def test_the_same_log_gives_the_same_files_and_without_lmms_eval_half_of_the_scores(folder):
    def written():
        config, scores = read_config(folder), score_run(folder, {"lsdbench": "it is not here"})
        write_report(folder, config, scores, {"device": "cpu"})
        return [(folder / name).read_bytes() for name in ("scores.json", "report.md")]

    first = written()
    assert written() == first
    assert "| lmms-0.7.3 | not scored | 0 | not scored | 0 |" in first[1].decode()
    assert "- 3 answers have no score by lmms-0.7.3: it is not here" in first[1].decode()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"holds no run\.json"):
        read_config(tmp_path)
    write_run(tmp_path, {"config": {"lengths": [1]}})
    with pytest.raises(UsageError, match="is of no run of a benchmark"):
        read_config(tmp_path)
    with pytest.raises(UsageError, match=r"scores\.json cannot be read"):
        read_scores(tmp_path)
