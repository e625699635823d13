"""`Context`: what a model has read. It is read on in parts that end anywhere, and gone back in."""

import math
from collections.abc import Collection, Generator, Iterator, Sequence, Set
from contextlib import contextmanager
from typing import Literal, NamedTuple, Self

import torch
from torch import Tensor

from videonsa.inference.decoding import decode, decode_each
from videonsa.inference.sampling import GenerationSettings
from videonsa.inference.weighing import Weighed, likeliest_each, read_together
from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.steps import KeptSteps
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.methods.compression import check_compressed
from videonsa.models.methods.protocol import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.rope import Grid
from videonsa.models.rows import (
    NewRows,
    VisionInputs,
    WholePrompt,
    compress_rows,
    cut_rows,
    describe_frames,
    whole_prompt,
)


class EncodedVision(NamedTuple):
    """An image or a video as the tower encoded it."""

    kind: Literal["image", "video"]
    features: Tensor
    """`[M, hidden]`, a row for each merged token; or `[K, hidden]` of those that are kept."""
    grid: Grid
    """(t, h, w) in patches."""
    seconds: tuple[float, ...] = ()
    """Of a video, of the first frame of each temporal patch, as position ids count them."""
    kept: Tensor | None = None
    """int64 `[K]`, ascending: which of the M merged tokens have a feature; None: all have."""


class Passage(NamedTuple):
    """T tokens of each of B samples, ready to be read."""

    ids: Tensor
    """int64 `[B, T]`."""
    embeds: Tensor
    """`[B, T, hidden]`, with the features of images and videos."""
    rows: NewRows
    """What they are and where they stand."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.ids.shape[1]

    def cut(self, start: int, stop: int) -> Self:
        """The tokens [start, stop); it may cut a frame."""
        own = slice(start, stop)
        return self._replace(
            ids=self.ids[:, own],
            embeds=self.embeds[:, own],
            rows=cut_rows(self.rows, start, stop),
        )


class Context:
    """The tokens that a model has read, of one sample or of a batch of B, in its KV cache."""

    def __init__(
        self,
        model: VideoNSAForConditionalGeneration,
        *,
        method: AttentionMethod | None = None,
        cache: VideoNSACache | None = None,
    ) -> None:
        """Begin with nothing read, or with what a cache holds.

        Args:
            model: in evaluation mode.
            method: how its tokens attend; None is as the model does.
            cache: of the same model and method.
        """
        self.model = model
        self.method = model.method if method is None else method
        self.cache = VideoNSACache() if cache is None else cache
        self._steps = KeptSteps(model, self.cache)

    @property
    def decoding(self) -> str | None:
        """How the last answer was decoded, in one line: by which steps, and why; None: none was."""
        return self._steps.decoding

    @property
    def num_tokens(self) -> int:
        """Read so far, of each sample."""
        return self.cache.tokens.vision_mask.shape[1]

    @torch.inference_mode()
    def passage(
        self,
        ids: Sequence[int] | Tensor,
        vision: Sequence[EncodedVision] = (),
        *,
        mask: Tensor | None = None,
        start: Sequence[int] | None = None,
    ) -> Passage:
        """Make tokens ready to be read after those read so far.

        Args:
            ids: of the one sample; or int64 `[B, T]`. Of images and videos that are compressed, of
                the tokens kept; these stand where they would stand among all.
            vision: the images and videos that stand in them, in order, samples concatenated.
            mask: bool `[B, T]`, False where padded.
            start: the position id that the first token of each sample gets, in place of the next.

        Raises:
            UsageError: images or videos that do not match the ids, or are not compressed as the
                method says.
        """
        # Described on the CPU, where the ids come from: nothing waits for the device.
        given = ids.cpu() if isinstance(ids, Tensor) else torch.tensor([list(ids)])
        check_compressed(self.method, [one.kept for one in vision])
        images = [one for one in vision if one.kind == "image"]
        videos = [one for one in vision if one.kind == "video"]
        whole = self._whole(given, vision, mask)
        rows = self.model.describe(
            whole.ids,
            VisionInputs(
                [one.grid for one in images],
                [one.grid for one in videos],
                [one.seconds for one in videos],
            ),
            mask=None if mask is None else mask.cpu(),
            start=self.cache.next_position if start is None else start,
            method=self.method,
        )
        rows = rows if whole.kept is None else compress_rows(rows, whole.kept)
        device = self.model.device
        embeds = self.model.embed_prompt(
            given.to(device), image_features=_features(images), video_features=_features(videos)
        )
        return Passage(given.to(device), embeds, rows.to(device))

    def _whole(
        self, ids: Tensor, vision: Sequence[EncodedVision], mask: Tensor | None
    ) -> WholePrompt:
        """The prompt with all tokens of its images and videos."""
        if all(one.kept is None for one in vision):
            return WholePrompt(ids, None)
        config = self.model.config
        size = config.vision_config.spatial_merge_size
        counts = [(len(one.features), math.prod(one.grid) // size**2, one.kept) for one in vision]
        pads = config.image_token_id, config.video_token_id
        return whole_prompt(ids, counts, pads=pads, mask=mask)

    @torch.inference_mode()
    def frames(
        self,
        features: Tensor,
        size: tuple[int, int],
        seconds: Sequence[float],
        *,
        start: int,
        kept: Tensor | None = None,
    ) -> Passage:
        """Make more frames of the video that was read last ready to be read, of one sample.

        Args:
            features: `[M, hidden]`, of whole temporal patches; of those kept where some are not.
            size: rows and columns of patches of a frame.
            seconds: of the first frame of each temporal patch, since the first of the video.
            start: position id at which the video begins.
            kept: int64 `[K]`, ascending: which merged tokens have a feature; None: all have.

        Raises:
            UsageError: a rule of temporal ids for which all frames have to be known, or frames that
                are not compressed as the method says.
        """
        check_compressed(self.method, [kept])
        (after,) = self.cache.next_position
        rows = describe_frames(
            seconds,
            size,
            start=start,
            after=after,
            rules=self.model.position_rules(self.method),
            device=self.model.device,
        )
        rows = rows if kept is None else compress_rows(rows, kept.to(self.model.device))
        token = self.model.config.video_token_id
        ids = torch.full((1, len(features)), token, device=self.model.device)
        return Passage(ids, features[None], rows)

    @torch.inference_mode()
    def read(self, passage: Passage, *, recorder: Recorder | None = None) -> Tensor:
        """Read on; gives the logits `[B, vocabulary]` after the last token."""
        logits: Tensor = self.model(
            input_ids=passage.ids,
            inputs_embeds=passage.embeds,
            rows=passage.rows,
            past_key_values=self.cache,
            method=self.method,
            recorder=recorder,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def go_back(self, num_tokens: int) -> None:
        """Forget all but the first tokens."""
        self.cache.keep(num_tokens)

    def forget(self, start: int, stop: int) -> None:
        """Forget the tokens [start, stop), whole frames; those after them keep their positions.

        Blocks and windows are then those of the tokens left.
        """
        self.cache.forget(start, stop)

    def start_of_video(self, num_tokens: int) -> int:
        """Position id at which the video of one sample begins whose tokens were read last."""
        return int(self.cache.tokens.next_positions[0, -num_tokens - 1])

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is read inside is forgotten at the end."""
        before = self.num_tokens
        try:
            yield
        finally:
            self.go_back(before)

    def get_ready(self, *, max_new_tokens: int) -> None:
        """Prepare the device for an answer while it may still compute what was read."""
        self._steps.get_ready(self.method, max_new_tokens=max_new_tokens)

    def answer(
        self,
        passage: Passage,
        *,
        settings: GenerationSettings,
        stop_ids: Set[int],
        seen: Collection[int] = (),
        recorder: Recorder | None = None,
    ) -> Generator[list[int]]:
        """Read on, then decode a token of every sample at a time.

        Args:
            passage: what is read before the answer.
            settings: how tokens are chosen.
            stop_ids: tokens that end the answer of a sample.
            seen: tokens that count as seen beside those of the passage, for the repetition penalty.
            recorder: collects where the answers looked.

        Yields:
            The next id of each sample. Once the generator has ended or is closed, all but the last
            of these are read too.

        Raises:
            ModelError: logits that are not finite.
        """
        first = {
            "input_ids": passage.ids,
            "inputs_embeds": passage.embeds,
            "rows": passage.rows,
        }
        return decode(
            self.model,
            first,
            self.cache,
            settings=settings,
            stop_ids=stop_ids,
            seen=seen,
            method=self.method,
            recorder=recorder,
            kept=self._steps,
        )

    def answer_each(
        self,
        questions: Sequence[Sequence[int]],
        *,
        settings: GenerationSettings,
        stop_ids: Set[int],
        seen: Collection[int] = (),
    ) -> Generator[list[int]]:
        """Answer questions about what one sample has read, each as if it were asked alone.

        Args:
            questions: the text tokens of each, up to where its answer begins.
            settings: how tokens are chosen.
            stop_ids: tokens that end an answer.
            seen: tokens that count as seen beside those of a question.

        Yields:
            The next id of each answer; neither questions nor answers stay read.

        Raises:
            ModelError: logits that are not finite.
            UsageError: a question without tokens.
        """
        return decode_each(
            self.model,
            questions,
            self.cache,
            settings=settings,
            stop_ids=stop_ids,
            seen=seen,
            method=self.method,
            kept=self._steps,
        )

    @torch.inference_mode()
    def likeliest_each(
        self, questions: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]
    ) -> list[int]:
        """Weigh answers to questions about what one sample has read, each as if asked alone.

        Args:
            questions: the text tokens of each, up to where its answer begins.
            answers: the ids of each answer to each of them, with the token that ends it.

        Returns:
            Which answer the model would write to each question with the highest probability; the
            first of equals. Neither questions nor answers stay read.

        Raises:
            ModelError: logits that are not finite.
        """
        return likeliest_each(questions, answers, read=self._read_aside)

    def _read_aside(self, texts: list[list[int]]) -> Iterator[Tensor]:
        """The logits `[n, V]` after texts, each as if it followed what was read; in parts."""
        together = read_together(
            self.model, texts, self.cache, method=self.method, kept=self._steps
        )
        if together is not None:
            yield from together
            return
        for text in texts:
            with self.aside():
                yield self.read(self.passage(text))

    @torch.inference_mode()
    def likeliest(self, passage: Passage, candidates: Sequence[Sequence[int]]) -> int:
        """Read on, in one sample, and weigh what may follow; the passage stays read.

        Args:
            passage: up to where the answer begins.
            candidates: the ids of each answer, with the token that ends it.

        Returns:
            Which candidate the model would write with the highest probability; the first of equals.

        Raises:
            ModelError: logits that are not finite.
        """
        logits = self.read(passage)
        weighed = [Weighed.of(self._before_each(ids, logits), ids) for ids in candidates]
        scores = [one.log_probability for one in weighed]
        return scores.index(max(scores))

    @torch.inference_mode()
    def weigh(self, passage: Passage, answer: Sequence[int]) -> Weighed:
        """Read on, in one sample, and weigh the ids of an answer; the passage stays read.

        Raises:
            ModelError: logits that are not finite.
        """
        return Weighed.of(self._before_each(answer, self.read(passage)), answer)

    def _before_each(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        """The logits `[n, V]` from which each of n ids would be chosen, of which none stays read.

        Args:
            ids: what may follow.
            logits: `[1, V]`, after what was read.
        """
        if len(ids) == 1:
            return logits
        # Where what is read last may change all, an answer is read as it is decoded.
        at_once = len(ids) if self.method.is_causal else 1
        shown = torch.tensor([list(ids[:-1])], device=logits.device).split(at_once, dim=1)
        with self.aside():
            more = [
                self.model(input_ids=some, past_key_values=self.cache, method=self.method).logits
                for some in shown
            ]
        return torch.cat([logits[:, None], *more], dim=1)[0]


def split_at_video(ids: list[int], vision_end: int) -> tuple[list[int], list[int]]:
    """A chat up to the end of its only video, and the rest.

    Args:
        ids: the chat.
        vision_end: id of the token that closes a video.
    """
    end = ids.index(vision_end) + 1
    return ids[:end], ids[end:]


def until_stop(ids: Sequence[int], stop_ids: Set[int]) -> list[int]:
    """The ids of an answer without what ended it, and what was decoded after that."""
    stops = [place for place, token in enumerate(ids) if token in stop_ids]
    return list(ids[: stops[0]] if stops else ids)


def _features(vision: Sequence[EncodedVision]) -> Tensor | None:
    return torch.cat([one.features for one in vision]) if vision else None
