"""From a prompt to tokens, and from tokens to text: one prefill, then one step a token."""

from collections.abc import Callable, Collection, Iterator, Set
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from videonsa.errors import BudgetError, ModelError
from videonsa.inference.sampling import NOT_FINITE, GenerationSettings, Sampler
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.video.processing import VideoPrompt

if TYPE_CHECKING:
    from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration

_REPLACEMENT = "\ufffd"


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
    settings: GenerationSettings,
    stop_ids: Set[int],
    recorder: Recorder | None = None,
    embeds: Tensor | None = None,
    advice: Callable[[], str] | None = None,
) -> Iterator[int]:
    """Prefill the prompt once, then decode token by token with the cache.

    Yields the ids as they come, at most `settings.max_new_tokens`; a stop id ends it and is the
    last one yielded.

    Args:
        model: what answers.
        prompt: what it is asked; with its pixels, unless `embeds` are given.
        settings: how tokens are chosen.
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
        model, first, VideoNSACache(), settings=settings, stop_ids=stop_ids, recorder=recorder
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
    settings: GenerationSettings,
    stop_ids: Set[int],
    seen: Collection[int] = (),
    method: AttentionMethod | None = None,
    recorder: Recorder | None = None,
) -> Iterator[list[int]]:
    """Prefill a batch, then decode a token of every sample at a time.

    Args:
        model: in evaluation mode.
        inputs: arguments of the model's forward for what the cache lacks of the prompts, all
            ending at the same place.
        cache: what was read before, which may be nothing; it grows.
        settings: how tokens are chosen, and how many at most.
        stop_ids: tokens that end the answer of a sample. It is decoded on, to no purpose, until
            all have ended.
        seen: tokens that count as seen beside those of `inputs`, for the repetition penalty.
        method: how prompts and answers attend; None is as the model does.
        recorder: collects where the answers looked.

    Yields:
        The next token id of each sample, B in all.

    Raises:
        ModelError: logits that are not finite.
    """
    sampler: Sampler | None = None
    ended: set[int] = set()
    for step in range(1, settings.max_new_tokens + 1):
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
            logits = output.logits[:, -1].to(model.device, torch.float32)
            if sampler is None:
                sampler = Sampler.of(model, settings, batch_size=len(logits))
                rows = inputs.get("rows")
                mask = inputs.get("attention_mask") if rows is None else rows.attention_mask
                sampler.see(inputs["input_ids"], mask)
                if seen:
                    sampler.see(torch.tensor([list(seen)], device=model.device))
            ids = sampler(logits)
            tokens: list[int] = ids.tolist()
            inputs = {"input_ids": ids[:, None]}
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
