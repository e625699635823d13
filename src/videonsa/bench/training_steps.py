"""Steps of `PackTrainer` on one made-up video, timed: forward and backward, and the whole step.

What is timed is the trainer's own step. The model has random weights, the batches come from a
schedule instead of a data set, and nothing is logged or saved.
"""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from videonsa.bench.clip_rows import TEXT_ROWS, Clip, clip_embeddings, clip_of_tokens, dense_backend
from videonsa.bench.measure import one_line
from videonsa.bench.random_model import random_model
from videonsa.data.collate import PackedBatch
from videonsa.models._hf import quiet_loading
from videonsa.models.shape import ModelShape
from videonsa.parallel.context import ContextParallelGroup
from videonsa.train.parameters import choose_parameters
from videonsa.train.run import training_arguments
from videonsa.train.settings import Recipe
from videonsa.train.trainer import Extras, PackTrainer
from videonsa.video.chat import IGNORED_LABEL
from videonsa.video.sampling import SamplingSpec

Part = Literal["layers", "step"]
NUM_LABELS = TEXT_ROWS[1]
"""The text behind the video has a loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What one time is of."""

    tokens: int
    """Of the video."""
    attention: str


@dataclass(kw_only=True, slots=True)
class Times:
    """Of the timed steps of a setting, in this process."""

    forward_backward_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of every step, the untimed one too, as `grad_norms`."""
    grad_norms: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    """The highest of forward and backward; of the whole step in the part `step`."""
    error: str | None = None
    """In one line; then the numbers are of no use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The steps of one model."""

    part: Part
    """`layers`: rows of the decoder are given; `step`: frames go through the tower."""
    shape: ModelShape
    """Of the model, with as many layers as are measured."""
    frame: tuple[int, int]
    """Height and width in pixels."""
    lengths: tuple[int, ...]
    attentions: tuple[str, ...]
    repeats: int
    """Timed steps of each setting, after one that is not."""
    recipe: Recipe
    device: torch.device
    num_processes: int
    cp_group: ContextParallelGroup | None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TimedBatch(PackedBatch):
    """One video between text; `embeds` are the rows `[1, L, hidden]` in place of its frames."""

    setting: Setting
    timed: bool
    last: bool
    """Of its setting."""
    grid: tuple[int, int, int]
    embeds: Tensor | None

    def model_inputs(
        self, device: torch.device | str = "cpu", *, dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        """The arguments of the model's `forward`."""
        # Not super(): a dataclass with slots is another class than the one that stands here.
        inputs = PackedBatch.model_inputs(self, device, dtype=dtype)
        inputs["method"] = self.setting.attention
        if self.embeds is not None:
            inputs["video_grid_thw"] = torch.tensor([self.grid])
            inputs["video_times"] = self.video_times
            # The embedding of ids and pixels wants gradients too.
            inputs["inputs_embeds"] = self.embeds.detach().requires_grad_()
        return inputs


class Schedule:
    """Batches in the order in which they are measured: the attentions in turn, length by length."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def __len__(self) -> int:
        """Steps of all settings."""
        plan = self._plan
        return len(plan.lengths) * len(plan.attentions) * (1 + plan.repeats)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Each as the Trainer takes it."""
        plan = self._plan
        for tokens in plan.lengths:
            given = self._given(clip_of_tokens(tokens, plan.frame, torch.device("cpu")))
            for turn in range(1 + plan.repeats):
                for attention in plan.attentions:
                    batch = TimedBatch(
                        setting=Setting(tokens=tokens, attention=attention),
                        timed=turn > 0,
                        last=turn == plan.repeats,
                        **given,
                    )
                    yield {"input_ids": batch.input_ids, "labels": batch.labels, "batch": batch}

    def _given(self, clip: Clip) -> dict[str, Any]:
        """What all batches of a length have in common."""
        plan = self._plan
        ids = clip.inputs["input_ids"]
        labels = ids.clone()
        labels[:, :-NUM_LABELS] = IGNORED_LABEL
        embeds: Tensor | None = None
        videos: tuple[Tensor, ...] = ()
        if plan.part == "layers":
            like = torch.empty(0, device=plan.device)
            embeds = clip_embeddings(clip, plan.shape.hidden_size, "coherent", like=like)
        else:
            frames = (2 * clip.grid[0], 3, *plan.frame)
            random = torch.Generator().manual_seed(0)
            videos = (torch.randint(256, frames, dtype=torch.uint8, generator=random),)
        return {
            "samples": (0,),
            "ids": ("video",),
            "input_ids": ids,
            "labels": labels,
            "cu_seqlens": torch.tensor([0, ids.shape[1]], dtype=torch.int32),
            "videos": videos,
            "video_times": (tuple(float(second) for second in range(clip.grid[0])),),
            "images": (),
            "sampling": SamplingSpec(),
            "grid": clip.grid,
            "embeds": embeds,
        }


class TimedTrainer(PackTrainer):
    """Times its steps; one that fails is noted, and what is left of its setting is passed over.

    Args:
        plan: the steps.
        measured: called with each setting and its times when it is done.
        arguments: of `PackTrainer`.
    """

    def __init__(
        self, *, plan: Plan, measured: Callable[[Setting, Times], None], **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        self._plan = plan
        self._measured = measured
        self._times: dict[Setting, Times] = {}
        self._begin = 0.0
        self._present: TimedBatch | None = None
        self.add_callback(_StepEnd(self))

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Tensor:
        """Forward and backward, timed."""
        batch: TimedBatch = inputs["batch"]
        self._present = batch
        times = self._times.setdefault(batch.setting, Times())
        if times.error is None:
            self._start()
            method = self.inner_model.config.method_of(batch.setting.attention)
            try:
                with dense_backend(method, self.args.device):
                    loss = super().training_step(model, inputs, *rest, **named)
                spent = self._spent()
            except Exception as error:  # whatever a setting raises, others follow
                if self._plan.num_processes > 1:
                    raise  # the other processes wait for this one
                times.error = one_line(error)
            else:
                times.losses.append(float(loss))
                if batch.timed:
                    times.forward_backward_ms.append(spent)
                    self._note_peak(times)
                return loss
            # Only here, where the error and what it holds are gone.
            self._forget(model)
        return torch.zeros((), device=self.args.device)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip, and take note of the norm before it."""
        norm = super()._clip_grad_norm(model)
        if self._present is not None and self._times[self._present.setting].error is None:
            self._times[self._present.setting].grad_norms.append(float(norm))
        return norm

    def _start(self) -> None:
        if self.args.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.args.device)
        self.accelerator.wait_for_everyone()
        self._spent()
        self._begin = time.perf_counter()

    def _spent(self) -> float:
        """Milliseconds since the begin, once the device has nothing left to do."""
        if self.args.device.type == "cuda":
            torch.cuda.synchronize(self.args.device)
        return 1e3 * (time.perf_counter() - self._begin)

    def _note_peak(self, times: Times) -> None:
        if self.args.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.args.device)
            times.peak_bytes = max(times.peak_bytes, peak)

    def _forget(self, model: Any) -> None:
        model.zero_grad()
        self.gates.rows = None
        if self.args.device.type == "cuda":
            torch.cuda.empty_cache()

    def step_done(self) -> None:
        """The optimizer has stepped."""
        batch, spent = self._present, self._spent()
        if batch is None:
            return
        times = self._times[batch.setting]
        if batch.timed and times.error is None:
            times.step_ms.append(spent)
            if self._plan.part == "step":
                self._note_peak(times)
        if batch.last:
            self._measured(batch.setting, times)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Nothing."""

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Nothing."""


class _StepEnd(TrainerCallback):
    def __init__(self, trainer: TimedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._trainer.step_done()


def run_steps(plan: Plan, *, measured: Callable[[Setting, Times], None]) -> int:
    """Train a model of random weights by a plan.

    Args:
        plan: the steps.
        measured: called with each setting and its times when it is done.

    Returns:
        Parameters of a decoder layer.
    """
    model = random_model(plan.shape, device=plan.device, dtype=torch.float32)
    size: int = sum(x.numel() for x in model.model.language_model.layers[0].parameters())
    schedule: Any = Schedule(plan)  # a stream, but for the loader: only logs and checkpoints ask it
    with TemporaryDirectory() as folder, quiet_loading(show_progress=False):
        trainer = TimedTrainer(
            plan=plan,
            measured=measured,
            model=choose_parameters(model, plan.recipe.model),
            args=training_arguments(
                plan.recipe,
                Path(folder),
                steps=len(schedule),
                accumulated=1,
                on_gpu=plan.device.type == "cuda",
            ),
            extras=Extras(
                recipe=plan.recipe,
                stream=schedule,
                shape=plan.shape,
                num_processes=plan.num_processes,
                cp_group=plan.cp_group,
            ),
        )
        for own in (ProgressCallback, PrinterCallback):
            trainer.remove_callback(own)
        trainer.train()
        trainer.accelerator.free_memory()
    del trainer, model
    gc.collect()  # model, trainer and callbacks know one another
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()
    return size


def peak_of(found: Sequence[Times]) -> int:
    """The highest of settings that did not fail; 0 where all did."""
    return max((times.peak_bytes for times in found if times.error is None), default=0)
