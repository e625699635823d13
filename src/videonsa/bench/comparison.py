"""Methods side by side on one clip and one question: answer, what was computed, time and memory."""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videonsa.bench.measure import one_line
from videonsa.bench.stopwatch import wait_for, wall_times
from videonsa.errors import VideoNSAError
from videonsa.inference.context import Context, EncodedVision, Passage, until_stop
from videonsa.inference.encoded_clip import EncodedClip
from videonsa.inference.engine import VideoQA
from videonsa.inference.sampling import GenerationSettings
from videonsa.machine import measurement_facts
from videonsa.models.methods import AttentionMethod, Dense
from videonsa.models.methods.compression import TokenCompression, compress_clip
from videonsa.models.methods.pairs import causal_pairs
from videonsa.models.recorder.patterns import AttentionPattern
from videonsa.models.tower_probe import EncodedFrames
from videonsa.planning.budget import check_context
from videonsa.video.chat import DEFAULT_SYSTEM, VisionSlot, chat_tokens
from videonsa.video.decode import VideoClip

FORMAT = "videonsa comparison 1"
CELLS = 96
"""Of each axis of a pattern."""
NUMBERS = (
    *("reason", "answer", "kept_tokens", "leaves", "attention", "encode_ms", "first_ms"),
    *("prefill_ms", "times_ms", "peak_gb", "pattern", "notes"),
)
"""Of a method; all but the reason are None where it cannot run."""
MOST_TOLD = 60
"""Characters of an answer in a line; JSON has all."""
DIGITS = 4
"""Of the shares of a pattern."""
HOW = (
    "frames are read once, and encoded again only for a method that asks the vision tower for "
    "more than features; "
    "encode_ms is the time of that, a single run, with what is compiled for it where it is the "
    "first; first_ms is the first run of a method, from the embedded prompt to the logits of the "
    "first token, with what is compiled for it; prefill_ms is the median of later runs of the "
    "same, after one that is not timed; attention is the share of the query-key pairs of dense "
    "attention to the whole prompt that all layers and heads computed, without what a method "
    "computes to choose keys or tokens; memory is the peak of "
    "PyTorch's allocator in these runs, weights included; a pattern is recorded in a run of its own"
)


class Candidate(NamedTuple):
    """A method to compare."""

    name: str
    """As it was asked for."""
    method: AttentionMethod | None
    reason: str | None = None
    """Why there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparisonRequest:
    """What to ask, and what to measure."""

    question: str
    system: str = DEFAULT_SYSTEM
    settings: GenerationSettings
    repeats: int = 3
    """Timed runs."""
    layer: int | None = None
    """Whose pattern is recorded; None: of none."""


def compare_methods(
    qa: VideoQA,
    clip: VideoClip,
    candidates: Sequence[Candidate],
    request: ComparisonRequest,
    *,
    progress: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Run every method; gives the result so far after each.

    Args:
        qa: the model.
        clip: the frames.
        candidates: methods; one that refuses the model or the clip is kept with its reason.
        request: what to ask.
        progress: told a line for each method.

    Raises:
        BudgetError: a prompt that does not fit the context.
    """
    runs = _Runs(qa, clip, candidates, request)
    result: dict[str, Any] = {
        "format": FORMAT,
        "model": qa.name,
        "dtype": str(qa.model.dtype).removeprefix("torch."),
        "video": str(clip.info.path),
        "question": request.question,
        "frames": len(clip.times),
        "height": clip.frames.shape[2],
        "width": clip.frames.shape[3],
        "video_tokens": runs.num_vision,
        "prompt_tokens": len(runs.ids),
        "repeats": request.repeats,
        "layer": request.layer,
        "axis": runs.axis(),
        "notes": list(runs.notes),
        "warnings": list(clip.warnings),
        "how": HOW,
        "machine": measurement_facts(qa.model.device),
        "methods": [],
    }
    for candidate in candidates:
        line = runs.line(candidate)
        progress(f"{candidate.name}: {line['reason'] or _told(line)}")
        result["methods"].append(line)
        yield result


class _Runs:
    """One clip and question, and what was encoded of it, for all methods."""

    def __init__(
        self,
        qa: VideoQA,
        clip: VideoClip,
        candidates: Sequence[Candidate],
        request: ComparisonRequest,
    ) -> None:
        self._qa, self._clip, self._request = qa, clip, request
        self._encoded, self._encode_ms = self._encode(Dense())
        vision = self._encoded.vision(qa.shape.vision)
        self.notes = (*qa.notes, *self._encoded.notes, *_on_gates(qa, candidates))
        self.num_vision = len(vision.features)
        self.ids = self._prompt(vision)
        check_context(
            clip.plan,
            text_tokens=len(self.ids) - self.num_vision,
            max_new_tokens=request.settings.max_new_tokens,
            context=qa.shape.context,
        )

    def _encode(self, method: AttentionMethod) -> tuple[EncodedClip, float]:
        """What a method reads of the clip, and the milliseconds that the vision tower took."""
        begin = time.perf_counter()
        encoded = self._qa.encode(self._clip, self._qa.sampling, method=method)
        wait_for(self._qa.model.device)
        return encoded, 1e3 * (time.perf_counter() - begin)

    def _vision(self, method: AttentionMethod) -> tuple[EncodedVision, float]:
        """What a method reads, encoded again only if it asks more of the tower than features."""
        shape = self._qa.shape.vision
        whole = self._encoded.vision(shape)
        if not isinstance(method, TokenCompression):
            return whole, self._encode_ms
        if method.tower_probe is not None:
            encoded, took = self._encode(method)
            return encoded.vision(shape), took
        begin = time.perf_counter()
        frames, rows, columns = whole.grid
        grid = (frames, rows // shape.merge_size, columns // shape.merge_size)
        with torch.inference_mode():
            kept = compress_clip(method, [EncodedFrames(whole.features, grid)])
        wait_for(self._qa.model.device)
        took = self._encode_ms + 1e3 * (time.perf_counter() - begin)
        return whole._replace(features=kept.features, kept=kept.places), took

    def _prompt(self, vision: EncodedVision) -> list[int]:
        ids: list[int] = chat_tokens(
            self._request.question,
            tokenizer=self._qa.tokenizer,
            vision=[VisionSlot(vision.kind, len(vision.features))],
            system=self._request.system,
        ).ids
        return ids

    def axis(self) -> dict[str, Any]:
        """What the tokens of the prompt are, for both axes of a pattern."""
        kind = self._encoded.vision(self._qa.shape.vision).kind
        first = self.ids.index(getattr(self._qa.model.config, f"{kind}_token_id"))
        patches = self._encoded.grid(self._qa.shape.vision)[0]
        step = self._qa.shape.vision.temporal_patch_size
        return {
            "tokens": len(self.ids),
            "vision": [first, first + self.num_vision],
            "seconds": [self._encoded.times[i * step] for i in range(patches)],
        }

    def line(self, candidate: Candidate) -> dict[str, Any]:
        """What came of a method, as JSON keeps it."""
        entry: dict[str, Any] = {"name": candidate.name, "options": None, **dict.fromkeys(NUMBERS)}
        if candidate.method is None:
            return entry | {"reason": candidate.reason}
        entry["options"] = candidate.method.parameters()
        try:
            return entry | self._measured(candidate.method)
        except VideoNSAError as error:
            return entry | {"reason": str(error)}
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            return entry | {"reason": one_line(error)}

    def _measured(self, method: AttentionMethod) -> dict[str, Any]:
        device, text = self._qa.model.device, self._qa.model.config.text_config
        notes = method.notes(text.num_hidden_layers, text.num_attention_heads)
        vision, encode_ms = self._vision(method)
        passage = self._passage(method, vision)
        begin = time.perf_counter()
        context = self._read(method, passage)
        wait_for(device)
        first = 1e3 * (time.perf_counter() - begin)
        computed = self._computed(context)
        del context  # before another has its keys
        times, peak = wall_times(
            lambda: self._read(method, passage), device=device, repeats=self._request.repeats
        )
        return {
            "answer": self._answer(method, passage),
            **computed,
            "encode_ms": encode_ms,
            "first_ms": first,
            "prefill_ms": statistics.median(times),
            "times_ms": times,
            "peak_gb": peak,
            "pattern": self._pattern(method, passage, vision.kept),
            "notes": list(notes),
        }

    def _computed(self, context: Context) -> dict[str, Any]:
        """What is left of the vision tokens, and of the pairs of dense attention."""
        records = context.cache.records
        left = [(one.first_layer, int(one.vision_mask.sum())) for one in records]
        computed, dense = context.cache.computed, causal_pairs(len(self.ids))
        num_layers = len(self._qa.model.decoder_layers)
        return {
            "kept_tokens": left[0][1],
            "leaves": [{"layer": layer, "tokens": tokens} for layer, tokens in left[1:]],
            "attention": None if computed is None else computed.total() / dense / num_layers,
        }

    def _read(
        self, method: AttentionMethod, passage: Passage, recorder: AttentionPattern | None = None
    ) -> Context:
        """A context that has read the prompt, and nothing before it."""
        context = Context(self._qa.model, method=method)
        context.read(passage, recorder=recorder)
        return context

    def _answer(self, method: AttentionMethod, passage: Passage) -> str:
        context, stop_ids = Context(self._qa.model, method=method), self._qa.stop_ids
        steps = context.answer(passage, settings=self._request.settings, stop_ids=stop_ids)
        return self._qa.decode(until_stop([token for (token,) in steps], stop_ids))

    def _places(self, places: Tensor | None, kept: Tensor | None) -> Tensor | None:
        """Places among the tokens of the whole prompt, from those in the compressed one."""
        if kept is None:
            return places
        first, end = self.axis()["vision"]
        whole = torch.arange(len(self.ids))
        whole = torch.cat([whole[:first], first + kept.cpu(), whole[end:]])
        return whole if places is None else whole[places]

    def _passage(self, method: AttentionMethod, vision: EncodedVision) -> Passage:
        with torch.inference_mode():
            return Context(self._qa.model, method=method).passage(self._prompt(vision), [vision])

    def _pattern(
        self, method: AttentionMethod, passage: Passage, kept: Tensor | None
    ) -> dict[str, Any] | None:
        """What the layer that was asked for attends to.

        Args:
            method: how its tokens attend.
            passage: the prompt.
            kept: int64 `[K]`, which vision tokens are left in it; None: all.
        """
        if self._request.layer is None:
            return None
        layer, context = self._request.layer, Context(self._qa.model, method=method)
        pattern = AttentionPattern(
            layer,
            num_tokens=len(self.ids),
            cells=CELLS,
            places=lambda: self._places(places_in_layer(context, layer), kept),
        )
        context.read(passage, recorder=pattern)
        return {"shares": _rounded(pattern.shares()), "kept": _rounded(pattern.kept())}


def _on_gates(qa: VideoQA, candidates: Sequence[Candidate]) -> Iterator[str]:
    """Which methods do with less than the weights were trained with, if any."""
    known = [(one.name, one.method) for one in candidates if one.method is not None]
    names = [name for name, method in known if not method.uses_gates]
    if qa.model.config.gates and names:
        yield f"the gates of these weights are left out by {', '.join(names)}"


def places_in_layer(context: Context, layer: int) -> Tensor | None:
    """Places of the keys of a layer among the tokens of the prompt; None: all are there."""
    records = [one for one in context.cache.records if one.first_layer <= layer]
    places = records[-1].places
    return None if places is None else torch.tensor(places)


def _rounded(values: Tensor) -> Any:
    """As JSON keeps shares: lists, with None where there is no number."""
    found = values.double().mul(10**DIGITS).round().div(10**DIGITS).tolist()
    return _without_nan(found)


def _without_nan(values: Any) -> Any:
    if isinstance(values, list):
        return [_without_nan(value) for value in values]
    return None if math.isnan(values) else values


def _told(line: dict[str, Any]) -> str:
    return f"{line['prefill_ms']:.1f} ms, {shortened(line['answer'])!r}"


def shortened(answer: str) -> str:
    """An answer that fits a line."""
    answer = " ".join(answer.split())
    return answer if len(answer) <= MOST_TOLD else f"{answer[: MOST_TOLD - 3]}..."
