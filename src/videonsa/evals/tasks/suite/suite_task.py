"""The suite as a task: which questions are asked of an answerer, and the line of each."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, NoReturn

from videonsa.errors import UsageError, VideoNSAError
from videonsa.evals.conditions import Condition, under
from videonsa.evals.journal import Key
from videonsa.evals.replies import Reply
from videonsa.evals.tasks.suite.answer_styles import judge
from videonsa.evals.tasks.suite.answerers import Answerer
from videonsa.evals.tasks.suite.suite_line import NSA_PARAMETERS, SuiteKey, SuiteLine, parse_line
from videonsa.evals.tasks.suite.suite_run import CONDITIONS, SuiteRun, SuiteVideo
from videonsa.models.methods import DENSE, SPARSE, AttentionMethod
from videonsa.rendered.suite import Script, SuiteQuestion, questions_of
from videonsa.rendered.suites import read_answer, script_from

_TEXT_TOKENS = 64
"""For the progress bar: the weight of a question without a video."""


class NumberedQuestion(NamedTuple):
    """A question, and which of its kind about the video it is, from 0."""

    number: int
    question: SuiteQuestion


class SuiteGroup(NamedTuple):
    """Questions about one video under one condition."""

    video: SuiteVideo
    script: Script
    condition: str
    questions: list[NumberedQuestion]

    @property
    def weight(self) -> int:
        """Its share of the progress, in tokens."""
        return _TEXT_TOKENS if CONDITIONS[self.condition].video == "absent" else self.video.length


@dataclass(frozen=True, slots=True)
class SuiteTask:
    """A run of the suite and who is asked; `run_task` runs it."""

    run: SuiteRun
    answerer: Answerer

    @property
    def unit(self) -> str:
        """Of the weights of groups."""
        return "token"

    def config(self) -> dict[str, Any]:
        """All options of the run, and all parameters of the method."""
        return self.run.to_dict() | {"parameters": self._parameters()}

    def identity(self) -> dict[str, Any]:
        """Those that every line of a folder shares."""
        stated = self.run.identity()
        if self.run.attention in (DENSE, SPARSE):  # the model and its changes say them
            return stated
        return stated | {"parameters": self._parameters()}

    def _parameters(self) -> dict[str, Any] | None:
        """Of the method as JSON keeps them; None where it has none, or nothing attends."""
        method = self.answerer.method
        stated: dict[str, Any] | None = json.loads(json.dumps(method and method.parameters()))
        return stated

    def parse_line(self, content: Any) -> SuiteLine:
        """See `suite_line.parse_line`."""
        return parse_line(content)

    def groups(self, known: Mapping[Key, SuiteLine]) -> Iterator[SuiteGroup]:
        """What `known` does not answer; the conditions of a video stand together.

        Raises:
            UsageError: lines of questions that the suite now asks in other words.
        """
        for video in self.run.videos():
            script = script_from(video.seed, spec=video.spec)
            questions = _numbered(questions_of(script))
            _check_known(known, video, questions)
            for condition in self.run.conditions:
                left = [q for q in questions if _key(video, condition, q) not in known]
                if left:
                    yield SuiteGroup(video, script, condition, left)

    def answer(self, group: SuiteGroup) -> Iterator[SuiteLine]:
        """Ask the questions of a group."""
        asked = [one.question for one in group.questions]
        replies = self.answerer.answers(group.script, asked, group.condition)
        for question, reply in zip(group.questions, replies, strict=True):
            yield _line(self, group, question, reply)

    def failed(self, group: SuiteGroup, error: VideoNSAError) -> NoReturn:
        """End the run: what fails is the model or its memory, and would fail again."""
        raise error


def _numbered(questions: Sequence[SuiteQuestion]) -> list[NumberedQuestion]:
    """Each with its number among those of its kind."""
    counts: Counter[str] = Counter()
    numbered = []
    for question in questions:
        numbered.append(NumberedQuestion(counts[question.kind], question))
        counts[question.kind] += 1
    return numbered


def _key(video: SuiteVideo, condition: str, asked: NumberedQuestion) -> SuiteKey:
    return SuiteKey(video.length, video.sample, condition, asked.question.kind, asked.number)


def _check_known(
    known: Mapping[Key, SuiteLine], video: SuiteVideo, questions: Sequence[NumberedQuestion]
) -> None:
    """Refuse to resume where the suite now asks something else than it did."""
    for name in CONDITIONS:
        for one in questions:
            line, question = known.get(_key(video, name, one)), one.question
            if line is not None and (line.question, line.answer) != (
                question.text,
                question.answer,
            ):
                raise UsageError(
                    f"{question.kind} of video {video.sample} of {video.length} tokens was "
                    f"{line.question!r}, now {question.text!r}: these lines are of another version "
                    "of the suite; name another folder with --out"
                )


def _line(task: SuiteTask, group: SuiteGroup, asked: NumberedQuestion, reply: Reply) -> SuiteLine:
    number, question = asked
    run, video, script, condition = task.run, group.video, group.script, group.condition
    verdict = judge(reply.text, question, run.style)
    return SuiteLine(
        length=video.length,
        sample=video.sample,
        seed=script.seed,
        condition=condition,
        kind=question.kind,
        position=_position(script, question),
        evidence=[list(span) for span in question.evidence],
        question=question.text,
        options=list(question.options),
        answer=question.answer,
        oracle=read_answer(script, question.text),
        reply=reply.text,
        chosen=verdict.chosen,
        right=verdict.right,
        model=run.model,
        attention=run.attention,
        spec=_spec_of(task.answerer.method, CONDITIONS[condition]),
        difficulty=run.difficulty,
        frame_size=run.frame_size,
        style=run.style,
        split=run.split,
        suite=run.suite,
        number=number,
        likeliest=reply.likeliest,
        **asdict(reply.cost),
    )


def _position(script: Script, question: SuiteQuestion) -> float | None:
    """None where the evidence is strewn over more than half of the video: it has no one place."""
    first, last = question.evidence[0][0], question.evidence[-1][1]
    seconds = script.spec.num_frames / 2
    return question.position if last - first <= seconds / 2 else None


def _spec_of(method: AttentionMethod | None, condition: Condition) -> dict[str, Any] | None:
    """The parameters of a method; of NSA's, those that a report is about."""
    if method is None or condition.video == "absent":
        return None
    parameters = under(method, condition).parameters()
    if parameters is None:
        return None
    names = NSA_PARAMETERS if parameters.keys() >= set(NSA_PARAMETERS) else parameters
    return {name: _as_json(parameters[name]) for name in names}


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
