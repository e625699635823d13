"""`train`: a recipe to a trained model, alone or as one of the processes of torchrun."""

import importlib.util
import json
import math
import platform
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import (
    PrinterCallback,
    ProgressCallback,
    TrainerCallback,
    TrainingArguments,
)

from videonsa import __version__
from videonsa.data.dataset import VideoDataset
from videonsa.data.loader import PackedLoader
from videonsa.data.manifest import Manifest, read_manifest
from videonsa.disk import write_whole
from videonsa.env import processes_here
from videonsa.errors import UsageError, missing_package
from videonsa.inference.locate import locate_model
from videonsa.inference.shapes import load_shape, shape_of_config
from videonsa.models._hf import quiet_loading
from videonsa.models.loading import load_model, read_checkpoint
from videonsa.models.modeling import VideoNSAForConditionalGeneration
from videonsa.models.tokenizer import load_tokenizer
from videonsa.parallel.exchange import SequenceExchange
from videonsa.train.checks import (
    check_data,
    check_deepspeed,
    check_processes,
    check_shared_memory,
)
from videonsa.train.parameters import choose_parameters, close_gates
from videonsa.train.reading import recipe_of, recipe_to_yaml
from videonsa.train.saving import (
    PARTIAL,
    LogFile,
    clear_partial,
    last_checkpoint,
    publish,
    saving,
)
from videonsa.train.settings import ParallelSettings, Recipe
from videonsa.train.stream import PackStream, resume_stream
from videonsa.train.trainer import Evaluation, Extras, PackTrainer, Watch, holds_weights

MODEL = "model"
RUN, RECIPE, LOG = "run.json", "recipe.yaml", "log.jsonl"
_PACKAGES = ("torch", "transformers", "accelerate", "av", "numpy")
_MAY_CHANGE = ("parallel", "run")
"""Sections that a run may be resumed with other values of; `run.seed` is not one of them."""


def train(
    recipe: Recipe,
    out: Path,
    *,
    evaluation: Evaluation | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    begun: float | None = None,
) -> Path | None:
    """Train, or go on from the last checkpoint in `out`.

    `out` gets recipe.yaml (every setting), run.json (versions, data, machine), log.jsonl,
    checkpoint-N folders, nonfinite.jsonl where steps were skipped, and at the end `model`.

    Args:
        recipe: what to do.
        out: folder of the run.
        evaluation: called every `run.evaluate_every` steps.
        callbacks: more for the Trainer.
        begun: what `run.seconds` count from, by `time.monotonic`. Default: now.

    Returns:
        The folder of the trained model; None where `run.seconds` were over before the last step.

    Raises:
        UsageError: processes, data or settings that cannot work, or a folder of another run.
        TrainingError: a full disk, or gradients that are never finite.
        DataError: more samples that cannot be read than the recipe allows.
        ModelError: weights that cannot be used.
    """
    begun = time.monotonic() if begun is None else begun
    processes = join_processes(on_gpu=torch.cuda.is_available())
    check_processes(recipe, world_size=processes.num_processes, on_gpu=torch.cuda.is_available())
    _check_packages(recipe)
    if recipe.parallel.deepspeed is not None:
        check_deepspeed(recipe.parallel.deepspeed)
    check_shared_memory(recipe, runs=processes_here())
    manifest = _manifest(recipe)
    check_data(recipe, manifest, load_shape(recipe.model.base))
    checkpoint = _prepare(recipe, out, manifest, processes)
    trainer = _trainer(
        recipe,
        out,
        manifest,
        processes,
        checkpoint,
        exchange=sequence_exchange(recipe, processes),
        evaluation=evaluation,
        callbacks=callbacks,
        begun=begun,
    )
    with quiet_loading(show_progress=False):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < trainer.state.max_steps:
            return None
        _save_model(trainer, out)
    return out / MODEL


def join_processes(*, on_gpu: bool) -> Any:
    """Become one of the processes of torchrun, if there are some: accelerate's `PartialState`.

    Args:
        on_gpu: a GPU each, NCCL between them; else CPUs and gloo.

    Raises:
        UsageError: accelerate is not installed.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise missing_package("accelerate", extra="train") from error
    state = PartialState(cpu=not on_gpu)
    if state.device.type == "cpu":
        # "cpu:0" else, where there are several: an optimizer that was saved there does not load.
        state.device = torch.device("cpu")
    return state


def _check_packages(recipe: Recipe) -> None:
    needed = list(recipe.run.report_to)
    needed += ["peft"] if recipe.model.lora_rank else []
    needed += ["deepspeed"] if recipe.parallel.deepspeed else []
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"{package} is not installed, and this run needs it: pip install {package}"
            )


def _manifest(recipe: Recipe) -> Manifest:
    if not recipe.data.manifest:
        raise UsageError(
            "data.manifest is not set: build one with 'videonsa data build', then pass "
            "--set data.manifest=FOLDER"
        )
    return read_manifest(recipe.data.manifest)


def _prepare(recipe: Recipe, out: Path, manifest: Manifest, processes: Any) -> Path | None:
    """The folder of the run, and the checkpoint in it to go on from."""
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(out)
    facts: dict[str, Any] = {"recipe": recipe.name, "data_hash": manifest.data_hash}
    if checkpoint is not None:
        _check_same(recipe, facts, out)
    processes.wait_for_everyone()  # all have read before one writes
    if processes.is_main_process:
        clear_partial(out)
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        facts |= {
            "manifest": recipe.data.manifest,
            "num_samples": len(manifest),
            "processes": processes.num_processes,
            "device": gpu or platform.processor() or "cpu",
            "python": platform.python_version(),
            "versions": {"videonsa": __version__, **{name: _version(name) for name in _PACKAGES}},
        }
        write_whole(out / RECIPE, recipe_to_yaml(recipe))
        write_whole(out / RUN, json.dumps(facts, indent=2) + "\n")
    processes.wait_for_everyone()
    return checkpoint


def _version(package: str) -> str | None:
    """None of what runs from a folder without being installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _check_same(recipe: Recipe, facts: dict[str, Any], out: Path) -> None:
    """Refuse to go on with another run's checkpoint."""
    import yaml

    before = yaml.safe_load((out / RECIPE).read_text("utf-8"))
    then, now = recipe_of(recipe.name, before), recipe
    stated = json.loads((out / RUN).read_text("utf-8"))
    if stated["data_hash"] != facts["data_hash"]:
        raise UsageError(f"{out} has checkpoints of other data: name another folder")
    for section in before:
        for key in before[section]:
            old, new = (getattr(getattr(one, section), key) for one in (then, now))
            matters = section not in _MAY_CHANGE or key in ("seed", "precision")
            if matters and key != "manifest" and old != new:
                raise UsageError(
                    f"{out} has checkpoints with {section}.{key}={old}, this run has {new}: name "
                    "another folder, or the same value"
                )


def sequence_exchange(recipe: Recipe, processes: Any) -> SequenceExchange | None:
    """Between this process and those that share its sequences, as the recipe says."""
    sequence = recipe.parallel.sequence
    if sequence == 1:
        return None
    exchange = None
    for first in range(0, processes.num_processes, sequence):
        # A group of its own even where it has all processes: what they exchange must not wait
        # for what is summed over gradients.
        group = dist.new_group(list(range(first, first + sequence)))
        if first <= processes.process_index < first + sequence:
            exchange = SequenceExchange(group)
    return exchange


def _trainer(
    recipe: Recipe,
    out: Path,
    manifest: Manifest,
    processes: Any,
    checkpoint: Path | None,
    *,
    exchange: SequenceExchange | None,
    evaluation: Evaluation | None,
    callbacks: Sequence[TrainerCallback],
    begun: float,
) -> PackTrainer:
    base = locate_model(recipe.model.base)
    tokenizer = load_tokenizer(base)
    ranks = processes.num_processes // recipe.parallel.sequence
    loader = _loader(recipe, manifest, tokenizer, processes)
    optimizer = recipe.optimizer
    packs = len(loader.sampler.packing.packs)
    steps = optimizer.steps or -(-packs * optimizer.epochs // optimizer.batch_size)
    accumulated = optimizer.batch_size // ranks
    if checkpoint is not None:
        resume_stream(loader, checkpoint, process=processes.process_index)
    torch.manual_seed(recipe.run.seed)  # of fresh gates
    model = _model(recipe, base, checkpoint)
    # Else the Trainer adds it to the generation config again, whenever a run starts.
    model.config.eos_token_id = tokenizer.eos_token_id
    trainer = PackTrainer(
        model=choose_parameters(model, recipe.model),
        args=training_arguments(
            recipe, out, steps=steps, accumulated=accumulated, on_gpu=torch.cuda.is_available()
        ),
        processing_class=tokenizer,
        callbacks=[
            Watch(
                log=LogFile(out / LOG),
                evaluate_every=recipe.run.evaluate_every,
                end=math.inf if recipe.run.seconds is None else begun + recipe.run.seconds,
            ),
            *callbacks,
        ],
        extras=Extras(
            recipe=recipe,
            stream=PackStream(loader, num_batches=steps * accumulated),
            shape=shape_of_config(model.config.to_dict()),
            num_processes=processes.num_processes,
            exchange=exchange,
            evaluation=evaluation,
        ),
    )
    for own in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(own)
    return trainer


def _loader(recipe: Recipe, manifest: Manifest, tokenizer: Any, processes: Any) -> PackedLoader:
    """The sequences of this process; those that share theirs read the same."""
    sharing = recipe.parallel.sequence
    return PackedLoader(
        VideoDataset(
            manifest,
            tokenizer=tokenizer,
            loss=recipe.data.loss,
            most_time_scale=recipe.data.most_time_scale,
        ),
        max_tokens=recipe.data.context,
        seed=recipe.run.seed,
        rank=processes.process_index // sharing,
        world_size=processes.num_processes // sharing,
        num_workers=recipe.data.num_workers,
        max_failed_share=recipe.data.max_failed_share,
    )


def _model(recipe: Recipe, base: str, checkpoint: Path | None) -> Any:
    """What the run begins with, or goes on with."""
    settings, attention = recipe.model, recipe.attention
    if attention.kind == "dense" and settings.closed_gates:
        raise UsageError(
            f"model.closed_gates={list(settings.closed_gates)} with attention.kind=dense, which "
            "has no gates: leave one of the two out"
        )
    choice: dict[str, Any] = {
        "attention": attention.kind,
        "fresh_gates": True,
        "nsa_spec": attention.spec(),
    }
    if checkpoint is not None and holds_weights(recipe):
        return load_model(checkpoint, dtype=torch.float32, **choice).model
    if settings.fresh:
        config = read_checkpoint(base, **choice).config
        model = VideoNSAForConditionalGeneration(config).float()
    else:
        model = load_model(base, dtype=torch.float32, **choice).model
    close_gates(model, settings.closed_from)
    return model


def training_arguments(
    recipe: Recipe, out: Path, *, steps: int, accumulated: int, on_gpu: bool
) -> TrainingArguments:
    """What a recipe says in the Trainer's words.

    Args:
        recipe: what to do.
        out: folder of the run.
        steps: of the optimizer.
        accumulated: sequences of a step that a process has.
        on_gpu: as for `join_processes`.
    """
    optimizer, parallel, run = recipe.optimizer, recipe.parallel, recipe.run
    own_checkpointing = parallel.activation_checkpointing and not parallel.fsdp
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=steps,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulated,
        learning_rate=optimizer.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=round(optimizer.warmup * steps),
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        seed=run.seed,
        bf16=run.precision == "bf16",
        use_cpu=not on_gpu,
        # As `join_processes` set it up.
        accelerator_config={"use_configured_state": not on_gpu},
        use_cache=True,  # of an evaluation; training makes no cache
        gradient_checkpointing=own_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if own_checkpointing else None,
        # A pack without a video uses neither tower nor gates.
        ddp_find_unused_parameters=True,
        fsdp=True if parallel.fsdp else None,
        fsdp_config=_fsdp_config(parallel) if parallel.fsdp else None,
        deepspeed=parallel.deepspeed,
        logging_steps=run.log_every,
        save_steps=run.save_every,
        ignore_data_skip=True,  # the stream knows where it stands
        report_to=list(run.report_to),
        project="videonsa",
        run_name=out.name,
        disable_tqdm=True,
    )
    if arguments.device.type == "cuda":
        # One process has one GPU: with more in sight the Trainer would copy the model to all.
        arguments._n_gpu = 1
    return arguments


def _fsdp_config(parallel: ParallelSettings) -> dict[str, Any]:
    return {
        "version": 2,
        "reshard_after_forward": True,
        "activation_checkpointing": parallel.activation_checkpointing,
        # Not the blocks of the tower: how often they are called differs between processes.
        "transformer_layer_cls_to_wrap": ["Qwen2_5_VLDecoderLayer"],
    }


def _save_model(trainer: PackTrainer, out: Path) -> None:
    """The trained model, LoRA merged, where `videonsa ask --model` takes it."""
    if trainer.extras.recipe.model.lora_rank:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    with saving(out):
        trainer.save_model(str(out / PARTIAL / MODEL))
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            publish(out, MODEL, keep=trainer.extras.recipe.run.keep)
    trainer.accelerator.wait_for_everyone()
