"""`train`: from a recipe to a trained model, alone or as one of the processes of torchrun."""

import importlib.util
import math
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
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

from videonsa.data.agreement import change_of_sampling, sampling_values, trained_sampling
from videonsa.data.dataset import VideoDataset
from videonsa.data.loader import PackedLoader
from videonsa.data.manifest import Manifest, read_manifest
from videonsa.data.tokens import hash_of_tokenizer
from videonsa.env import num_processes, processes_here
from videonsa.errors import UsageError, VideoNSAError, missing_package
from videonsa.models._hf import quiet_loading
from videonsa.models.checkpoints.checkpoint import read_checkpoint
from videonsa.models.checkpoints.loading import load_model
from videonsa.models.checkpoints.tokenizer import load_tokenizer
from videonsa.models.config import stated_by
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.locate import locate_model
from videonsa.models.shape import ModelShape, load_shape, shape_of_config
from videonsa.parallel.context import ContextParallelGroup
from videonsa.parsing import one_line
from videonsa.planning.defaults import default_sampling
from videonsa.train.beside import files_beside
from videonsa.train.checks import (
    check_captured_samples,
    check_data,
    check_deepspeed,
    check_processes,
    check_shared_memory,
    choose_fsdp,
)
from videonsa.train.folder import LOG, MODEL, hold_folder, open_folder, writing
from videonsa.train.fresh import shaped
from videonsa.train.optimization import check_optimization, check_schedule, warmup_steps
from videonsa.train.parameters import choose_parameters, close_gates
from videonsa.train.saving import LogFile, reading, steps_of
from videonsa.train.settings import ModelSettings, ParallelSettings, Recipe
from videonsa.train.stream import PackStream, RunLength, resume_stream, run_length
from videonsa.train.trackers import tracker_callbacks
from videonsa.train.trainer import Evaluation, Extras, PackTrainer, holds_weights
from videonsa.train.validation import overlap_line, read_validation, validation_batches
from videonsa.train.watch import Watch, report_line
from videonsa.video.chat import DEFAULT_SYSTEM
from videonsa.video.sampling import SamplingSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class _Start:
    """What a run starts or resumes with; all of it has been checked."""

    recipe: Recipe
    out: Path
    manifest: Manifest
    loader: PackedLoader
    length: RunLength
    """From the first step on."""
    validation: Manifest | None
    tokenizer: Any
    sampling: SamplingSpec
    """How the trained model samples a video unless told otherwise."""
    processes: Any
    checkpoint: Path | None = None


def train(
    recipe: Recipe,
    out: Path,
    *,
    evaluation: Evaluation | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    begun: float | None = None,
) -> Path | None:
    """Train, or resume from the last checkpoint in `out`.

    `out` gets recipe.yaml (every setting), run.json (versions, data, machine), log.jsonl,
    checkpoint-N folders, nonfinite.jsonl where steps were skipped, and at the end `model`.

    Args:
        recipe: every setting of the run.
        out: folder of the run.
        evaluation: called every `run.evaluate_every` steps.
        callbacks: further callbacks of the Trainer.
        begun: when `run.seconds` began to count, by `time.monotonic`. Default: now.

    Returns:
        The folder of the trained model; None if `run.seconds` ran out before the last step.

    Raises:
        UsageError: processes, data or settings that cannot work together, or a folder that belongs
            to another run or is in use.
        TrainingError: a full disk, a damaged checkpoint, or gradients or weights that are not
            finite.
        DataError: more unreadable samples than the recipe allows.
        ModelError: weights that cannot be used.
    """
    begun = time.monotonic() if begun is None else begun
    start = _checked_start(recipe, out)
    end = math.inf if recipe.run.seconds is None else begun + recipe.run.seconds
    log = LogFile(out / LOG)
    with (
        hold_folder(out, start.processes),
        writing(out),
        Watch(
            log=log,
            evaluate_every=recipe.run.evaluate_every,
            at_end=start.validation is not None,
            end=end,
        ) as watch,
    ):
        start = _opened(start)
        trainer = _trainer(start, evaluation=evaluation, callbacks=(watch, *callbacks))
        checkpoint = start.checkpoint
        with quiet_loading(show_progress=False):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            if trainer.state.global_step < trainer.state.max_steps:
                return None
            trainer.save_trained(MODEL)
    return out / MODEL


def _checked_start(recipe: Recipe, out: Path) -> _Start:
    """Check that recipe, processes, data and model fit together, before a weight is read."""
    processes = join_processes(on_gpu=torch.cuda.is_available())
    check_processes(recipe, world_size=processes.num_processes, on_gpu=torch.cuda.is_available())
    _check_packages(recipe)
    unused = check_optimization(recipe.optimizer)
    if recipe.parallel.deepspeed is not None:
        check_deepspeed(recipe.parallel.deepspeed)
    manifest = _manifest(recipe)
    check_shared_memory(recipe, manifest, runs=processes_here())
    shape = _shape(recipe.model)
    recipe, lines = _with_fsdp(recipe, shape, processes)
    if shape.is_awq and not recipe.model.fresh:
        lines.append("the base holds int4 weights (AWQ): training starts from them, dequantised")
    tokenizer = load_tokenizer(locate_model(recipe.model.base))
    tokenizer_hash = hash_of_tokenizer(tokenizer)
    check_data(recipe, manifest, shape, tokenizer_hash=tokenizer_hash)
    validation = read_validation(recipe, manifest, shape, tokenizer_hash=tokenizer_hash)
    loader = _loader(recipe, manifest, tokenizer, processes)
    check_captured_samples(recipe, loader.sampler.shapes)
    length = run_length(recipe.optimizer, loader.sampler)
    check_schedule(recipe.optimizer, steps=length.steps)
    before = default_sampling(recipe.model.base, shape)
    sampling = trained_sampling(manifest, before)
    if processes.is_main_process:
        if validation is not None and (shared := overlap_line(validation, manifest)):
            lines.append(shared)
        for line in (*unused, *lines):
            report_line(line)
        if loader.sampler.note:
            report_line(f"an epoch has {loader.sampler.note}")
        _report_asked(manifest, change_of_sampling(before, sampling))
    return _Start(
        recipe=recipe,
        out=out,
        manifest=manifest,
        loader=loader,
        length=length,
        validation=validation,
        tokenizer=tokenizer,
        sampling=sampling,
        processes=processes,
    )


def _with_fsdp(recipe: Recipe, shape: ModelShape, processes: Any) -> tuple[Recipe, list[str]]:
    """The recipe with what `parallel.fsdp=auto` means here, and lines that say so."""
    if recipe.parallel.fsdp != "auto":
        return recipe, []
    memory = None
    if processes.device.type == "cuda":
        memory = torch.cuda.get_device_properties(processes.device).total_memory
    world_size = processes.num_processes
    chosen, line = choose_fsdp(recipe, shape, world_size=world_size, memory=memory)
    recipe = replace(recipe, parallel=replace(recipe.parallel, fsdp=chosen))
    check_processes(recipe, world_size=world_size, on_gpu=memory is not None)
    return recipe, [line]


def _report_asked(manifest: Manifest, change: str | None) -> None:
    """Say how the trained model has to be asked, where that differs from its base."""
    if change is not None:
        report_line(f"the trained model samples as its data were sampled: {change}")
    if manifest.facts.system != DEFAULT_SYSTEM:
        report_line(
            "the data have a system message of their own, which does not go with the weights: ask "
            f"the trained model with --system {shlex.quote(manifest.facts.system)}"
        )


def _opened(start: _Start) -> _Start:
    """The same, with the checkpoint to resume from."""
    checkpoint = open_folder(
        start.recipe,
        start.out,
        start.manifest,
        start.processes,
        steps=start.length.steps,
        epoch=start.loader.sampler.facts,
        asked={
            "sampling": sampling_values(start.sampling),
            "system": start.manifest.facts.system,
        },
    )
    return replace(start, checkpoint=checkpoint)


def join_processes(*, on_gpu: bool) -> Any:
    """Join the processes that torchrun started, if any: accelerate's `PartialState`.

    Args:
        on_gpu: one GPU a process and NCCL; otherwise CPUs and gloo.

    Raises:
        UsageError: accelerate is not installed, or with the environment variables of the launcher
            the processes do not find each other.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise missing_package("accelerate", extra="train") from error
    num_processes()  # raises, naming a variable that is wrong
    try:
        state = PartialState(cpu=not on_gpu)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"the processes do not find each other ({one_line(error)}): start them by torchrun or "
            "accelerate launch, or unset RANK, LOCAL_RANK and WORLD_SIZE to run alone"
        ) from error
    if state.device.type == "cpu":
        # With several processes it would be "cpu:0": an optimizer saved there does not load.
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


def context_parallel_group(recipe: Recipe, processes: Any) -> ContextParallelGroup | None:
    """The context-parallel group of this process; None if the recipe asks for none."""
    sequence = recipe.parallel.sequence
    if sequence == 1:
        return None
    cp_group = None
    for first in range(0, processes.num_processes, sequence):
        # A group of its own even if it has all processes: the all-gathers of K and V must not
        # wait for the all-reduce of gradients.
        group = dist.new_group(list(range(first, first + sequence)))
        if first <= processes.process_index < first + sequence:
            cp_group = ContextParallelGroup(group)
    return cp_group


def _trainer(
    start: _Start, *, evaluation: Evaluation | None, callbacks: Sequence[TrainerCallback]
) -> PackTrainer:
    recipe, processes, tokenizer = start.recipe, start.processes, start.tokenizer
    loader, length = start.loader, start.length
    if start.checkpoint is not None:
        with reading(start.checkpoint):
            resume_stream(loader, start.checkpoint, process=processes.process_index)
    done = length.accumulated * (0 if start.checkpoint is None else steps_of(start.checkpoint)[0])
    torch.manual_seed(recipe.run.seed)  # for fresh gates
    model, folder = _model(start)
    # Otherwise the Trainer adds it to the generation config again at every start of a run.
    model.config.eos_token_id = tokenizer.eos_token_id
    with _refused_variables():
        trainer = PackTrainer(
            model=choose_parameters(model, recipe.model),
            args=training_arguments(
                recipe,
                start.out,
                steps=length.steps,
                accumulated=length.accumulated,
                on_gpu=torch.cuda.is_available(),
            ),
            processing_class=tokenizer,
            callbacks=[*tracker_callbacks(recipe.run.report_to), *callbacks],
            extras=Extras(
                recipe=recipe,
                stream=PackStream(loader, num_batches=length.batches - done),
                shape=shape_of_config(model.config.to_dict()),
                num_processes=processes.num_processes,
                beside=files_beside(folder, sampling=start.sampling),
                cp_group=context_parallel_group(recipe, processes),
                evaluation=evaluation,
                validation=None
                if start.validation is None
                else validation_batches(recipe, start.validation, tokenizer, processes),
            ),
        )
    for own in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(own)
    return trainer


@contextmanager
def _refused_variables() -> Iterator[None]:
    """Explain errors of accelerate's set-up: by now only its variables may be wrong."""
    try:
        yield
    except VideoNSAError:
        raise
    except ValueError as error:
        raise UsageError(
            f"accelerate refuses a variable of the environment ({one_line(error)}): unset those "
            "that begin with ACCELERATE_ or FSDP_, or start by accelerate launch"
        ) from error


def _loader(recipe: Recipe, manifest: Manifest, tokenizer: Any, processes: Any) -> PackedLoader:
    """The sequences of this process; the ranks of one context-parallel group read the same ones."""
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
        batch_size=(
            recipe.optimizer.batch_size if recipe.optimizer.batch_of == "samples" else None
        ),
        weights=recipe.data.weights,
        shapes=recipe.data.shapes,
        # Sharded weights of the tower are gathered by all processes, or by none.
        always_vision=recipe.parallel.shards,
    )


def _shape(settings: ModelSettings) -> ModelShape:
    """The shape of the model that is trained."""
    if not settings.shape:
        return load_shape(settings.base)
    config = read_checkpoint(locate_model(settings.base)).config
    return shape_of_config(shaped(config, settings.shape).to_dict())


def _model(start: _Start) -> tuple[Any, Path]:
    """The model that the run starts or resumes with, and the folder that it came from."""
    recipe, base = start.recipe, locate_model(start.recipe.model.base)
    settings, attention = recipe.model, recipe.attention
    method = attention.method()
    if not method.uses_gates and settings.closed_gates:
        raise UsageError(
            f"model.closed_gates={list(settings.closed_gates)} with attention.kind=dense, which "
            "has no gates: leave one of the two out"
        )
    if start.checkpoint is not None and holds_weights(recipe):
        loaded = load_model(start.checkpoint, dtype=torch.float32, method=method, fresh_gates=True)
        return loaded.model, loaded.folder
    if settings.fresh:
        stated, spec = stated_by(method)
        checkpoint = read_checkpoint(base, attention=stated, fresh_gates=True, nsa_spec=spec)
        config = shaped(checkpoint.config, settings.shape)
        model, folder = VideoNSAForConditionalGeneration(config), checkpoint.folder
    else:
        loaded = load_model(base, dtype=torch.float32, method=method, fresh_gates=True)
        model, folder = loaded.model, loaded.folder
    close_gates(model, settings.closed_from)
    return model.float(), folder


def training_arguments(
    recipe: Recipe, out: Path, *, steps: int, accumulated: int, on_gpu: bool
) -> TrainingArguments:
    """A recipe as arguments of the Trainer.

    Args:
        recipe: every setting of the run.
        out: folder of the run.
        steps: of the optimizer.
        accumulated: sequences of a step that each process computes.
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
        optim=optimizer.name,
        lr_scheduler_type=optimizer.schedule,
        lr_scheduler_kwargs=dict(optimizer.schedule_options),
        warmup_steps=warmup_steps(optimizer, steps=steps),
        adam_beta1=optimizer.betas[0],
        adam_beta2=optimizer.betas[1],
        adam_epsilon=optimizer.epsilon,
        weight_decay=optimizer.weight_decay,
        max_grad_norm=optimizer.max_grad_norm,
        seed=run.seed,
        bf16=run.precision == "bf16",
        use_cpu=not on_gpu,
        # As `join_processes` set it up.
        accelerator_config={
            "use_configured_state": not on_gpu,
            # Masters take the gradients of each sequence: those of all processes, then.
            "gradient_accumulation_kwargs": {"sync_each_batch": run.precision == "bf16_weights"},
        },
        use_cache=True,  # for evaluations; training uses no cache
        gradient_checkpointing=own_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if own_checkpointing else None,
        # A packed sequence without a video uses neither tower nor gates.
        ddp_find_unused_parameters=True,
        fsdp=True if parallel.fsdp else None,
        fsdp_config=_fsdp_config(parallel) if parallel.fsdp else None,
        deepspeed=parallel.deepspeed,
        logging_steps=run.log_every,
        save_steps=run.save_every,
        ignore_data_skip=True,  # the stream restores its own position
        report_to=[],  # `tracker_callbacks` instead
        project="videonsa",
        trackio_static_space_id=False,  # otherwise it sends the log to a hub
        run_name=out.name,
        disable_tqdm=True,
    )
    if arguments.device.type == "cuda":
        # One process has one GPU: if more were visible, the Trainer would copy the model to all.
        arguments._n_gpu = 1
    return arguments


def _fsdp_config(parallel: ParallelSettings) -> dict[str, Any]:
    return {
        "version": 2,
        "reshard_after_forward": True,
        "activation_checkpointing": parallel.activation_checkpointing,
        # Not the blocks of the tower: ranks call them different numbers of times.
        "transformer_layer_cls_to_wrap": ["Qwen2_5_VLDecoderLayer"],
    }
