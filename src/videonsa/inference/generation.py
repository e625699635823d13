"""From a prompt to tokens, and from tokens to text: one prefill, then one step a token."""

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videonsa.errors import BudgetError, ModelError, UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.planning.budget import check_new_tokens
from videonsa.video.processing import VideoPrompt

if TYPE_CHECKING:
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

_REPLACEMENT = "\ufffd"
_SEEDS = 2**63  # what a torch generator takes
_TEMPERATURES = (1e-6, 1e6)
"""Logits divided by less leave float32; by more, all tokens are equally likely."""
NOT_FINITE = -1
"""In place of a token id where logits are not finite: they are read together, in one wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How tokens are chosen. Temperature 0 is greedy; `seed` makes sampling repeatable."""

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse values outside the domain."""
        check_new_tokens(self.max_new_tokens)
        temperature, top_p = self.temperature, self.top_p
        least, most = _TEMPERATURES
        if not (_is_number(temperature) and (temperature == 0 or least <= temperature <= most)):
            raise UsageError(
                f"temperature={temperature!r}: want a number of at least 0: 0 for the likeliest "
                f"token, or {least:g} to {most:g}"
            )
        if not (_is_number(top_p) and 0 < top_p <= 1):
            raise UsageError(f"top_p={top_p!r}: want a number above 0 and at most 1")
        seed = self.seed
        if seed is not None and not (type(seed) is int and 0 <= seed < _SEEDS):
            raise UsageError(f"seed={seed!r}: want an int of at least 0 and below 2**63")

    def chooser(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """A function from float32 logits `[B, V]` to token ids `[B]`, some of them `NOT_FINITE`."""
        if self.temperature == 0:
            return likeliest
        generator = torch.Generator(device)
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed)
        return lambda logits: _sample(
            logits, temperature=self.temperature, top_p=self.top_p, generator=generator
        )


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _sample(
    logits: Tensor, *, temperature: float, top_p: float, generator: torch.Generator
) -> Tensor:
    """Draw from the fewest likeliest tokens that hold `top_p` of the probability."""
    finite = logits.isfinite().all(-1)
    # Drawing from what is not finite fails, on a GPU for good.
    logits = torch.where(finite[:, None], logits, 0.0)
    probabilities, ids = torch.softmax(logits / temperature, dim=-1).sort(descending=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = torch.where(before < top_p, probabilities, 0)
    drawn = ids.gather(-1, torch.multinomial(kept, 1, generator=generator))[:, 0]
    return torch.where(finite, drawn, NOT_FINITE)


def likeliest(logits: Tensor) -> Tensor:
    """The likeliest tokens by logits `[..., V]`, `NOT_FINITE` where one of them is not finite."""
    return torch.where(logits.isfinite().all(-1), logits.argmax(-1), NOT_FINITE)


def not_finite(what: str) -> ModelError:
    """What to raise where logits are not finite; `what` says which."""
    return ModelError(
        f"the logits of {what} are not finite: the weights hold NaN or infinity, or exceed the "
        "dtype; try another dtype (--dtype float32 or bfloat16), else download the weights again"
    )


def generate_tokens(
    model: "VideoNSAForConditionalGeneration",
    prompt: VideoPrompt,
    *,
    options: GenerationOptions,
    stop_ids: Set[int],
    recorder: Recorder | None = None,
    embeds: Tensor | None = None,
    advice: Callable[[], str] | None = None,
) -> Iterator[int]:
    """Prefill the prompt once, then decode token by token with the cache.

    Yields the ids as they come, at most `options.max_new_tokens`; a stop id ends it and is the
    last one yielded.

    Args:
        model: what answers.
        prompt: what it is asked; with its pixels, unless `embeds` are given.
        options: how tokens are chosen.
        stop_ids: tokens that end the answer.
        recorder: collects where the answer looked.
        embeds: [1, L, hidden], the embedded prompt with the features of its frames in place.
        advice: asked what to do where memory runs out.

    Raises:
        BudgetError: out of memory.
        ModelError: logits that are not finite.

    """
    device = model.device
    # Pixels stay where they are: the tower takes them in parts.
    first = {
        "input_ids": prompt.input_ids.to(device),
        "attention_mask": prompt.attention_mask.to(device),
        "pixel_values": prompt.pixel_values,
        "image_grid_thw": prompt.image_grid_thw,
        "pixel_values_videos": prompt.pixel_values_videos,
        "video_grid_thw": prompt.video_grid_thw,
        "video_times": prompt.video_times,
        "inputs_embeds": embeds,
    }
    steps = decode(
        model, first, VideoNSACache(), options=options, stop_ids=stop_ids, recorder=recorder
    )
    del first, embeds  # held by `steps` alone, which lets go of them after the prefill
    with out_of_memory(prompt.input_ids.shape[1], device, advice):
        for (token,) in steps:
            yield token


def decode(
    model: "VideoNSAForConditionalGeneration",
    inputs: dict[str, Any],
    cache: VideoNSACache,
    *,
    options: GenerationOptions,
    stop_ids: Set[int],
    method: AttentionMethod | None = None,
    recorder: Recorder | None = None,
) -> Iterator[list[int]]:
    """Prefill a batch, then decode a token of every sample at a time.

    Args:
        model: in evaluation mode.
        inputs: arguments of the model's forward for what the cache lacks of the prompts, all
            ending at the same place.
        cache: what was read before, which may be nothing; it grows.
        options: how tokens are chosen, and how many at most.
        stop_ids: tokens that end the answer of a sample. It is decoded on, to no purpose, until
            all have ended.
        method: how prompts and answers attend; None is as the model does.
        recorder: collects where the answers looked.

    Yields:
        The next token id of each sample, B in all.

    Raises:
        ModelError: logits that are not finite.
    """
    choose = options.chooser(model.device)
    ended: set[int] = set()
    for step in range(1, options.max_new_tokens + 1):
        # Not around the loop: the mode would leak into whoever consumes this generator.
        with torch.inference_mode():
            output = model(
                **inputs,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
                method=method,
                recorder=recorder,
            )
            ids = choose(output.logits[:, -1].float())
            tokens: list[int] = ids.tolist()
            inputs = {"input_ids": ids[:, None].to(model.device)}
        if NOT_FINITE in tokens:
            raise not_finite(f"token {step} of the answer")
        yield tokens
        ended |= {sample for sample, token in enumerate(tokens) if token in stop_ids}
        if len(ended) == len(tokens):
            return


@contextmanager
def out_of_memory(
    prompt_tokens: int, device: torch.device, advice: Callable[[], str] | None = None
) -> Iterator[None]:
    """Turn running out of memory inside into a BudgetError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        exhausted = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not exhausted and "allocate memory" not in str(error):
            raise
        what = advice() if advice else "lower --max-frames or --max-pixels"
        raise BudgetError(
            f"out of memory on {device} with a prompt of {prompt_tokens} tokens: {what}"
        ) from error


class TextPieces:
    """Turns ids that come one by one into text pieces; a character is never cut in two."""

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # ids before it only give the context that decoding needs
        self._shown = 0  # ids before it are shown

    def push(self, token: int) -> str:
        """The text that `token` completes; empty while a character is still open."""
        self._ids.append(token)
        piece = self._unseen()
        if not piece or piece.endswith(_REPLACEMENT):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return piece

    def flush(self) -> str:
        """What is left at the end, an unfinished character included."""
        piece = self._unseen()
        self._start = self._shown = len(self._ids)
        return piece

    def _unseen(self) -> str:
        seen = self._decode(self._ids[self._start : self._shown])
        return self._decode(self._ids[self._start :])[len(seen) :]
