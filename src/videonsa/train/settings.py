"""The recipe of a training run, as frozen settings that are checked when they are made.

Defaults are the paper's (section 3 and appendix) wherever it states a value.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from videonsa.errors import UsageError
from videonsa.models.methods import DENSE, SPARSE, AttentionMethod, named_method
from videonsa.ops.spec import BRANCHES
from videonsa.ops.stated_spec import spec_from_dict

TRACKERS = ("tensorboard", "trackio", "wandb")
"""What may be given the lines of the log."""

PARTS = ("vit", "merger", "llm")
"""What may be frozen: the vision tower, its merger, the language model without its gates."""


_MOST = 10**9
"""Bound of counts that have no other: larger than any run needs, accepted by every library."""


def _within(section: str, least: float, most: float, **values: float | None) -> None:
    """Refuse numbers outside a range, and NaN; None is allowed."""
    for name, value in values.items():
        if value is not None and not least <= value <= most:
            raise UsageError(f"{section}.{name}={_shown(value)}: want {least:g} to {most:g}")


def _positive(section: str, most: float, **values: float | None) -> None:
    """Refuse numbers that are not above 0 and at most `most`; None is allowed."""
    for name, value in values.items():
        if value is not None and not 0 < value <= most:
            raise UsageError(
                f"{section}.{name}={_shown(value)}: want more than 0 and at most {most:g}"
            )


def _shown(value: float) -> str:
    too_long = isinstance(value, int) and abs(value) >= 2**63  # a float cannot hold some of them
    return "a number of too many digits" if too_long else f"{value:g}"


def _among(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        raise UsageError(f"{name} has {unknown[0]!r}: want some of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which weights a run starts from, and which of them it trains."""

    base: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A folder, a Hugging Face id, or `embedded`. Missing gates start at one half."""
    fresh: bool = False
    """Start from random weights: only the shape and the tokenizer of the base are used."""
    shape: Mapping[str, Any] = field(default_factory=dict)
    """With `fresh`, fields of the base's config that the model has otherwise, parts within parts:
    `{text_config: {num_hidden_layers: 12}}`."""
    closed_gates: tuple[str, ...] = ()
    """`branch:N`: gates of the branch start closed from layer N on; training may open them."""
    freeze: tuple[str, ...] = ()
    """Any of `PARTS`. Gates are never frozen."""
    lora_rank: int = 0
    """Rank of LoRA on the projections of the language model; gates train fully. 0: no LoRA."""
    lora_alpha: int = 32
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no run can use: UsageError."""
        _among("model.freeze", self.freeze, PARTS)
        _ = self.closed_from
        if self.shape and not self.fresh:
            raise UsageError(
                "model.shape without model.fresh: weights that exist have their shape; want "
                "model.fresh=true too"
            )
        _within("model", 0, 4096, lora_rank=self.lora_rank)
        _within("model", 1, 65_536, lora_alpha=self.lora_alpha)
        _within("model", 0, 0.99, lora_dropout=self.lora_dropout)
        if self.lora_rank and self.freeze:
            raise UsageError(
                f"model.lora_rank={self.lora_rank} with model.freeze: LoRA freezes all but its own "
                "matrices and the gates; leave one of the two out"
            )

    @property
    def closed_from(self) -> dict[str, int]:
        """For each branch in `closed_gates`, the first layer whose gate starts closed."""
        pairs = [entry.partition(":") for entry in self.closed_gates]
        _among("model.closed_gates", tuple(branch for branch, _, _ in pairs), BRANCHES)
        for entry, (_, _, layer) in zip(self.closed_gates, pairs, strict=True):
            if not layer.isdecimal() or len(layer) > 4:
                raise UsageError(
                    f"model.closed_gates has {entry!r}: want branch:N, N the first layer, such as "
                    "compressed:1"
                )
        return {branch: int(layer) for branch, _, layer in pairs}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSettings:
    """How vision tokens attend."""

    kind: Literal["nsa", "dense"] = "nsa"
    block_size: int | Literal["frame"] = 64
    num_selected_blocks: int = 32
    window_size: int = 256
    selection: Literal["scores", "random"] = "scores"
    """ "random" draws the blocks, as a control."""
    branches: tuple[str, ...] = BRANCHES
    """The branches that are computed; the paper's Table 2 trains with one or two."""

    def __post_init__(self) -> None:
        """Refuse what no attention can use: UsageError."""
        if self.kind not in (SPARSE, DENSE):
            raise UsageError(
                f"attention.kind={self.kind!r}: recipes train {SPARSE!r} or {DENSE!r}; other "
                "methods are for answering, with --method"
            )
        _among("attention.branches", self.branches, BRANCHES)
        if len(set(self.branches)) < len(self.branches):
            raise UsageError(f"attention.branches={list(self.branches)}: want each once")
        self.method()

    def method(self) -> AttentionMethod:
        """How the model attends."""
        stated = {
            "block_size": self.block_size,
            "num_selected_blocks": self.num_selected_blocks,
            "window_size": self.window_size,
            "selection": self.selection,
            "branches": [branch for branch in BRANCHES if branch in self.branches],
        }
        spec = spec_from_dict(stated, where="attention", error=UsageError)
        return named_method(self.kind, spec)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """What a run reads."""

    manifest: str = ""
    """The folder that `videonsa data build` wrote; required."""
    validation: str = ""
    """A folder likewise, of samples that are not trained on: their loss is computed every
    `run.evaluate_every` steps and at the end."""
    context: int = 36_864
    """Most tokens of a packed sequence of samples."""
    shapes: Literal["any", "equal"] = "any"
    """`equal`: the samples of a sequence have videos of the same shape, as many in each sequence of
    that shape, and their texts are padded to the same length."""
    fps: float | None = None
    """The rate that the manifest has to be built with; None: any. The next three likewise."""
    max_pixels: int | None = None
    """Of a frame."""
    min_frames: int | None = None
    """Of all videos of a sample together, as `max_frames`."""
    max_frames: int | None = None
    loss: Literal["all", "last"] = "all"
    """Which answers of a dialogue have a loss."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """How often an epoch has the samples of a source; 1 where none is stated."""
    num_workers: int = 2
    """Loader workers of each training process."""
    max_failed_share: float = 0.02
    """A run ends with an error if a larger share of the samples cannot be read."""
    most_time_scale: float = 1.0
    """The times of each sample are multiplied by a random factor of its own, from 1 to this: short
    videos then train the position ids of longer ones."""

    def __post_init__(self) -> None:
        """Refuse what cannot be read: UsageError."""
        _within("data", 1, _MOST, context=self.context, max_pixels=self.max_pixels)
        _within("data", 0, _MOST, min_frames=self.min_frames, max_frames=self.max_frames)
        _positive("data", 1000, fps=self.fps)
        _within("data", 0, 1024, num_workers=self.num_workers)
        _within("data", 0, 1, max_failed_share=self.max_failed_share)
        _within("data", 1, 1000, most_time_scale=self.most_time_scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """The optimizer and its schedule: AdamW, linear warm-up, then a cosine to 0."""

    name: str = "adamw_torch_fused"
    """As transformers names it (`OptimizerNames`)."""
    schedule: str = "cosine"
    """Of the learning rates, as transformers names it (`SchedulerType`)."""
    schedule_options: Mapping[str, int | float | str | bool] = field(default_factory=dict)
    """What else the schedule takes, such as `min_lr_rate` of `cosine_with_min_lr`. Gates follow the
    same schedule from their own rate."""
    learning_rate: float = 1e-6
    gate_learning_rate: float | None = None
    """None is `learning_rate`."""
    warmup: float = 0.1
    """As a share of the steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of the kinds of Adam, as `epsilon`."""
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    """On matrices only; norms and biases do not decay."""
    max_grad_norm: float = 1.0
    batch_size: int = 32
    """Of a step, over all processes."""
    batch_of: Literal["samples", "sequences"] = "samples"
    """What `batch_size` counts: `samples` (the paper) makes steps of that many, `sequences` as full
    as can be make a step of that many."""
    epochs: int = 1
    steps: int | None = None
    """Overrides `epochs`."""

    def __post_init__(self) -> None:
        """Refuse what cannot train: UsageError."""
        rates = {"learning_rate": self.learning_rate, "gate_learning_rate": self.gate_learning_rate}
        _positive("optimizer", 1, **rates, epsilon=self.epsilon)
        # Not 0, which would turn clipping off: the norm also shows whether gradients are finite.
        _positive("optimizer", _MOST, max_grad_norm=self.max_grad_norm)
        _within("optimizer", 0, 1, weight_decay=self.weight_decay)
        _within("optimizer", 1, _MOST, batch_size=self.batch_size, epochs=self.epochs)
        _within("optimizer", 1, _MOST, steps=self.steps)
        if not 0 <= self.warmup < 1:
            raise UsageError(f"optimizer.warmup={self.warmup:g}: want 0 to 1, a share of the steps")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UsageError(f"optimizer.betas={list(self.betas)}: want each from 0 to below 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelSettings:
    """How the work is divided among processes; `torchrun` or `accelerate launch` starts them."""

    sequence: int = 1
    """Degree of context parallelism: K and V are all-gathered, queries sharded."""
    fsdp: bool | Literal["auto"] = False
    """Shard weights, gradients and optimizer over all processes (FSDP2), layer by layer. `auto`:
    where several GPUs train and one would not hold them."""
    deepspeed: str | None = None
    """A DeepSpeed config file; excludes `fsdp`."""
    activation_checkpointing: bool = True
    """Recompute the activations of a layer in the backward pass instead of keeping them."""

    def __post_init__(self) -> None:
        """Refuse `fsdp` together with `deepspeed`: UsageError; `auto` leaves it to DeepSpeed."""
        _within("parallel", 1, 65_536, sequence=self.sequence)
        if self.fsdp is True and self.deepspeed:
            raise UsageError("parallel.fsdp and parallel.deepspeed: want one of the two")

    @property
    def shards(self) -> bool:
        """Whether each process has a part of the weights; `fsdp` is not `auto` any more."""
        return self.fsdp is True or self.deepspeed is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """Seed, precision, logging, checkpoints, evaluation."""

    seed: int = 0
    precision: Literal["bf16", "bf16_weights", "fp32"] = "bf16"
    """`bf16`: computed in bfloat16, weights and optimizer float32; `bf16_weights`: weights and all
    that is computed in bfloat16, their masters and the optimizer float32."""
    capture: bool = False
    """Forward and backward of a pack as one CUDA graph: packs of equal shape, on one GPU."""
    log_every: int = 1
    """In steps, as are `save_every` and `evaluate_every`."""
    save_every: int = 200
    keep: int = 2
    """How many checkpoints stay."""
    seconds: float | None = None
    """Save a checkpoint and stop after this time; the same command resumes. None: never."""
    validation_samples: int = 256
    """Most samples of `data.validation` whose loss is computed, always the same ones."""
    evaluate_every: int = 0
    """Evaluate on `data.validation` and on the suite's test split; 0: never on the suite."""
    evaluate_suite: Literal[1, 2] = 1
    """Which suite; the second wants `evaluate_style: free`."""
    evaluate_lengths: tuple[str, ...] = ("1k",)
    """Tokens of the videos, in the format of `videonsa eval synthetic --lengths`; empty: the suite
    is not asked."""
    evaluate_samples: int = 10
    """Videos for each length."""
    evaluate_frame_size: int = 224
    """Side of a frame in pixels."""
    evaluate_kinds: tuple[str, ...] = ()
    """Kinds of question; empty: all of the first suite's, any of the second's."""
    evaluate_style: Literal["choice", "free", "likeliest"] = "choice"
    """`choice`: the letter of an option; `free`: the answer itself; `likeliest`: the option with
    the highest probability counts."""
    max_skipped: int = 5
    """The run stops after this many steps in a row without finite gradients."""
    peak_tflops: float | None = None
    """Peak of one GPU in `precision`, from its data sheet; MFU is relative to it. None: no MFU."""
    report_to: tuple[str, ...] = ()
    """Any of `tensorboard`, `trackio`, `wandb`; log.jsonl is always written."""

    def __post_init__(self) -> None:
        """Refuse what no run can do: UsageError."""
        _within("run", 0, 2**32 - 1, seed=self.seed)  # what NumPy accepts
        _within("run", 1, _MOST, log_every=self.log_every, save_every=self.save_every)
        _within("run", 1, _MOST, keep=self.keep, max_skipped=self.max_skipped)
        _within("run", 0, _MOST, evaluate_every=self.evaluate_every)
        _within("run", 1, _MOST, evaluate_samples=self.evaluate_samples)
        _within("run", 1, _MOST, validation_samples=self.validation_samples)
        _within("run", 28, 4096, evaluate_frame_size=self.evaluate_frame_size)
        _positive("run", _MOST, seconds=self.seconds, peak_tflops=self.peak_tflops)
        _among("run.report_to", self.report_to, TRACKERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All settings of a training run."""

    name: str
    model: ModelSettings
    attention: AttentionSettings
    data: DataSettings
    optimizer: OptimizerSettings
    parallel: ParallelSettings
    run: RunSettings


SECTIONS: dict[str, type[Any]] = {
    "model": ModelSettings,
    "attention": AttentionSettings,
    "data": DataSettings,
    "optimizer": OptimizerSettings,
    "parallel": ParallelSettings,
    "run": RunSettings,
}
