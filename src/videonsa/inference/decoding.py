"""The decode loop: what is asked is read, then one token of every sample at a time."""

from collections.abc import Collection, Generator, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.inference.generation import not_finite
from videonsa.inference.sampling import NOT_FINITE, GenerationSettings, Sampler
from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.reasons import why_not_captured, why_not_static_text
from videonsa.models.decoding.steps import KeptSteps, StaticSteps, rows_needed
from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Recorder

if TYPE_CHECKING:
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

LONGEST_QUESTION = 512
"""Tokens that static steps read, 128 at a time; the plain forward reads more of them faster."""


def decode(
    model: "VideoNSAForConditionalGeneration",
    inputs: dict[str, Any],
    cache: VideoNSACache,
    *,
    settings: GenerationSettings,
    stop_ids: Set[int],
    method: AttentionMethod | None = None,
    recorder: Recorder | None = None,
    seen: Collection[int] = (),
    kept: KeptSteps | None = None,
) -> Generator[list[int]]:
    """Read a batch of prompts after a cache, then decode a token of every sample at a time.

    On a CUDA GPU the tokens of one sample are decoded by captured steps where they can be, and a
    short question is read by them: the host then is one step ahead, and a step is run to no purpose
    behind the last token. Else the model's forward takes every step.

    Args:
        model: in evaluation mode.
        inputs: arguments of the model's forward for what the cache lacks of the prompts, all
            ending at the same place.
        cache: what was read before, which may be nothing. At the end it has grown by what is asked
            and by all tokens given but the last; until then by no more than that.
        settings: how tokens are chosen, and how many at most.
        stop_ids: tokens that end the answer of a sample. It is decoded on, to no purpose, until
            all have ended.
        method: how prompts and answers attend; None is as the model does.
        recorder: collects where the answers looked.
        seen: tokens that count as seen beside those of `inputs`, for the repetition penalty.
        kept: steps after this cache, and their graphs, from answers before; it tells how this
            answer was decoded.

    Yields:
        The next token id of each sample, B in all. Close the generator where it is left early,
        before the cache is used again.

    Raises:
        ModelError: logits that are not finite.
    """
    kept = KeptSteps(model, cache) if kept is None else kept
    plain = _Plain(model, cache, method, recorder)
    asked, rows = inputs["input_ids"], inputs.get("rows")
    mask = inputs.get("attention_mask") if rows is None else rows.attention_mask
    # Not around the loop: the mode would leak into whoever consumes this generator.
    with torch.inference_mode():
        steps, logits = _read(plain, inputs, kept, settings.max_new_tokens)
        del inputs
        sampler = _sampler(kept, model, settings, batch_size=len(logits))
        _see(sampler, seen, asked, mask)
        ids = sampler(logits)
    yield from _answer(steps, ids, sampler, settings.max_new_tokens, stop_ids)


def decode_each(
    model: "VideoNSAForConditionalGeneration",
    questions: Sequence[Sequence[int]],
    cache: VideoNSACache,
    *,
    settings: GenerationSettings,
    stop_ids: Set[int],
    method: AttentionMethod | None = None,
    seen: Collection[int] = (),
    kept: KeptSteps | None = None,
) -> Generator[list[int]]:
    """Answer questions about what one cache holds, each as if it were asked alone.

    They are read and answered together over the one cache, of which nothing is copied. Where that
    cannot be, they are answered one after another before the first token is given.

    Args:
        model: in evaluation mode.
        questions: the text tokens of each.
        cache: what was read before, one sample; it stays as it is.
        settings: how tokens are chosen, and how many at most.
        stop_ids: tokens that end an answer, which goes on to no purpose until all have ended.
        method: how questions and answers attend; None is as the model does.
        seen: as for `decode`.
        kept: as for `decode`.

    Yields:
        The next token id of each question.

    Raises:
        ModelError: logits that are not finite.
        UsageError: a question without tokens.
    """
    if not questions or not all(map(len, questions)):
        raise UsageError("a question without tokens: want one token at least in each")
    kept = KeptSteps(model, cache) if kept is None else kept
    reason = why_not_static_text(model, cache, method)
    if reason is not None:
        kept.decoding = f"plain steps, one question after another: {reason}"
        plain = _Plain(model, cache, method, None)
        yield from _in_turn(plain, questions, settings, stop_ids, seen)
        return
    reason = why_not_captured(model, cache, method)
    with torch.inference_mode():
        steps = kept.of(len(questions), captures=reason is None)
        steps.begin(rows_needed(max(map(len, questions)), settings.max_new_tokens))
        logits = steps.read(questions)
        sampler = _sampler(kept, model, settings, batch_size=len(logits))
        _see(sampler, seen, *_padded(questions, model.device))
        ids = sampler(logits)
    aside = _Static(steps, kept, reason=reason)
    aside.tell()  # an answer may be complete before the others are
    yield from _answer(aside, ids, sampler, settings.max_new_tokens, stop_ids)


class _Steps(Protocol):
    """What decodes a token of every sample at a time."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a step may be run before it is known that it is wanted."""

    def next(self, ids: Tensor, sampler: Sampler) -> Tensor:
        """Read one token more of each sample, int64 `[B]`; gives the next ones."""

    def end(self, num_steps: int) -> None:
        """So many steps were wanted."""


class _Plain(NamedTuple):
    """Steps of the model's forward; the cache grows as it goes."""

    model: "VideoNSAForConditionalGeneration"
    cache: VideoNSACache
    method: AttentionMethod | None
    recorder: Recorder | None

    @property
    def runs_ahead(self) -> bool:
        return False

    def read(self, inputs: dict[str, Any]) -> Tensor:
        output = self.model(
            **inputs,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            method=self.method,
            recorder=self.recorder,
        )
        logits: Tensor = output.logits[:, -1].to(self.model.device, torch.float32)
        return logits

    def next(self, ids: Tensor, sampler: Sampler) -> Tensor:
        return sampler(self.read({"input_ids": ids[:, None]}))

    def end(self, num_steps: int) -> None:
        pass

    def why_not_captured(self) -> str | None:
        return why_not_captured(self.model, self.cache, self.method, self.recorder)


class _Static(NamedTuple):
    """Static steps; the cache grows at the end."""

    steps: StaticSteps
    kept: KeptSteps
    num_read: int | None = None
    """Tokens of the question that they read; None: the cache is to stay as it is."""
    reason: str | None = None
    """Why they are not captured."""

    @property
    def runs_ahead(self) -> bool:
        return self.steps.graphs.has(1)

    def next(self, ids: Tensor, sampler: Sampler) -> Tensor:
        self.steps.step(ids)
        return self.steps.choose(sampler)

    def end(self, num_steps: int) -> None:
        if self.num_read is not None:
            self.steps.keep(self.num_read + num_steps)
        self.tell()

    def tell(self) -> None:
        """How it decodes, as far as it is known."""
        reason = self.reason or self.steps.graphs.why_not
        self.kept.decoding = f"static steps: {reason}" if reason else "captured steps"


def _read(
    plain: _Plain, inputs: dict[str, Any], kept: KeptSteps, max_new_tokens: int
) -> tuple[_Steps, Tensor]:
    """Read what is asked; gives how to go on, and the logits after it."""
    reason = plain.why_not_captured()
    question = None if reason else _text(plain, inputs)
    if question is not None:
        steps = kept.of(1, captures=True)
        rows = inputs.get("rows")
        first = None if rows is None else rows.position_ids[0, :, 0]
        steps.begin(rows_needed(len(question), max_new_tokens), first=first)
        return _Static(steps, kept, len(question)), steps.read([question])
    logits = plain.read(inputs)
    reason = reason or plain.why_not_captured()  # the batch and its padding are known now
    if reason is not None or max_new_tokens == 1:
        kept.decoding = f"plain steps: {reason or 'one token is wanted'}"
        return plain, logits
    steps = kept.of(1, captures=True)
    steps.begin(rows_needed(0, max_new_tokens))
    return _Static(steps, kept, 0), logits


def _text(plain: _Plain, inputs: dict[str, Any]) -> list[int] | None:
    """The ids of what is asked, where static steps can read it: one short text after the cache."""
    given = {name: value for name, value in inputs.items() if value is not None}
    ids, mask = given.pop("input_ids"), given.pop("attention_mask", None)
    short = len(ids) == 1 and ids.shape[1] <= LONGEST_QUESTION
    if not short or why_not_static_text(plain.model, plain.cache, plain.method) is not None:
        return None
    if mask is not None and not mask.all():
        return None
    if set(given) == {"inputs_embeds", "rows"}:
        is_text = not (given["rows"].has_vision or given["rows"].is_padded)
    else:
        is_text = not given and not plain.model._token_types(ids).any()
    question: list[int] = ids[0].tolist()
    return question if is_text else None


def _answer(
    steps: _Steps,
    ids: Tensor,
    sampler: Sampler,
    max_new_tokens: int,
    stop_ids: Set[int],
) -> Generator[list[int]]:
    """Go on from the first token of every sample, int64 `[B]`."""
    given = 0
    ended: set[int] = set()
    try:
        while True:
            coming = _Coming(ids)
            ahead = steps.runs_ahead and given + 1 < max_new_tokens
            if ahead:
                ids = _next(steps, ids, sampler)
            tokens = coming.wait()
            if NOT_FINITE in tokens:
                raise not_finite(f"token {given + 1} of the answer")
            given += 1
            yield tokens
            ended |= {sample for sample, token in enumerate(tokens) if token in stop_ids}
            if len(ended) == len(tokens) or given == max_new_tokens:
                return
            if not ahead:
                ids = _next(steps, ids, sampler)
    finally:
        steps.end(max(given - 1, 0))


def _next(steps: _Steps, ids: Tensor, sampler: Sampler) -> Tensor:
    with torch.inference_mode():
        return steps.next(ids, sampler)


def _sampler(
    kept: KeptSteps,
    model: "VideoNSAForConditionalGeneration",
    settings: GenerationSettings,
    *,
    batch_size: int,
) -> Sampler:
    """A sampler at its beginning: that of the last answer, if it chooses by the same rule."""
    # So that its graph is kept: what ends an answer, and the seed, are no part of choosing.
    key = batch_size, replace(settings, max_new_tokens=1, stop=(), seed=None)
    sampler = kept.keeping(key, lambda: Sampler.of(model, settings, batch_size=batch_size))
    sampler.restart(settings.seed)
    return sampler


def _see(sampler: Sampler, seen: Collection[int], ids: Tensor, mask: Tensor | None) -> None:
    """Count what was read, ids `[B, L]`, and what else counts."""
    sampler.see(ids, mask)
    if seen:
        sampler.see(torch.tensor([list(seen)], device=ids.device))


def _padded(questions: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids `[N, L]`, and where they are not padding."""
    length = max(map(len, questions))
    ids = torch.tensor([[*one, *[0] * (length - len(one))] for one in questions], device=device)
    lengths = torch.tensor([[len(one)] for one in questions], device=device)
    return ids, torch.arange(length, device=device) < lengths


class _Coming:
    """Ids on their way to the host, behind which the device goes on."""

    def __init__(self, ids: Tensor) -> None:
        # Into pinned memory from a GPU; a copy always, since the next step may write over them.
        self._ids = ids.to("cpu", non_blocking=True, copy=True)
        self._there = None
        if ids.is_cuda:
            self._there = torch.cuda.current_stream(ids.device).record_event()

    def wait(self) -> list[int]:
        if self._there is not None:
            self._there.synchronize()
        ids: list[int] = self._ids.tolist()
        return ids


def _in_turn(
    plain: _Plain,
    questions: Sequence[Sequence[int]],
    settings: GenerationSettings,
    stop_ids: Set[int],
    seen: Collection[int],
) -> Generator[list[int]]:
    """Answer one question after another; an answer that has ended repeats its last token."""
    model, cache = plain.model, plain.cache
    length = cache.get_seq_length()
    answers = []
    for ids in questions:
        inputs = {"input_ids": torch.tensor([list(ids)], device=model.device)}
        try:
            steps = decode(
                model,
                inputs,
                cache,
                settings=settings,
                stop_ids=stop_ids,
                method=plain.method,
                seen=seen,
            )
            answers.append([token for (token,) in steps])
        finally:
            cache.crop(length - cache.get_seq_length())
    for number in range(max(map(len, answers))):
        yield [answer[min(number, len(answer) - 1)] for answer in answers]
