"""The runner: proven by an oracle and a guesser, taken up again after a kill, guarded."""

import json
import re
from dataclasses import asdict, replace

import pytest
from suite_runs import FEW, ask, small_run

from videonsa.errors import UsageError
from videonsa.evals.journal import RUN, SAMPLES
from videonsa.evals.scoring import Accuracy
from videonsa.evals.tasks.suite.answerers import OracleAnswerer
from videonsa.evals.tasks.suite.suite_line import read_suite_lines
from videonsa.evals.tasks.suite.suite_report import write_report
from videonsa.rendered.suite import KINDS

ALL_KINDS = {"kinds": KINDS, "lengths": (1024,)}


def test_the_oracle_is_always_right_and_blind_a_guesser(tmp_path) -> None:
    lines = ask(small_run(conditions=("whole", "blind"), samples=40, **ALL_KINDS), tmp_path)
    shown = [line for line in lines if line.condition == "whole"]
    assert len(shown) == 40 * len(KINDS)
    assert all(line.right and line.oracle == line.answer for line in shown)
    blind = [line for line in lines if line.condition == "blind"]
    assert 0 < sum(line.right for line in blind) < len(blind) / 2


@pytest.mark.parametrize("style", ["free", "choice", "likeliest"])
def test_a_constant_guesser_is_at_chance_in_every_kind(tmp_path, style) -> None:
    run = small_run(model="constant", conditions=("whole",), samples=150, style=style, **ALL_KINDS)
    lines = ask(run, tmp_path)
    for kind in KINDS:
        mine = [line for line in lines if line.kind == kind]
        chance = sum(1 / len(line.options) for line in mine) / len(mine)
        right = sum(line.right for line in mine)
        # Nine kinds: one of them may well leave its 95 % interval, but not by far.
        low, high = Accuracy(right, len(mine)).interval
        assert low - 0.05 < chance < high + 0.05, kind


class Killed(Exception):
    """Stands for a kill."""


class Mortal(OracleAnswerer):
    """Answers so many questions, then dies."""

    def __init__(self, answers: int) -> None:
        self.left = answers

    def answers(self, script, questions, condition):
        for reply in super().answers(script, questions, condition):
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield reply


def without_times(text: str) -> str:
    return re.sub(r'"seconds": [\d.]+|[\d.]+ s in all', "", text)


def test_a_run_that_was_killed_ends_as_an_undisturbed_one(tmp_path) -> None:
    run = small_run(samples=4, lengths=(256, 512), conditions=("whole", "grey"))
    ask(run, tmp_path / "undisturbed")
    broken = tmp_path / "broken"
    for survived in (5, 7):  # the second kill is amid the questions of another video
        with pytest.raises(Killed):
            ask(run, broken, Mortal(survived))
        with (broken / SAMPLES).open("a") as file:
            file.write('{"length": 256, "sample": 1, "qu')  # what a kill amid a line leaves
    assert len(read_suite_lines(broken)) == 12
    ask(run, broken)
    lines = {name: (tmp_path / name / SAMPLES).read_text() for name in ("undisturbed", "broken")}
    assert sorted(lines["broken"].splitlines()) == sorted(lines["undisturbed"].splitlines())
    for folder in ("undisturbed", "broken"):
        write_report(tmp_path / folder)
    for name in ("report.json", "report.md"):
        texts = [(tmp_path / x / name).read_text() for x in ("undisturbed", "broken")]
        assert without_times(texts[0]) == without_times(texts[1])
        assert texts[0]


def test_nothing_is_asked_twice_and_more_may_be_asked_later(tmp_path) -> None:
    run = small_run()
    ask(run, tmp_path)
    before = (tmp_path / SAMPLES).read_text()
    ask(run, tmp_path, Mortal(0))
    assert (tmp_path / SAMPLES).read_text() == before
    ask(replace(run, samples=3, lengths=(512,)), tmp_path)
    assert (tmp_path / SAMPLES).read_text().startswith(before)
    assert len(read_suite_lines(tmp_path)) == len(FEW) * 2 * (2 + 3)
    assert json.loads((tmp_path / RUN).read_text())["config"]["samples"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"difficulty": "hard"}, "a run with difficulty='easy', not 'hard'"),
        ({"nsa": (("window_size", 9),)}, "a run with nsa.window_size=None, not 9"),
        ({"model": "constant"}, "a run with model='oracle', not 'constant'"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(tmp_path, changes, message) -> None:
    run = small_run()
    ask(run, tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        ask(replace(run, **changes), tmp_path)


def test_lines_of_another_version_of_the_suite_are_not_mixed_with_new_ones(tmp_path) -> None:
    run = small_run()
    line = ask(run, tmp_path)[0]
    path = tmp_path / SAMPLES
    path.write_text(path.read_text().replace(line.question, "What blinked?"))
    with pytest.raises(UsageError, match="another version of the suite"):
        ask(replace(run, samples=3), tmp_path)


@pytest.mark.parametrize("name", [SAMPLES, RUN])
def test_a_folder_that_lacks_a_file_or_holds_nonsense_is_refused(tmp_path, name) -> None:
    run = small_run()
    ask(run, tmp_path)
    (tmp_path / name).write_text("nonsense\n")
    with pytest.raises(UsageError, match=r"name another folder"):
        ask(run, tmp_path)
    (tmp_path / name).unlink()
    if name == RUN:
        with pytest.raises(UsageError, match=r"samples\.jsonl without run\.json"):
            ask(run, tmp_path)
    else:
        with pytest.raises(UsageError, match="is not there"):
            read_suite_lines(tmp_path)


def test_a_line_says_all_there_is_to_know(tmp_path) -> None:
    lines = ask(small_run(positions=(0.5,)), tmp_path)
    line = asdict(next(line for line in lines if line.kind == "needle"))
    ((first, last),) = line["evidence"]
    assert line["position"] == (first + last) / 2 / 16
    assert line["answer"] in line["options"]
    assert line["peak_bytes"] is line["prefill_seconds"] is line["spec"] is None
