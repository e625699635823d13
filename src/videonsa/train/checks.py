"""Checks before a weight is loaded: what cannot work is refused, with the nearest that can."""

import shutil
from pathlib import Path

from videonsa.data.agreement import disagreements
from videonsa.data.manifest import Manifest
from videonsa.data.shapes import Shapes
from videonsa.data.suite_source import is_drawn
from videonsa.errors import UsageError
from videonsa.models.shape import ModelShape
from videonsa.parsing import read_json_object
from videonsa.planning.defaults import sampling_of_shape
from videonsa.train.settings import Recipe

SHARED_MEMORY = Path("/dev/shm")
PREFETCHED = 2
"""Batches that each worker of the loader prepares ahead."""
_BYTES_TRAINED, _BYTES_FROZEN = 16, 4
"""Of a weight: in float32 with its gradient and both states of AdamW, or alone."""
_SHARE_FOR_STATE = 0.8
"""Of a GPU's memory; the rest is for activations."""
_SAMPLED = ("fps", "min_frames", "max_frames", "max_pixels")
"""Settings that the options of a build have to equal."""
MOST_CAPTURED = 32
"""Shapes of packs: each takes seconds to capture, and memory beside the pool that all share."""
_BYTES_A_TOKEN = 2 * 3 * 28 * 28
"""Two frames of 28 x 28 pixels in RGB, a byte each."""


def check_shared_memory(recipe: Recipe, manifest: Manifest, *, runs: int) -> None:
    """Refuse loader workers whose frames do not fit in shared memory: a signal would kill them.

    Videos of the suite travel as drawings, without frames.

    Args:
        recipe: that every run, or every process of a run, follows.
        manifest: what the workers read.
        runs: how many run on this machine at the same time.

    Raises:
        UsageError: says how much is free and how much is needed.
    """
    workers = recipe.data.num_workers
    if not workers or not SHARED_MEMORY.is_dir() or is_drawn(manifest.facts):
        return
    loaders = 2 if recipe.data.validation else 1
    batches = runs * loaders * (workers * PREFETCHED + 1)
    wanted = batches * recipe.data.context * _BYTES_A_TOKEN
    free = shutil.disk_usage(SHARED_MEMORY).free
    if free < wanted:
        raise UsageError(
            f"{SHARED_MEMORY} has {free / 1e9:.1f} GB free, {batches} batches of frames on their "
            f"way may want {wanted / 1e9:.1f}: enlarge it, run fewer at once, or lower "
            "data.num_workers (0: each process reads its videos itself)"
        )


def check_processes(recipe: Recipe, *, world_size: int, on_gpu: bool) -> None:
    """Refuse a number of processes over which the work cannot be divided.

    Raises:
        UsageError: names the nearest numbers that work.
    """
    parallel, optimizer = recipe.parallel, recipe.optimizer
    if world_size % parallel.sequence:
        raise UsageError(
            f"{world_size} processes with parallel.sequence={parallel.sequence}: want a multiple "
            f"of it, such as {_multiples(world_size, parallel.sequence)} processes"
        )
    ranks = world_size // parallel.sequence
    if optimizer.batch_size % ranks:
        raise UsageError(
            f"optimizer.batch_size={optimizer.batch_size} over {ranks} processes with sequences of "
            f"their own: want a multiple, such as {_multiples(optimizer.batch_size, ranks)}"
        )
    if recipe.run.precision == "bf16_weights" and parallel.shards:
        raise UsageError(
            "run.precision=bf16_weights with sharded weights, which have float32 masters anyway: "
            "want --set run.precision=bf16"
        )
    if recipe.run.capture:
        _check_capture(recipe, world_size=world_size, on_gpu=on_gpu)
    if recipe.data.shapes == "equal" and optimizer.batch_of == "samples":
        raise UsageError(
            "data.shapes=equal with optimizer.batch_of=samples: sequences of equal shape have as "
            "many samples as fit; want --set optimizer.batch_of=sequences"
        )
    if parallel.fsdp is True and (world_size == 1 or not on_gpu):  # accelerate would leave it out
        raise UsageError(
            f"parallel.fsdp=true with {world_size} processes on {'a GPU' if on_gpu else 'CPUs'}: "
            "want two or more GPUs, a process each by torchrun, or --set parallel.fsdp=false"
        )
    if parallel.deepspeed is not None and not on_gpu:
        raise UsageError(
            f"parallel.deepspeed={parallel.deepspeed} on CPUs: accelerate gives DeepSpeed none; "
            "want a GPU a process, or leave it out"
        )
    if parallel.deepspeed is not None and recipe.model.lora_rank:
        raise UsageError(
            f"model.lora_rank={recipe.model.lora_rank} with parallel.deepspeed: LoRA is sharded by "
            "FSDP2 alone; want --set parallel.fsdp=true in its place"
        )


def _check_capture(recipe: Recipe, *, world_size: int, on_gpu: bool) -> None:
    """Refuse what a captured step cannot have beside it."""
    excluded = {
        f"{world_size} processes": world_size > 1,
        "data.shapes=any": recipe.data.shapes != "equal",
        "parallel.activation_checkpointing=true": recipe.parallel.activation_checkpointing,
        f"model.lora_rank={recipe.model.lora_rank}": bool(recipe.model.lora_rank),
        "run.precision=bf16": recipe.run.precision == "bf16",
        "no GPU, and run.precision=bf16_weights": not on_gpu and recipe.run.precision != "fp32",
    }
    for what, is_so in excluded.items():
        if is_so:
            raise UsageError(
                f"run.capture=true with {what}: want one process, data.shapes=equal, "
                "run.precision=bf16_weights (a GPU) or fp32, no LoRA and no activation "
                "checkpointing; or --set run.capture=false"
            )


def check_captured_samples(recipe: Recipe, shapes: Shapes | None) -> None:
    """Refuse samples whose packs no graph can hold, before a step meets them.

    Args:
        recipe: of the run.
        shapes: of its samples; None where they do not matter.

    Raises:
        UsageError: says how many there are.
    """
    unshaped = 0 if shapes is None else int((shapes.of_rows < 0).sum())
    if recipe.run.capture and unshaped:
        raise UsageError(
            f"run.capture=true and {unshaped} samples that are not one video and text: build "
            "data.manifest without them, or --set run.capture=false"
        )
    if recipe.run.capture and shapes is not None and len(shapes.shapes) > MOST_CAPTURED:
        raise UsageError(
            f"run.capture=true and packs of {len(shapes.shapes)} shapes, each captured on its own: "
            f"want at most {MOST_CAPTURED}; build data.manifest with fewer numbers of frames, or "
            "--set run.capture=false"
        )


def choose_fsdp(
    recipe: Recipe, shape: ModelShape, *, world_size: int, memory: int | None
) -> tuple[bool, str]:
    """What `parallel.fsdp=auto` means for a run, and why, in a line.

    Args:
        recipe: of the run.
        shape: of its model.
        world_size: processes, a GPU each.
        memory: bytes of a GPU; None: the processes are on CPUs.
    """
    if memory is None:
        return False, "parallel.fsdp=auto: off, on CPUs weights are not sharded"
    if recipe.parallel.deepspeed is not None:
        return False, "parallel.fsdp=auto: off, DeepSpeed shards"
    settings = recipe.model
    trains = not settings.lora_rank and "llm" not in settings.freeze
    size = shape.num_parameters * (_BYTES_TRAINED if trains else _BYTES_FROZEN)
    fits = size <= _SHARE_FOR_STATE * memory
    sizes = (
        f"weights{', gradients and optimizer' if trains else ''} take {size / 1e9:.0f} GB, a GPU "
        f"has {memory / 1e9:.0f}"
    )
    if world_size == 1:
        more = "" if fits else ": start several processes by torchrun"
        return False, f"parallel.fsdp=auto: off, one process trains; {sizes}{more}"
    return not fits, f"parallel.fsdp=auto: {'off' if fits else 'on'}, {sizes}"


def check_deepspeed(path: str) -> None:
    """Refuse a DeepSpeed config that cannot be read or would write no consolidated checkpoint.

    Args:
        path: of the JSON file.

    Raises:
        UsageError: names what is missing.
    """
    config = read_json_object(
        Path(path), remedy="parallel.deepspeed wants DeepSpeed's config, an object in a JSON file"
    )
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise UsageError(
            f"parallel.deepspeed={path}: want DeepSpeed's config, an object whose "
            "zero_optimization, if it has one, is an object"
        )
    gather = "stage3_gather_16bit_weights_on_model_save"
    if zero.get("stage") == 3 and zero.get(gather) is not True:  # accelerate makes "auto" false
        raise UsageError(
            f"parallel.deepspeed={path}: ZeRO 3 would leave the trained model in shards that no "
            f'command loads; set "{gather}": true in its zero_optimization'
        )


def check_data(
    recipe: Recipe, manifest: Manifest, shape: ModelShape, *, tokenizer_hash: str
) -> None:
    """Refuse a manifest that the recipe, or the model, cannot use.

    Raises:
        UsageError: names what can be used.
    """
    data, facts = recipe.data, manifest.facts
    stated = {name: getattr(data, name) for name in _SAMPLED}
    wanted = {name: value for name, value in stated.items() if value is not None}
    built = {name: facts.options.get(name) for name in wanted}
    other = [name for name in wanted if built[name] != wanted[name]]
    if other:
        settings = [f"--set data.{name}={_or_null(built[name])}" for name in other]
        raise UsageError(
            f"{manifest.path} was built with {', '.join(f'{name}={built[name]}' for name in other)}"
            f", the recipe wants {', '.join(f'{wanted[name]:g}' for name in other)}: build it so, "
            f"or {' '.join(settings)}"
        )
    for problem in disagreements(
        facts,
        model=recipe.model.base,
        tokenizer_hash=tokenizer_hash,
        sampling=sampling_of_shape(shape),
    ):
        raise UsageError(f"{manifest.path} is {problem}")
    if not len(manifest):
        raise UsageError(f"{manifest.path} keeps no sample: build it from more data")
    _check_lengths(recipe, manifest, shape)


def _check_lengths(recipe: Recipe, manifest: Manifest, shape: ModelShape) -> None:
    context, sequence = recipe.data.context, recipe.parallel.sequence
    lengths = manifest.column("tokens")
    longest, shortest = int(lengths.max()), int(lengths.min())
    if longest > shape.context:  # positions start anew in each sample of a sequence
        raise UsageError(
            f"the longest sample of {manifest.path} has {longest} tokens: {recipe.model.base} has "
            f"{shape.context} positions; want a manifest built with at most that many tokens"
        )
    if context < longest:
        raise UsageError(
            f"data.context={context}: the longest sample of {manifest.path} has {longest} tokens; "
            f"want at least {longest}, or a manifest built with that limit"
        )
    if sequence > 1 and shortest < 2 * sequence:
        raise UsageError(
            f"parallel.sequence={sequence}: the shortest sample has {shortest} tokens, and a "
            f"sequence needs two a process; want at most {max(shortest // 2, 1)}"
        )


def _or_null(value: float | None) -> str:
    return "null" if value is None else str(value)


def _multiples(value: int, of: int) -> str:
    below, above = value // of * of, (value // of + 1) * of
    return f"{below} or {above}" if below else str(above)
