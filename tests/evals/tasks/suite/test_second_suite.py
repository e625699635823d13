"""The second suite asked of a model: many questions about a video together, scored in two ways."""

import json
from dataclasses import asdict

import pytest
from suite_runs import ask, small_run

from videonsa.errors import UsageError
from videonsa.evals.journal import SAMPLES
from videonsa.evals.tasks.suite.report_markdown import render_suite
from videonsa.evals.tasks.suite.suite_line import parse_line, read_suite_lines
from videonsa.evals.tasks.suite.suite_summary import summarise
from videonsa.evals.tasks.suite.video_answerer import ModelAnswerer
from videonsa.inference.engine import VideoQA, load
from videonsa.machine import evaluation_facts
from videonsa.rendered.suites import script_from

KINDS = ("place", "larger", "direction", "order")


def second_run(**options):
    return small_run(**({"suite": 2, "kinds": KINDS, "lengths": (256,)} | options))


@pytest.fixture(scope="module")
def qa(tiny_folder) -> VideoQA:
    return load(tiny_folder, device="cpu")


def script_of(run):
    video = run.videos()[0]
    return script_from(video.seed, spec=video.spec)


@pytest.mark.parametrize("condition", ["whole", "blind", "grey"])
def test_questions_asked_together_are_answered_as_one_by_one(qa, condition) -> None:
    run = second_run(model="tiny", conditions=("whole", "blind", "grey"))
    script, answerer = script_of(run), ModelAnswerer(qa, run)
    together = list(answerer.answers(script, script.questions, condition))
    assert len(together) == len(script.questions) > len(KINDS)
    alone = [
        reply
        for question in script.questions
        for reply in answerer.answers(script, [question], condition)
    ]
    assert [(r.text, r.likeliest) for r in together] == [(r.text, r.likeliest) for r in alone]
    assert [r.cost.prompt_tokens for r in together] == [r.cost.prompt_tokens for r in alone]


@pytest.mark.parametrize("condition", ["whole", "blind"])
def test_the_likeliest_option_is_that_of_the_first_suites_style(qa, condition) -> None:
    run, script = second_run(model="tiny"), script_of(second_run())
    found = [
        r.likeliest for r in ModelAnswerer(qa, run).answers(script, script.questions, condition)
    ]
    style = small_run(model="tiny", style="likeliest")
    wanted = [r.text for r in ModelAnswerer(qa, style).answers(script, script.questions, condition)]
    assert found == wanted


def test_each_question_of_a_video_has_its_line_and_a_run_resumes(tmp_path) -> None:
    run = second_run(samples=3)
    lines = ask(run, tmp_path)
    asked = sum(len(script_from(v.seed, spec=v.spec).questions) for v in run.videos())
    assert len(lines) == 2 * asked
    assert all(line.oracle == line.answer and line.suite == 2 for line in lines)
    assert max(line.number for line in lines) >= 1
    kept = (tmp_path / SAMPLES).read_bytes().splitlines(keepends=True)
    (tmp_path / SAMPLES).write_bytes(b"".join(kept[:5]))
    assert ask(run, tmp_path) == lines == read_suite_lines(tmp_path)


def test_stills_and_kinds_drawn_for_each_video_can_be_asked(tmp_path) -> None:
    lines = ask(second_run(kinds=("any",), lengths=(16, 256), samples=8), tmp_path)
    assert {line.kind for line in lines if line.length == 16} <= {
        "place", "relation", "distance", "larger", "howmany", "number"
    }  # fmt: skip
    assert len({line.kind for line in lines}) > 8


def test_the_report_states_both_scores_and_what_guessing_reaches(tmp_path, qa) -> None:
    run = second_run(model="tiny", samples=1)
    lines = ask(run, tmp_path, ModelAnswerer(qa, run))
    result = summarise(lines)
    (score,) = [
        x
        for x in result["scores"]
        if (x["condition"], x["length"], x["kind"]) == ("whole", "all", "all")
    ]
    shown = [line for line in lines if line.condition == "whole"]
    assert score["likeliest"] == sum(line.likeliest == line.answer for line in shown)
    run_facts = {"machine": evaluation_facts(qa.model.device), "seconds": 1.0}
    text = render_suite(result | {"run": run_facts}, title="# The suite", figures=())
    assert f"Suite 2, {len(shown)} questions" in text
    assert "The likeliest option:" in text
    assert "| place |" in text


def test_another_style_than_free_is_refused() -> None:
    with pytest.raises(UsageError, match="suite=2: want 'free'"):
        second_run(style="choice")
    with pytest.raises(UsageError, match="suite=3"):
        small_run(suite=3)


def test_lines_from_before_there_was_a_second_suite_are_read(tmp_path) -> None:
    (line, *_) = ask(small_run(samples=1), tmp_path)
    content = json.loads(json.dumps(asdict(line)))
    for name in ("suite", "number", "likeliest"):
        del content[name]
    assert parse_line(content) == line
    assert small_run().to_dict().keys() & {"suite"} == set()
    with pytest.raises(ValueError, match="no line of this suite"):
        parse_line(content | {"kind": "state"})
