"""What a question about a video costs, before weights are loaded: tokens, memory, time."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from videonsa.errors import BudgetError, UsageError
from videonsa.models.checkpoints.awq import describe_awq
from videonsa.models.checkpoints.quantised import WEIGHTS, Weights, check_multiplies
from videonsa.models.locate import EMBEDDED, locate_model, notes_on_place
from videonsa.models.methods import AttentionMethod
from videonsa.models.shape import (
    BYTES_PER_VALUE,
    ModelShape,
    adapter_of,
    load_shape,
    planned_folder,
)
from videonsa.planning.budget import (
    AttentionBudget,
    attention_budget,
    budget_to_dict,
    check_new_tokens,
)
from videonsa.planning.computed import Computed, estimate_computed
from videonsa.planning.defaults import default_sampling
from videonsa.planning.devices import (
    Machine,
    find_machine,
    machine_elsewhere,
    resolve_device,
    runs_by_kernels,
)
from videonsa.planning.fit import Fitted, fit_sampling
from videonsa.planning.memory import (
    HEADROOM,
    MemoryEstimate,
    Workload,
    estimate_memory,
    size_text,
)
from videonsa.planning.speed import TimeEstimate, estimate_time, is_measured, rates_for
from videonsa.video.decode import probe
from videonsa.video.sampling import (
    SamplingPlan,
    SamplingSpec,
    VideoInfo,
    plan_sampling,
    sampling_notes,
)
from videonsa.video.source import VideoLike

TEXT_TOKENS = 64
"""Tokens of chat format and a short question, where the question is not known."""
NEW_TOKENS = 64
"""Default length of an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoPlan:
    """Frames, tokens, memory and time of one question about one video."""

    model: str
    attention: str
    """Name of the method."""
    dtype: str
    weights: Weights
    info: VideoInfo
    sampling: SamplingPlan
    video_tokens: int
    """That are read; of some methods, at most. `sampling` knows how many are encoded."""
    prompt_tokens: int
    """Video and text, that are read."""
    max_new_tokens: int
    context: int
    """Tokens the model takes, prompt and answer together."""
    parameters: int
    machine: Machine
    memory: MemoryEstimate
    time: TimeEstimate | None
    """None on a CPU, and on a GPU of a data sheet whose rates were not measured."""
    spec: dict[str, Any] | None
    """Parameters of the method; None where it has none."""
    budget: AttentionBudget | None
    """None where a token attends to all before it."""
    computed: Computed
    """Vision tokens left, and the share of dense attention, as far as the content does not decide.
    """
    fit: str | None = None
    """What was chosen to fit, in words; None where that was not asked for."""
    notes: tuple[str, ...] = ()
    """What the video is not taken as, or not as asked, one line each."""

    @property
    def fits(self) -> bool:
        """Whether prompt and answer fit the context."""
        return self.prompt_tokens + self.max_new_tokens <= self.context

    @property
    def fits_memory(self) -> bool:
        """Whether the estimate, with `HEADROOM`, fits the machine's memory."""
        return self.memory.fits(self.machine.memory)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON keeps it."""
        return {
            "model": self.model,
            "attention": self.attention,
            "dtype": self.dtype,
            "weights": self.weights,
            "video": asdict(self.info),
            "frames": {
                "count": self.sampling.num_frames,
                "height": self.sampling.height,
                "width": self.sampling.width,
                "fps": self.sampling.sampled_fps,
                "times": list(self.sampling.times),
            },
            "grid": list(self.sampling.grid),
            "tokens": {
                "encoded": self.sampling.num_tokens,
                "video": self.video_tokens,
                "prompt": self.prompt_tokens,
                "max_new": self.max_new_tokens,
                "context": self.context,
                "fits": self.fits,
            },
            "parameters": self.parameters,
            "machine": asdict(self.machine),
            "memory_bytes_estimated": self.memory.to_dict() | {"fits": self.fits_memory},
            "seconds_estimated": self.time.to_dict() if self.time else None,
            "fit": self.fit,
            "notes": list(self.notes),
            "spec": self.spec,
            "budget": budget_to_dict(self.budget),
            "computed": self.computed.to_dict(),
        }


def plan_video(
    video: VideoLike,
    model: str | Path = EMBEDDED,
    *,
    sampling: SamplingSpec | None = None,
    method: AttentionMethod | str | None = None,
    dtype: str | None = None,
    text_tokens: int = TEXT_TOKENS,
    max_new_tokens: int = NEW_TOKENS,
    device: str | torch.device | None = None,
    memory: int | None = None,
    gpu: str | None = None,
    fit: bool = False,
    weights: Weights = "full",
    base: str | Path | None = None,
    revision: str | None = None,
    fresh_gates: bool = False,
) -> VideoPlan:
    """Plan a question about a video from its header and the model's config; no weights are read.

    Args:
        video: as for `read_video`.
        model: folder, hub id or 'embedded'.
        sampling: which frames; None is the model's default.
        method: how it would attend, as for `load`.
        dtype: of weights and cache, for example "bfloat16"; None is the config's.
        text_tokens: tokens of the prompt beside the video's.
        max_new_tokens: longest answer.
        device: where the model would run; None is the first GPU, or the CPU where there is none.
        memory: bytes of the GPU to plan for; None is what the GPU of `device` has to give.
        gpu: in place of `device` and `memory`, a GPU that is not here, such as "h100" or "4090"
            (`planning.gpus.GPUS`), with the memory of its data sheet.
        fit: where the sampling fits neither context nor memory, plan with the one that does and
            changes least (`fit_sampling`).
        weights: "int8" or "int4" where the decoder layers are quantised, "fp8" where the vision
            tower is too.
        base: of a LoRA adapter, in place of the one that it states.
        revision: branch, tag or commit of a hub id.
        fresh_gates: allow a method that uses gates on weights without.

    Raises:
        VideoError: a video that cannot be read.
        ModelError: a model that is unknown or could not be loaded.
        UsageError: an argument outside its domain, or fp8 on a GPU without it.
        BudgetError: `max_tokens` below one temporal patch, or nothing fits.

    """
    check_new_tokens(max_new_tokens)
    shape = load_shape(model, base=base, revision=revision, method=method, fresh_gates=fresh_gates)
    of_method = shape.method.notes(shape.num_layers, shape.num_heads)
    if dtype is not None:
        if dtype not in BYTES_PER_VALUE:
            raise UsageError(f"dtype={dtype!r}: want one of {', '.join(BYTES_PER_VALUE)}")
        shape = replace(shape, dtype=dtype)
    if weights not in WEIGHTS:
        raise UsageError(f"weights={weights!r}: want one of {', '.join(WEIGHTS)}")
    machine = _machine(device, memory, gpu)
    if machine.gpu is not None:
        check_multiplies(weights, machine.name, machine.gpu.capability)
    info = probe(video)
    question = Question(
        shape=replace(shape, weights=weights),
        machine=machine,
        text_tokens=text_tokens,
        max_new_tokens=max_new_tokens,
    )
    wished = sampling or default_sampling(model, shape, base=base, revision=revision)
    fitted = question.fit(info, wished) if fit else None
    frames = fitted.plan if fitted else plan_sampling(info, wished)
    name = str(model) if revision is None else f"{model}@{revision}"
    plan = question.plan(name, info, frames, fit=fitted.describe() if fitted else None)
    place = locate_model(model)
    adapter = adapter_of(
        place, planned_folder(place, revision=revision), base=base, revision=revision
    )
    notes = (*notes_on_place(model, place), *(() if adapter is None else (adapter.describe(),)))
    notes += (describe_awq(shape.dtype, weights),) if shape.is_awq else ()
    return replace(plan, notes=(*notes, *of_method, *info.notes, *sampling_notes(info, wished)))


def _machine(device: str | torch.device | None, memory: int | None, gpu: str | None) -> Machine:
    if gpu is None:
        return find_machine(resolve_device(device), memory)
    for name, value in (("device", device), ("memory", memory)):
        if value is not None:
            raise UsageError(f"both gpu and {name}: pass one, a GPU brings its memory")
    return machine_elsewhere(gpu)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question to a model on a machine, whatever the frames."""

    shape: ModelShape
    machine: Machine
    text_tokens: int
    max_new_tokens: int

    def workload(self, frames: SamplingPlan) -> Workload:
        """The question about these frames."""
        return Workload(
            shape=self.shape,
            grid=frames.grid,
            prompt_tokens=frames.num_tokens + self.text_tokens,
            max_new_tokens=self.max_new_tokens,
            kernels=runs_by_kernels(self.shape, self.machine),
        )

    def fits(self, frames: SamplingPlan) -> bool:
        """Whether these frames fit the context and the memory."""
        tokens = self.workload(frames).read_tokens + self.max_new_tokens
        if tokens > self.shape.context:
            return False
        return estimate_memory(self.workload(frames)).fits(self.machine.memory)

    def fit(self, info: VideoInfo, wished: SamplingSpec) -> Fitted:
        """The sampling that fits, changed as little as can be.

        Raises:
            BudgetError: nothing fits; says what it would take.

        """
        try:
            return fit_sampling(info, wished, self.fits)
        except BudgetError as error:
            weights, memory = self.shape.weight_bytes, self.machine.memory
            there = "" if memory is None else f" of {size_text(memory)} with {HEADROOM:.0%} spare"
            raise BudgetError(
                f"{error}: the weights take {size_text(weights)}{there}, the context is "
                f"{self.shape.context} tokens; use a smaller model, quantised weights "
                "or a shorter question"
            ) from error

    def advice(self, info: VideoInfo, wished: SamplingSpec, frames: SamplingPlan) -> str:
        """What to ask for instead of `frames`, which ran out of memory, in words.

        The prediction was too low, or others took memory meanwhile: what is looked for takes less
        than nine tenths of what was predicted, and of what is there.
        """
        predicted = estimate_memory(self.workload(frames)).total
        there = self.machine.memory
        limit = predicted if there is None else min(predicted, there)
        narrow = replace(self.machine, memory=limit * 9 // 10)
        try:
            fitted = fit_sampling(info, wished, replace(self, machine=narrow).fits)
        except BudgetError:
            return "no sampling fits; use a smaller model or quantised weights"
        plan = fitted.plan
        takes = size_text(estimate_memory(self.workload(plan)).total)
        options = f"--max-frames {plan.num_frames}"
        if wished.max_tokens is not None or plan.tokens_per_frame < frames.tokens_per_frame:
            options += f" --max-pixels {fitted.sampling.max_pixels}"
        return (
            f"{plan.num_frames} frames of {plan.width}x{plan.height}, {plan.num_tokens} video "
            f"tokens, take about {takes} and would fit: pass {options}"
        )

    def plan(
        self, model: str, info: VideoInfo, frames: SamplingPlan, *, fit: str | None = None
    ) -> VideoPlan:
        """The plan of the question about these frames."""
        work, shape = self.workload(frames), self.shape
        gpu, sheet = self.machine.name, self.machine.gpu
        timed = self.machine.kind == "cuda" and (sheet is None or is_measured(gpu))
        per_frame = max(work.kept_tokens // frames.grid[0], 1)
        budget = attention_budget(
            shape.method, prompt_tokens=work.read_tokens, tokens_per_frame=per_frame
        )
        return VideoPlan(
            model=model,
            attention=shape.method.full_name,
            dtype=shape.dtype,
            weights=shape.weights,
            info=info,
            sampling=frames,
            video_tokens=work.kept_tokens,
            prompt_tokens=work.read_tokens,
            max_new_tokens=self.max_new_tokens,
            context=shape.context,
            parameters=shape.num_parameters,
            machine=self.machine,
            memory=estimate_memory(work),
            time=estimate_time(work, rates_for(gpu)) if timed else None,
            spec=shape.method.parameters(),
            budget=budget,
            computed=estimate_computed(shape.method, work.attention),
            fit=fit,
        )
