"""`PackTrainer`: transformers' Trainer on packed sequences, context parallel if the recipe says so.

What is ours: the source of batches, parameter groups, the loss of context-parallel ranks, steps
without finite gradients, atomic checkpoints, and what is logged.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy, register_fsdp_forward_method
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from videonsa.data.collate import PackedBatch
from videonsa.data.shapes import PackShape
from videonsa.errors import TrainingError
from videonsa.models.recorder.gates import GateMeans
from videonsa.models.shape import ModelShape
from videonsa.parallel.context import ContextParallelGroup
from videonsa.train.beside import Files, write_beside
from videonsa.train.captured import CapturedSteps
from videonsa.train.equal_loss import host_inputs
from videonsa.train.flops import head_flops, step_flops
from videonsa.train.masters import MasterWeights
from videonsa.train.meters import RateMeter, gate_log
from videonsa.train.parameters import all_finite, parameter_groups
from videonsa.train.saving import PARTIAL, publish, reading, saving
from videonsa.train.settings import Recipe
from videonsa.train.stream import PackStream, frame_patches, vision_masks
from videonsa.train.validation import Batches
from videonsa.train.watch import report_line

Evaluation = Callable[[Any, Any, int], dict[str, float]]
"""From model (in evaluation mode), tokenizer and step to scores; every process calls it."""
SKIPPED = "nonfinite.jsonl"
_NOT_FINITE = (
    "the weights are not finite after step {}: lower the learning rate, and begin anew or go on "
    "from the last checkpoint"
)


@dataclass(kw_only=True)
class Extras:
    """What a `PackTrainer` needs beside the arguments of a Trainer."""

    recipe: Recipe
    stream: PackStream
    shape: ModelShape
    num_processes: int
    beside: Files = field(default_factory=dict)
    """Files saved with the weights."""
    cp_group: ContextParallelGroup | None = None
    """None without context parallelism."""
    evaluation: Evaluation | None = None
    """Called every `run.evaluate_every` steps."""
    validation: Batches | None = None
    """Those of the validation data, if there are any."""
    noted: list[tuple[Tensor, tuple[str, ...]]] = field(default_factory=list)
    """Loss and sample ids of each sequence of the current step."""


class PackTrainer(Trainer):
    """Trains on the packed batches of a `PackStream`; what differs is listed in the module."""

    model: Any
    optimizer: Any
    control: Any

    def __init__(self, *, extras: Extras, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.extras = extras
        recipe = extras.recipe
        self.folder = Path(self.args.output_dir)
        self._saves_to = self.folder
        config = self.inner_model.config
        self._vision_ids = (config.image_token_id, config.video_token_id)
        self._spec = config.nsa_spec if config.method.uses_gates else None
        self.gates = GateMeans()
        peak = recipe.run.peak_tflops
        whole = not recipe.model.freeze and not recipe.model.lora_rank
        usable = peak is not None and whole and self.args.device.type != "cpu"
        self.rates = RateMeter(
            peak_flops=peak * 1e12 * extras.num_processes if usable and peak else None
        )
        self.num_skipped = 0
        """Steps in a row without finite gradients."""
        self._lost_loss = False
        """Whether a loss since the last log line was not finite; the Trainer ignores those."""
        self._entrances_are_open = False
        self.masters: MasterWeights | None = None
        """Of bfloat16 weights; the optimizer's parameters then."""
        self._captured = CapturedSteps(self.inner_model) if recipe.run.capture else None
        if self._captured is not None:
            rules = self.inner_model.position_rules()
            extras.stream.loader.prepare = partial(host_inputs, rules=rules)
            if config.method.uses_gates:
                report_line("run.capture=true: mean gates are not logged")
        self._flops: dict[PackShape, int] = {}
        """Operations of the packs of a shape, but for those of their labels."""
        if recipe.parallel.fsdp and recipe.run.precision == "bf16":
            # Accelerate's default policy would also sum gradients and round the loss in bfloat16.
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32
            )
        if recipe.parallel.fsdp and recipe.parallel.activation_checkpointing:
            # Accelerate wraps only what is a unit of FSDP2, and the tower's blocks are none: at
            # 36K tokens the 7B model's would keep more than a GPU has.
            self.inner_model.model.visual.gradient_checkpointing_enable()

    @property
    def inner_model(self) -> Any:
        """The model without its wrappers."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    @property
    def _entrance(self) -> Any:
        """The model as evaluations call it; with LoRA, shards are gathered by what wraps it."""
        sharded = self.extras.recipe.parallel.fsdp
        return self.accelerator.unwrap_model(self.model) if sharded else self.inner_model

    @property
    def _sharing(self) -> int:
        """Degree of context parallelism."""
        return self.extras.recipe.parallel.sequence

    def get_train_dataloader(self) -> Any:
        """The stream itself: it already has the batches of this process, and resumes by itself."""
        return self.extras.stream

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the recipe, with separate parameter groups for the gates."""
        if self.optimizer is None:
            model = self.model if model is None else model
            recipe = self.extras.recipe
            named = dict(model.named_parameters())
            decayed = set(self.get_decay_parameter_names(model))
            if recipe.run.precision == "bf16_weights":
                self.masters = MasterWeights(model)
                named = self.masters.named
            groups = parameter_groups(named, recipe.optimizer, decayed=decayed)
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            self.optimizer = kind(groups, **options)
            if self.masters is not None:
                self.optimizer.register_step_post_hook(self.masters.update_weights)
        return self.optimizer

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """Labels of the step; those of a sequence count once in its context-parallel group."""
        num_items = super()._get_num_items_in_batch(batch_samples, device)
        return None if num_items is None else num_items // self._sharing

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        batch: PackedBatch = inputs["batch"]
        prepared = batch.model_inputs(self.args.device) | {
            "loss_only": True,
            "recorder": self.gates,
        }
        if self.extras.cp_group is not None:
            prepared["cp_group"] = self.extras.cp_group
        self.gates.rows = self._vision_rows(batch)
        return prepared

    def _vision_rows(self, batch: PackedBatch) -> Tensor:
        is_vision = torch.isin(batch.input_ids[0], torch.tensor(self._vision_ids))
        if self.extras.cp_group is not None:
            is_vision = is_vision[self.extras.cp_group.shard(batch.cu_seqlens.tolist()).rows]
        return is_vision.nonzero()[:, 0]

    def training_step(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Tensor:
        """Forward and backward of one sequence; a context-parallel group counts its loss once."""
        loss: Tensor
        if self._captured is None:
            loss = super().training_step(model, inputs, *rest, **named)
        else:
            model.train()
            loss = self._captured.run(inputs["batch"], *rest, **named)
        if self.masters is not None:
            self.masters.collect()
        self.gates.rows = None
        # A context-parallel rank has a share of the gradients, which add up, and the full loss.
        loss = loss / self._sharing
        self.extras.noted.append((loss, inputs["batch"].ids))
        return loss

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip; drop gradients that are not finite, so that the step changes no weight."""
        trained = model if self.masters is None else self.masters
        norm = super()._clip_grad_norm(trained)
        if norm is None:  # DeepSpeed clips and checks by itself
            self.extras.noted.clear()
            return norm
        value = float(norm)
        if math.isfinite(value):
            self.num_skipped = 0
        else:
            self.num_skipped += 1
            for parameter in trained.parameters():
                parameter.grad = None  # AdamW skips parameters without gradient
            self._report_skipped(value, model)
        self.extras.noted.clear()
        return norm

    def _report_skipped(self, norm: float, model: Any) -> None:
        from accelerate.utils import gather_object

        own = [{"loss": str(loss.item()), "samples": list(ids)} for loss, ids in self.extras.noted]
        found = gather_object(own)
        lost = [one for one in found if not math.isfinite(float(one["loss"]))]
        self._lost_loss |= bool(lost)
        suspects = lost or found
        step, most = self.state.global_step + 1, self.extras.recipe.run.max_skipped
        line = {"step": step, "grad_norm": str(norm), "sequences": suspects}
        if self.is_world_process_zero():
            with (self.folder / SKIPPED).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            report_line(f"step {step} skipped: gradients of norm {norm}; samples in {SKIPPED}")
        if not all_finite(model.parameters()):
            raise TrainingError(_NOT_FINITE.format(self.state.global_step))
        if self.num_skipped >= most:
            raise TrainingError(
                f"{most} steps in a row, up to step {step}, have no finite gradients: their "
                f"samples are in {self.folder / SKIPPED}; look at them, lower the learning rate, "
                "or go on from the last checkpoint"
            )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Operations of forward and backward of one sequence; the share of this process."""
        batch: PackedBatch = inputs["batch"]
        labels = int((batch.labels != -100).sum())
        flops = head_flops(self.extras.shape, labels) + self._flops_without_labels(batch)
        own = flops // self._sharing
        self.rates.add(tokens=batch.num_tokens, flops=own)
        return own

    def _flops_without_labels(self, batch: PackedBatch) -> int:
        """Counted once for all packs of a shape."""
        if batch.shape is not None and batch.shape in self._flops:
            return self._flops[batch.shape]
        flops = step_flops(
            self.extras.shape,
            self._spec,
            vision_masks=vision_masks(batch, self._vision_ids),
            frame_patches=frame_patches(batch),
            num_labels=0,
        )
        if batch.shape is not None:
            self._flops[batch.shape] = flops
        return flops

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; a line with a loss also gets throughput and gates."""
        sampler = self.extras.stream.loader.sampler
        self.state.epoch = sampler.epoch + sampler.packs_done / len(sampler.packing.packs)
        if "loss" in logs:
            tokens, flops = self.rates.taken()
            own = torch.tensor([[tokens / self._sharing, flops]], dtype=torch.float64)
            total = self.accelerator.gather(own.to(self.args.device)).sum(0).tolist()
            self.state.num_input_tokens_seen += round(total[0])
            logs |= {"tokens": self.state.num_input_tokens_seen, **self.rates.rates(total)}
            if self._lost_loss:
                logs["loss"], self._lost_loss = math.nan, False
            logs |= gate_log(self.gates.read()) | {"skipped_in_a_row": self.num_skipped}
        super().log(logs)

    def _open_entrances(self) -> None:
        """Let FSDP2 gather weights for methods that evaluations call beside `forward`; once."""
        if self._entrances_are_open:
            return
        for name in ("encode_frames", "encode_vision", "embed_prompt"):
            register_fsdp_forward_method(self._entrance, name)
        self._entrances_are_open = True

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """The loss of the validation data, and the scores of the evaluation that was passed in."""
        step, every = self.state.global_step, self.extras.recipe.run.evaluate_every
        found: dict[str, float] = {}
        self.model.eval()
        self._open_entrances()
        with torch.no_grad():
            if self.extras.validation is not None:
                found["loss"] = self._validation_loss(self.extras.validation)
            if self.extras.evaluation is not None and every and step % every == 0:
                found |= self.extras.evaluation(self._entrance, self.processing_class, step)
        scores = {f"eval/{name}": value for name, value in found.items()}
        if scores:
            self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, scores
        )
        return scores

    def _validation_loss(self, batches: Batches) -> float:
        """Mean over all labels of the validation data, by all processes."""
        device = self.args.device
        total = torch.zeros(1, 2, dtype=torch.float64)  # loss, labels
        for batch, counts in batches():
            inputs = batch.model_inputs(device) | {"loss_only": True, "num_items_in_batch": 1}
            if self.extras.cp_group is not None:
                inputs["cp_group"] = self.extras.cp_group
            with self.compute_loss_context_manager():
                loss = self._entrance(**inputs).loss
            if counts:
                labels = int((batch.labels[:, 1:] != -100).sum())
                total += torch.tensor([[float(loss), labels]], dtype=torch.float64)
        loss, labels = self.accelerator.gather(total.to(device)).sum(0).tolist()
        return loss / labels if labels else math.nan

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._saves_to)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint aside, then rename it: it is atomic."""
        self._saves_to = self.folder / PARTIAL
        with saving(self.folder):
            super()._save_checkpoint(model, trial)
            self._publish(f"checkpoint-{self.state.global_step}")
        self.accelerator.wait_for_everyone()
        self._saves_to = self.folder

    def save_trained(self, name: str) -> None:
        """Save the model, LoRA merged, for `videonsa ask --model`."""
        if self.extras.recipe.model.lora_rank:
            if self.masters is not None:  # rounded weights are not what was trained
                self.masters.restore()
                self.masters = None
            self.model = self.accelerator.unwrap_model(self.model).merge_and_unload()
        with saving(self.folder):
            self.save_model(str(self.folder / PARTIAL / name))
            self._publish(name)
        self.accelerator.wait_for_everyone()

    def _publish(self, name: str) -> None:
        """Once every process has written its part of a folder, move the folder to its place."""
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            write_beside(self.extras.beside, self.folder / PARTIAL / name)
            if self.extras.recipe.model.lora_rank:
                # An adapter alone does not state the attention settings of its gates.
                self.inner_model.config.save_pretrained(self.folder / PARTIAL / name)
            publish(self.folder, name, keep=self.extras.recipe.run.keep)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save weights; refuse weights that are not finite, as such a model answers nothing."""
        if self.masters is not None:
            state_dict = self.masters.state_dict()
        weights = self.model.state_dict() if state_dict is None else state_dict
        if not all_finite(weights.values()):
            raise TrainingError(_NOT_FINITE.format(self.state.global_step))
        super()._save(output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, checkpoint: str, model: Any = None) -> None:
        """Skipped where `load_model` has read the weights: on disk they have other names."""
        if not holds_weights(self.extras.recipe):
            with reading(Path(checkpoint)):
                super()._load_from_checkpoint(checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._take_rates()

    def _take_rates(self) -> None:
        """Set the learning rates of the next step: saved ones may be of a run of fewer steps."""
        scheduler = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        if not isinstance(scheduler, LambdaLR):  # DeepSpeed's own
            return
        for group, base, share in zip(
            scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True
        ):
            group["lr"] = base * share(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in scheduler.optimizer.param_groups]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with reading(Path(checkpoint or "")):
            super()._load_rng_state(checkpoint)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the position in the data with the random state."""
        super()._save_rng_state(output_dir)
        state = json.dumps(self.extras.stream.loader.state_dict())
        Path(output_dir, f"loader_{self.args.process_index}.json").write_text(state, "utf-8")


def holds_weights(recipe: Recipe) -> bool:
    """Whether `load_model` can read a checkpoint; if not, the Trainer loads it."""
    return not (recipe.model.lora_rank or recipe.parallel.shards)
