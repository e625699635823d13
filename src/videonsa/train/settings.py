"""What a training run is: its recipe, as frozen settings that are checked where they are made.

Defaults are the paper's (section 3 and appendix), apart from what it leaves open.
"""

from dataclasses import dataclass
from typing import Any, Literal

from videonsa.errors import UsageError
from videonsa.ops.spec import BRANCHES, NSASpec

PARTS = ("vit", "merger", "llm")
"""What may be frozen: the vision tower, its merger, the language model without its gates."""


def _at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if not value >= least:
            raise UsageError(f"{name}={value:g}: want {least:g} or more")


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise UsageError(f"{name}={value:g}: want more than 0")


def _among(name: str, values: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [value for value in values if value not in known]
    if unknown:
        raise UsageError(f"{name} has {unknown[0]!r}: want some of {', '.join(known)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSettings:
    """Which weights a run starts from, and what of them it changes."""

    base: str = "Qwen/Qwen2.5-VL-7B-Instruct"
    """A folder, a Hugging Face id, or `embedded`. Gates that it lacks start at one half."""
    fresh: bool = False
    """Begin with random weights: of the base its shape and its tokenizer alone."""
    closed_gates: tuple[str, ...] = ()
    """`branch:N` each: the gates of that branch begin closed from layer N on, free to open."""
    freeze: tuple[str, ...] = ()
    """Some of `PARTS`. Gates are never frozen."""
    lora_rank: int = 0
    """Train matrices of this rank beside the projections of the language model, and the gates; 0:
    all weights."""
    lora_alpha: int = 32
    lora_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no run can use: UsageError."""
        _among("model.freeze", self.freeze, PARTS)
        _ = self.closed_from
        _at_least(0, lora_rank=self.lora_rank, lora_dropout=self.lora_dropout)
        if self.lora_rank and self.freeze:
            raise UsageError(
                f"model.lora_rank={self.lora_rank} with model.freeze: LoRA freezes all but its own "
                "matrices and the gates; leave one of the two out"
            )

    @property
    def closed_from(self) -> dict[str, int]:
        """Of each branch in `closed_gates`, the first layer whose gate begins closed."""
        pairs = [entry.partition(":") for entry in self.closed_gates]
        _among("model.closed_gates", tuple(branch for branch, _, _ in pairs), BRANCHES)
        for entry, (_, _, layer) in zip(self.closed_gates, pairs, strict=True):
            if not layer.isdecimal():
                raise UsageError(
                    f"model.closed_gates has {entry!r}: want branch:N, N the first layer, such as "
                    "compressed:1"
                )
        return {branch: int(layer) for branch, _, layer in pairs}


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionSettings:
    """How vision rows attend."""

    kind: Literal["nsa", "dense"] = "nsa"
    block_size: int | Literal["frame"] = 64
    num_selected_blocks: int = 32
    window_size: int = 256
    branches: tuple[str, ...] = BRANCHES
    """Fewer for the paper's Table 2."""

    def __post_init__(self) -> None:
        """Refuse what no attention can use: UsageError."""
        _among("attention.branches", self.branches, BRANCHES)
        try:
            self.spec()
        except ValueError as error:
            raise UsageError(f"attention: {error}") from error

    def spec(self) -> NSASpec | None:
        """The attention, where it is NSA."""
        if self.kind == "dense":
            return None
        return NSASpec.paper(
            block_size=self.block_size,
            num_selected_blocks=self.num_selected_blocks,
            window_size=self.window_size,
            branches=tuple(branch for branch in BRANCHES if branch in self.branches),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSettings:
    """What is read."""

    manifest: str = ""
    """What `videonsa data build` wrote; a run needs one."""
    context: int = 36_864
    """Most tokens of a sequence, which several samples share."""
    fps: float | None = None
    """What the manifest has to be built with; None takes any."""
    max_pixels: int | None = None
    """The same, of a frame."""
    loss: Literal["all", "last"] = "all"
    """The answers that count."""
    num_workers: int = 2
    """Processes that read, for each process that trains."""
    max_failed_share: float = 0.02
    """Of the samples; more that cannot be read end the run."""
    most_time_scale: float = 1.0
    """Each sample's seconds are multiplied by a factor of its own between 1 and this, so that
    position ids of longer videos are learnt from shorter ones."""

    def __post_init__(self) -> None:
        """Refuse what cannot be read: UsageError."""
        _positive(context=self.context)
        _at_least(0, num_workers=self.num_workers)
        _at_least(1, most_time_scale=self.most_time_scale)


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerSettings:
    """AdamW and its schedule: linear warm-up, then a cosine to 0."""

    learning_rate: float = 1e-6
    gate_learning_rate: float | None = None
    """None is `learning_rate`."""
    warmup: float = 0.1
    """Share of the steps."""
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.01
    """Of matrices; norms and biases have none."""
    max_grad_norm: float = 1.0
    batch_size: int = 32
    """Sequences a step, over all processes."""
    epochs: int = 1
    steps: int | None = None
    """In place of `epochs`."""

    def __post_init__(self) -> None:
        """Refuse what cannot train: UsageError."""
        # The norm of the gradients also tells whether they are finite.
        _positive(learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm)
        _at_least(1, batch_size=self.batch_size, epochs=self.epochs, steps=self.steps or 1)
        if not 0 <= self.warmup < 1:
            raise UsageError(f"optimizer.warmup={self.warmup:g}: want 0 to 1, a share of the steps")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelSettings:
    """How processes share the work; `torchrun` or `accelerate launch` starts them."""

    sequence: int = 1
    """Processes that share each sequence."""
    fsdp: bool = False
    """Shard weights, gradients and optimizer over all processes (FSDP2), layer by layer."""
    deepspeed: str | None = None
    """A DeepSpeed config file, in place of `fsdp`."""
    activation_checkpointing: bool = True
    """Compute the activations of a layer once more in backward instead of keeping them."""

    def __post_init__(self) -> None:
        """Refuse two ways to shard: UsageError."""
        _at_least(1, sequence=self.sequence)
        if self.fsdp and self.deepspeed:
            raise UsageError("parallel.fsdp and parallel.deepspeed: want one of the two")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """What a run does beside training."""

    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    """Of the computation; weights and optimizer are float32."""
    log_every: int = 1
    """Steps, as `save_every` and `evaluate_every`."""
    save_every: int = 200
    keep: int = 2
    """Checkpoints."""
    seconds: float | None = None
    """Stop so long after the start, with a checkpoint; the same command goes on. None: never."""
    evaluate_every: int = 0
    """On the suite's test split; 0: never."""
    evaluate_lengths: tuple[str, ...] = ("1k",)
    """Tokens of its videos, as `videonsa eval synthetic --lengths` takes them."""
    evaluate_samples: int = 10
    """Videos of each length."""
    evaluate_frame_size: int = 224
    """Pixels a side."""
    evaluate_style: Literal["choice", "free"] = "choice"
    """A letter of several answers, or the answer itself."""
    max_skipped: int = 5
    """Steps in a row without finite gradients, then the run stops."""
    peak_tflops: float | None = None
    """Of one GPU in `precision`, from its data sheet: what MFU is a share of. None: no MFU."""
    report_to: tuple[str, ...] = ()
    """`tensorboard`, `trackio`; log.jsonl is always written."""

    def __post_init__(self) -> None:
        """Refuse what no run can do: UsageError."""
        _at_least(1, log_every=self.log_every, save_every=self.save_every, keep=self.keep)
        _at_least(1, max_skipped=self.max_skipped, evaluate_samples=self.evaluate_samples)
        _at_least(0, evaluate_every=self.evaluate_every)
        if self.seconds is not None:
            _positive(seconds=self.seconds)
        _among("run.report_to", self.report_to, ("tensorboard", "trackio"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """All of a training run."""

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
