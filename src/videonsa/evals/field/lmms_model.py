"""The model as lmms-eval asks it: an `Instance` becomes a question, its line what is returned."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from tqdm import tqdm

from videonsa.errors import UsageError, VideoNSAError
from videonsa.evals.field.asker import FieldAsker
from videonsa.evals.field.model_args import ModelArgs
from videonsa.evals.field.question import FieldQuestion, otherwise_asked
from videonsa.evals.field.requests import messages_of, options_of
from videonsa.evals.field.sample_line import SampleKey, SampleLine, as_json, json_values
from videonsa.evals.field.sample_log import run_log
from videonsa.inference.engine import VideoQA, load
from videonsa.machine import evaluation_facts
from videonsa.models.stored_cache.fingerprint import fingerprint
from videonsa.parsing import one_line

UNLIKELY = float("inf")
"""In place of the loss of a text that could not be weighed."""


class _Request(NamedTuple):
    """An instance of a task, and which line of the log it is; None: it fills up a rank's share."""

    key: SampleKey | None
    instance: Instance


@dataclass(slots=True)
class _Rounds:
    """The rounds of one request; the task makes each of those before."""

    make: Callable[..., Any]
    """The task's `doc_to_messages`."""
    doc: Mapping[str, Any]
    said: list[str] = field(default_factory=list)
    info: Any = None
    """What the task keeps from round to round."""
    ended: bool = False

    def chat(self) -> Sequence[Mapping[str, Any]]:
        """The messages of the next round; none where there is none."""
        if not self.said:
            return list(self.make(self.doc))
        made = self.make(
            self.doc,
            round_idx=len(self.said),
            previous_output=list(self.said),
            previous_round_info=self.info,
        )
        if not (isinstance(made, tuple) and len(made) == 4):
            self.ended = True
            return []
        told, self.ended, _, self.info = made
        return [] if self.ended else list(told)


class VideoNSAChat(lmms):  # type: ignore[misc]
    """Asks through messages; all that is asked goes into the log."""

    is_simple = False

    def __init__(self, **given: Any) -> None:
        """Load the model.

        Args:
            given: the fields of `ModelArgs`.

        Raises:
            VideoNSAError: an argument or a model that cannot be used, or a log of another run.
        """
        super().__init__()
        self.args = ModelArgs.of(given)
        self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        self.qa = self._load()
        self._system = self.args.system()
        sampling = self.args.sampling(self.qa.sampling)
        self._asker = FieldAsker(
            self.qa,
            sampling=sampling,
            batch_size=self.args.batch_size,
            time_limit=self.args.time_limit,
        )
        self._until_end = ExitStack()
        self.lines: dict[Any, SampleLine] = {}
        """The samples so far, those of earlier runs too."""
        self._write: Callable[[SampleLine], None] = self._remember
        if self.args.log is not None:
            log = self._until_end.enter_context(
                run_log(
                    Path(self.args.log),
                    process=self.rank,
                    identity=self._identity(),
                    machine=evaluation_facts(self.device),
                )
            )
            self.lines, self._write = log.lines, log.append
        elif self.rank == 0:
            _say("no log: the samples are not kept; log=FOLDER keeps them, and resumes")

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.qa.model.device

    def generate_until(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """An answer for each request; an empty one for a sample that failed."""
        results = []
        for request, line in self._answer(requests, self._question):
            text = "" if line is None else line.answer or ""
            counts = TokenCounts()
            if line is not None:
                counts = TokenCounts(input_tokens=line.prompt_tokens, output_tokens=line.new_tokens)
            results.append(GenerationResult(text=text, token_counts=counts))
            context, asked = request.instance.args[0], _options(request.instance)
            self.cache_hook.add_partial("generate_until", (context, asked), text)
        return results

    def loglikelihood(self, requests: Sequence[Instance]) -> list[GenerationResult]:
        """The loss of each text, and whether the model would write it.

        lmms-eval 0.7.3 takes the smallest value for the likeliest, whatever its interface says: so
        this is the negative of the sum of log-probabilities. And it makes a string of a pair, which
        its tasks then cannot take apart: so the pair stands where the text of an answer does.
        """
        results = []
        for _, line in self._answer(requests, self._weighed):
            if line is None or line.log_probability is None:
                weighed = UNLIKELY, False
            else:
                weighed = -line.log_probability, bool(line.is_greedy)
            results.append(GenerationResult(text=weighed))
        return results

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[list[str]]:
        """The answers of all rounds of each request; a round that fails is the last."""
        if self.is_simple:
            raise UsageError("several rounds are asked through messages: leave out --force_simple")
        return [
            [] if request.key is None else list(self._rounds(request))
            for request in self._numbered(requests)
        ]

    def clean(self) -> None:
        """Called at the end: let the log and the videos go."""
        self._until_end.close()
        self._asker.close()
        super().clean()

    def _load(self) -> VideoQA:
        args, device = self.args, self.args.device
        if self.world_size > 1 or device is None:
            device = str(self.accelerator.device)
        return load(
            args.pretrained,
            base=args.base,
            method=args.method,
            device=device,
            dtype=args.dtype,
            weights=args.weights,  # type: ignore[arg-type]  # load checks it
            revision=args.revision,
        )

    def _identity(self) -> dict[str, Any]:
        """What all samples of a log share; the weights, method and dtype as they are."""
        model = self.qa.model
        return self.args.identity() | {
            "weights_digest": fingerprint(model)["weights"],
            "method": model.method.full_name,
            "method_parameters": as_json(model.method.parameters()),
            "weights_dtype": str(model.dtype).removeprefix("torch."),
        }

    def _answer(
        self, requests: Sequence[Instance], question: Callable[[_Request], FieldQuestion]
    ) -> Iterator[tuple[_Request, SampleLine | None]]:
        """The line of each request in order; None for one that fills up."""
        numbered, failed = list(self._numbered(requests)), 0
        new = {one.key for one in numbered if one.key is not None and not self._is_known(one.key)}
        for one in numbered:
            if one.key is not None and one.key not in new:
                self._check_asked(question(one))
        lines = self._asker.ask(question(one) for one in numbered if one.key in new)
        for one in tqdm(numbered, desc="videonsa", disable=self.rank != 0):
            if one.key in new:
                self._write(next(lines))
            line = None if one.key is None else self.lines[one.key]
            failed += line is not None and line.failure is not None
            yield one, line
        if failed:
            _say(
                f"{failed} of {len(numbered)} samples failed on rank {self.rank}: lmms-eval counts "
                "them as empty answers; the log has the reasons"
            )

    def _is_known(self, key: SampleKey) -> bool:
        line = self.lines.get(key)
        return line is not None and not (line.failure is not None and self.args.retry_failed)

    def _check_asked(self, question: FieldQuestion) -> None:
        """Refuse a log in which an answer is to another prompt, or was generated otherwise."""
        line = self.lines[question.key]
        if question.failure is None and (other := otherwise_asked(line, question)):
            raise UsageError(
                f"{self.args.log} holds {line.key.text} asked with {other}: name another folder "
                "with log, or ask as before"
            )

    def _remember(self, line: SampleLine) -> None:
        self.lines[line.key] = line

    def _numbered(self, requests: Sequence[Instance]) -> Iterator[_Request]:
        """Requests of the same document are numbered, in the order in which they come."""
        count: Counter[tuple[str, str, int]] = Counter()
        for instance in requests:
            if (instance.metadata or {}).get("__padding_only__"):
                yield _Request(None, instance)
                continue
            *_, doc_id, task, split = instance.args
            place = str(task), str(split), int(doc_id)
            yield _Request(SampleKey(*place, number=count[place]), instance)
            count[place] += 1

    def _doc(self, key: SampleKey) -> Mapping[str, Any]:
        doc: Mapping[str, Any] = self.task_dict[key.task][key.split][key.doc_id]
        return doc

    def _question(self, request: _Request) -> FieldQuestion:
        key = _key(request)
        return self._made(key, lambda: self._chat(request), asked=_options(request.instance))

    def _weighed(self, request: _Request) -> FieldQuestion:
        """The question of a request whose second argument is the text, or gives it."""
        key, target = _key(request), request.instance.args[1]
        return self._made(
            key,
            lambda: self._visuals_and_text(request),
            asked={},
            continuation=lambda: str(target(self._doc(key)) if callable(target) else target),
        )

    def _made(
        self,
        key: SampleKey,
        chat: Callable[[], Sequence[Mapping[str, Any]]],
        *,
        asked: Mapping[str, Any],
        in_rounds: bool = False,
        continuation: Callable[[], str] | None = None,
    ) -> FieldQuestion:
        """A question; one that cannot be asked where the task fails, or ends the process."""
        options, notes = options_of(asked, key=key, repetition_penalty=self.args.repetition_penalty)
        given: dict[str, Any] = {
            "task": key.task,
            "split": key.split,
            "doc_id": key.doc_id,
            "index": key.number,
            "round": key.round,
            "options": options,
            "notes": notes,
            "in_rounds": in_rounds,
        }
        try:
            given["doc"] = json_values(self._doc(key))
            text = None if continuation is None else continuation()
            messages = messages_of(chat(), system=self._system)
        except VideoNSAError as error:
            return FieldQuestion(messages=(), failure=one_line(error, most=500), **given)
        except (Exception, SystemExit) as error:  # whatever a task does with its data
            reason = f"the task cannot ask it: {type(error).__name__}: {one_line(error)}"
            return FieldQuestion(messages=(), failure=reason, **given)
        return FieldQuestion(messages=messages, continuation=text, **given)

    def _chat(self, request: _Request) -> Sequence[Mapping[str, Any]]:
        if self.is_simple:
            return self._visuals_and_text(request)
        chat: Sequence[Mapping[str, Any]] = request.instance.args[1](self._doc(_key(request)))
        return chat

    def _visuals_and_text(self, request: _Request) -> Sequence[Mapping[str, Any]]:
        """Images and videos first, then the text, as lmms-eval makes messages of them."""
        from lmms_eval.api.task import ConfigurableMessagesTask

        text, _, visuals, *_ = request.instance.args
        shown = visuals(self._doc(_key(request))) if visuals is not None else []
        chat: Sequence[Mapping[str, Any]] = ConfigurableMessagesTask._build_user_turn(shown, text)
        return chat

    def _rounds(self, request: _Request) -> Iterator[str]:
        """The answers of one request, up to the last round or to one that fails."""
        key = _key(request)
        rounds = _Rounds(request.instance.args[1], self._doc(key))
        while True:
            now = key._replace(round=len(rounds.said))
            asked = _options(request.instance)
            question = self._made(now, rounds.chat, asked=asked, in_rounds=True)
            if rounds.ended:
                return
            if self._is_known(now):
                self._check_asked(question)
            else:
                self._write(next(self._asker.ask([question])))
            answer = self.lines[now].answer
            if answer is None:
                return
            rounds.said.append(answer)
            yield answer


class VideoNSASimple(VideoNSAChat):
    """The same for `--force_simple`: tasks that weigh options know no messages."""

    is_simple = True


def _key(request: _Request) -> SampleKey:
    assert request.key is not None, "a request that fills up is never asked"
    return request.key


def _options(instance: Instance) -> Mapping[str, Any]:
    """The generation_kwargs of a request: the one argument that is a mapping."""
    return next((one for one in instance.args if isinstance(one, Mapping)), {})


def _say(text: str) -> None:
    tqdm.write(f"videonsa: {text}", file=sys.stderr)
