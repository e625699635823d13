"""`load` a model, then `ask` it about videos: decode and encode, prompt, prefill, answer."""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Unpack, overload

import torch

from videonsa.errors import UsageError
from videonsa.inference.answer import Answer, AnswerStream
from videonsa.inference.arguments import check_kind, check_names
from videonsa.inference.demonstration import OF_WHAT_COMES, encode_for_demonstration
from videonsa.inference.encoded_clip import (
    EncodedClip,
    Sampled,
    Video,
    encode_clip,
    part_size,
)
from videonsa.inference.foreseen import Reading, foresee
from videonsa.inference.generation import out_of_memory
from videonsa.inference.live import LiveVideo
from videonsa.inference.room import WhenFull
from videonsa.inference.sampling import AnswerOptions, GenerationOptions, GenerationSettings
from videonsa.inference.session import Session
from videonsa.inference.trace import Trace
from videonsa.inference.warm_up import WarmUp
from videonsa.models.checkpoints.loading import DeviceMap, check_device_map, load_model
from videonsa.models.checkpoints.quantised import Weights
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.locate import EMBEDDED, locate_model, notes_on_place
from videonsa.models.methods.compression import Kept, kept_tokens
from videonsa.models.methods.protocol import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.rope import Grid
from videonsa.models.shape import ModelShape, shape_of_config
from videonsa.planning.defaults import (
    SETTINGS_FILE,
    SamplingChanges,
    change_sampling,
    default_sampling,
    sampling_of_shape,
)
from videonsa.planning.devices import (
    check_memory,
    resolve_device,
    resolve_dtype,
)
from videonsa.planning.plan import NEW_TOKENS
from videonsa.video.chat import DEFAULT_SYSTEM
from videonsa.video.sampling import SamplingSpec
from videonsa.video.source import Decoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SOME_QUESTION = "What happens in this video?"
"""Stands for those to come where a video has to leave room for one."""


def load(
    model: str | Path = EMBEDDED,
    *,
    base: str | Path | None = None,
    method: AttentionMethod | str | None = None,
    fresh_gates: bool = False,
    device: str | torch.device | None = None,
    device_map: DeviceMap | None = None,
    dtype: str | torch.dtype | None = None,
    weights: Weights = "full",
    revision: str | None = None,
) -> "VideoQA":
    """Load a model to ask questions of.

    Args:
        model: 'embedded' (the small demonstration model), a folder, or a Hugging Face id such as
            'Enxin/VideoNSA' or 'Qwen/Qwen2.5-VL-7B-Instruct'. A folder may hold a checkpoint, a
            LoRA adapter in peft's format, which is merged into its base, or a training run, whose
            trained model is taken.
        base: of a LoRA adapter, in place of the one that it states.
        method: how it attends: "dense", "nsa" or another of `videonsa methods`, with options as in
            "nsa:window_size=128", or an `AttentionMethod` of your own; None is what the weights
            were trained with.
        fresh_gates: allow "nsa" on weights without gates: every gate is then 0.5, untrained.
        device: for example "cuda:1"; None is the first GPU, or the CPU where there is none.
        device_map: in place of `device`, for a model larger than a GPU: "auto" shares its layers
            out among the GPUs, a mapping says where each part goes.
        dtype: for example "bfloat16"; None is float32 on a CPU and the weights' own elsewhere.
        weights: "int8" or "int4" quantises the decoder layers with torchao, in float dtype
            outside of them; "int4" on a GPU only. "fp8" quantises them and the vision tower, and
            what they multiply, on a GPU of compute capability 8.9 or more: prefill is faster too.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: a model that is unknown, unreachable, incomplete, or without gates for "nsa".
        UsageError: a device or dtype that is not there, or a revision of a folder.

    """
    if device_map is not None:
        check_device_map(device_map, device, weights)
    place = resolve_device(device)
    where = locate_model(model)
    loaded = load_model(
        where,
        base=None if base is None else locate_model(base),
        method=method,
        fresh_gates=fresh_gates,
        dtype=resolve_dtype(dtype, place),
        device=place if device_map is None else None,
        device_map=device_map,
        weights=weights,
        revision=revision,
    )
    notes = (*notes_on_place(model, where), *loaded.notes)
    return VideoQA(
        loaded.model,
        load_tokenizer(loaded.folder_with("tokenizer.json")),
        name=str(model) if revision is None else f"{model}@{revision}",
        sampling=default_sampling(
            loaded.folder_with(SETTINGS_FILE), shape_of_config(loaded.model.config.to_dict())
        ),
        notes=notes,
        weights=weights,
        demonstration=where == locate_model(EMBEDDED),
    )


class AskOptions(SamplingChanges, AnswerOptions, total=False):
    """The keywords of `VideoQA.ask` beside `stream`; it explains them."""

    sampling: SamplingSpec | None
    system: str
    fit: bool
    memory: int | None
    decoder: Decoder
    progress: bool | None
    recorder: Recorder | None
    trace: Trace | None


class VideoQA:
    """A model that answers questions about videos."""

    def __init__(
        self,
        model: VideoNSAForConditionalGeneration,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        name: str = "",
        sampling: SamplingSpec | None = None,
        notes: tuple[str, ...] = (),
        weights: Weights = "full",
        demonstration: bool = False,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.notes = notes
        """How the weights are run, for the reader."""
        self.demonstration = demonstration
        """Whether it is the embedded model, which knows clips of `rendered` only."""
        shape = shape_of_config(model.config.to_dict())
        dtype = str(model.dtype).removeprefix("torch.")
        self.shape: ModelShape = replace(shape, dtype=dtype, method=model.method, weights=weights)
        self.sampling = sampling or sampling_of_shape(self.shape)
        """Used where `ask` is told nothing else."""
        self._warm_up = WarmUp(model)

    @overload
    def ask(
        self,
        video: Video,
        question: str,
        *,
        stream: Literal[False] = ...,
        **options: Unpack[AskOptions],
    ) -> Answer: ...

    @overload
    def ask(
        self,
        video: Video,
        question: str,
        *,
        stream: Literal[True],
        **options: Unpack[AskOptions],
    ) -> AnswerStream: ...

    def ask(
        self,
        video: Video,
        question: str,
        *,
        sampling: SamplingSpec | None = None,
        system: str = DEFAULT_SYSTEM,
        stream: bool = False,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        repetition_penalty: float | None = None,
        stop: Sequence[str] | None = None,
        seed: int | None = None,
        fit: bool = False,
        memory: int | None = None,
        decoder: Decoder = "cpu",
        progress: bool | None = None,
        recorder: Recorder | None = None,
        trace: Trace | None = None,
        **changes: Unpack[SamplingChanges],
    ) -> Answer | AnswerStream:
        """Ask one question about one video.

        How tokens are chosen, from `max_new_tokens` to `stop`, is as the checkpoint's
        generation_config states where it is None, else neutral: the likeliest token of the logits
        as they are, 64 tokens at most. `Usage.generation` says what was used.

        Args:
            video: a file, a folder of images, an image, pictures in memory or a `FrameList` of
                them (see `read_video`), or a `VideoClip` or `VideoStream`. One image alone is asked
                about as an image, with image tokens and the image's share of pixels.
            question: what to ask; never empty.
            sampling: which frames; None is the model's own.
            system: the system message.
            stream: give an `AnswerStream` at once instead of an `Answer` at the end.
            max_new_tokens: longest answer.
            temperature: 0 takes the likeliest token; above, tokens are drawn.
            top_p: draw from the likeliest tokens that hold this much of the probability.
            top_k: draw from so many of the likeliest tokens; 0 is all.
            repetition_penalty: above 1, tokens of the prompt and of the answer so far become less
                likely.
            stop: texts; the answer ends before the first of them.
            seed: makes drawing repeatable; None is one that `Usage.generation` names.
            fit: where the sampling fits neither context nor memory, take the one that does and
                changes least; the answer's notes say which. Not for a clip.
            memory: bytes that `fit` may count on; None is what the GPU has to give.
            decoder: as for `read_video`; "gpu" is untested so far.
            progress: a bar on stderr while decoding takes over a second; None is on a terminal.
            recorder: collects where the answer looked.
            trace: reports shapes stage by stage; takes the place of a recorder.
            changes: single fields of `sampling`: `fps`, `num_frames`, `timestamps`, `start`, `end`,
                `max_frames`, `max_pixels`, `max_tokens`, `mode`.

        Raises:
            VideoError: a video that cannot be read.
            UsageError: an argument outside its domain.
            BudgetError: what does not fit the context or the memory; says what would.

        """
        if trace is not None and recorder is not None:
            raise UsageError("both a trace and a recorder: pass one, a trace is a recorder")
        check_kind("recorder", recorder, Recorder)
        check_kind("trace", trace, Trace)
        chosen: AnswerOptions = {
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "repetition_penalty": repetition_penalty,
            "stop": stop,
            "seed": seed,
        }
        # Its checks come before the video is read.
        settings = self.generation_settings(**chosen)
        wanted = self.wanted_sampling(video, sampling, changes)
        reading = Reading(wanted, system, fit, memory, decoder, progress)
        session = self._open(video, question, reading, max_new_tokens=settings.max_new_tokens)
        if trace is not None:
            self._trace_inputs(trace, session, question)
        looking = recorder if trace is None else trace
        if stream:
            return session.ask(question, stream=True, recorder=looking, **chosen)
        return session.ask(question, recorder=looking, **chosen)

    def open(
        self,
        video: Video,
        *,
        sampling: SamplingSpec | None = None,
        system: str = DEFAULT_SYSTEM,
        fit: bool = False,
        memory: int | None = None,
        decoder: Decoder = "cpu",
        progress: bool | None = None,
        **changes: Unpack[SamplingChanges],
    ) -> Session:
        """Read, encode and prefill a video once, to ask many questions about it.

        Args:
            video: as for `ask`, like the rest.
            sampling: which frames; None is the model's own.
            system: the system message.
            fit: where the sampling fits neither context nor memory, take the one that does.
            memory: bytes that `fit` may count on.
            decoder: as for `read_video`.
            progress: a bar on stderr while decoding takes over a second.
            changes: single fields of `sampling`.

        Raises:
            VideoError: a video that cannot be read.
            UsageError: an argument outside its domain.
            BudgetError: what does not fit the context or the memory; says what would.

        """
        wanted = self.wanted_sampling(video, sampling, changes)
        reading = Reading(wanted, system, fit, memory, decoder, progress)
        session = self._open(
            video, _SOME_QUESTION, reading, max_new_tokens=NEW_TOKENS, reads_question=False
        )
        session.read()
        return session

    def open_live(
        self,
        *,
        sampling: SamplingSpec | None = None,
        system: str = DEFAULT_SYSTEM,
        when_full: WhenFull = "refuse",
        max_pixels: int | None = None,
    ) -> Session:
        """Begin a session with a video whose frames are to come: see `Session.extend`.

        Args:
            sampling: the pixels of a frame; which frames there are is up to the caller.
            system: the system message.
            when_full: what to do with frames that exceed the context: "refuse" them, or "forget"
                the oldest of their video but the first. The notes of an answer say which.
            max_pixels: of a frame, in place of that of `sampling`.

        Raises:
            UsageError: an argument outside its domain, or a method that has to see all at once.
        """
        check_kind("sampling", sampling, SamplingSpec)
        live = LiveVideo(change_sampling(sampling or self.sampling, max_pixels=max_pixels))
        notes = (OF_WHAT_COMES, *self.notes) if self.demonstration else self.notes
        session = Session(self, system=system, notes=notes, live=live, when_full=when_full)
        session.check_extends()
        return session

    def encode_frames(self, frames: torch.Tensor) -> Kept:
        """What is read of frames uint8 `[N, 3, H, W]`, whole temporal patches."""
        _, _, height, width = frames.shape
        with torch.inference_mode():
            return self.model.encode_kept(frames.split(part_size(height, width, self.shape.vision)))

    def tokens_of(self, grid: Grid) -> int:
        """Tokens of a prompt that an image or a video takes; of some methods, at most.

        Args:
            grid: (t, h, w) in patches.
        """
        return kept_tokens(self.model.method, grid, self.shape.vision.merge_size)

    def _open(
        self,
        video: Video,
        question: str,
        reading: Reading,
        *,
        max_new_tokens: int,
        reads_question: bool = True,
    ) -> Session:
        """A session with a video that is encoded; it is read with the question, or alone."""
        check_memory(reading.memory)
        wanted, asked = foresee(self, video, question, reading, max_new_tokens=max_new_tokens)
        prompt = asked.prompt if reads_question else asked.prompt._replace(after=0)
        with (
            out_of_memory(asked.tokens, self.model.device, asked.advice),
            self._warm_up.beside(prompt),
        ):
            clip = self.encode(video, wanted, decoder=reading.decoder, progress=reading.progress)
        notes = (*asked.notes, *self._warm_up.notes)
        session = Session(self, system=reading.system, notes=notes, advice=asked.advice)
        session.show(clip)
        return session

    def encode(
        self,
        video: Video,
        sampling: SamplingSpec,
        *,
        decoder: Decoder = "cpu",
        progress: bool | None = None,
        method: AttentionMethod | None = None,
    ) -> EncodedClip:
        """Read a video and encode its frames; `encode_clip` says what may be raised.

        A method in place of the model's keeps what it would keep of them.
        """
        read = encode_for_demonstration if self.demonstration else encode_clip
        encode, vision = partial(self.model.encode_kept, method=method), self.shape.vision
        with torch.inference_mode():
            return read(video, sampling, encode, vision=vision, decoder=decoder, progress=progress)

    def wanted_sampling(
        self, video: Video, sampling: SamplingSpec | None, changes: SamplingChanges
    ) -> SamplingSpec:
        """The sampling of a video: what is given, or the model's own, with changes.

        Raises:
            UsageError: no sampling, or one for a clip that is read already.
        """
        check_kind("sampling", sampling, SamplingSpec)
        check_names(changes, [one.name for one in fields(SamplingSpec)], "a video")
        given = [name for name, value in changes.items() if value is not None]
        if isinstance(video, Sampled) and (sampling is not None or given):
            raise UsageError(
                f"a clip that is read already and {', '.join(given) or 'sampling'}: "
                "pass the path instead, or read the clip with that sampling"
            )
        return change_sampling(sampling or self.sampling, **changes)

    def decode(self, ids: list[int]) -> str:
        """The text of ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def generation_settings(self, **options: Unpack[AnswerOptions]) -> GenerationSettings:
        """How tokens are chosen where an answer is asked for with these options.

        Raises:
            UsageError: a value outside its domain.
            ModelError: the checkpoint states one, and none was passed.
        """
        check_names(options, [one.name for one in fields(GenerationOptions)], "an answer")
        return GenerationOptions(**options).resolve(self.model.generation_config)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        stated = getattr(self.model.generation_config, "eos_token_id", None)
        ids = {self.tokenizer.eos_token_id}
        ids |= set(stated) if isinstance(stated, list | tuple) else {stated}
        return frozenset(token for token in ids if isinstance(token, int))

    def _trace_inputs(self, trace: Trace, session: Session, question: str) -> None:
        (clip,) = session.clips
        grid, ids = list(clip.grid(self.shape.vision)), [1, session.count(question)]
        values = self.shape.vision.patch_values
        trace.stage("video/decode", frames=f"{[len(clip.times), 3, clip.height, clip.width]} uint8")
        trace.stage(
            "video/processing",
            pixels=f"{[math.prod(grid), values]} float32",
            grid=grid,
            ids=f"{ids} int64",
        )
        trace.stage("inference/engine", prefill=f"{ids} int64", logits=[1, self.shape.vocab_size])
