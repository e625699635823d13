"""`videonsa plan`: what a question would cost, before any weight is loaded."""

from argparse import Namespace
from collections.abc import Iterator
from typing import TYPE_CHECKING

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    add_command,
    add_fit_options,
    add_fresh_gates_option,
    add_model_options,
    add_sampling_options,
    add_weights_option,
    attention_text,
    emit,
    emit_json,
    kept_text,
    quiet_libraries,
    report,
    sampling_options,
    video_argument,
)

if TYPE_CHECKING:
    from videonsa.planning.plan import VideoPlan

_ADVICE = "lower --fps, --max-frames or --max-tokens, or pass --fit"


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "plan",
        run=run,
        summary="Show which frames and how many tokens a question would take, and estimate its "
        "memory and time, without loading weights.",
        examples=(
            "videonsa plan clip.mp4",
            "videonsa plan film.mkv --model Enxin/VideoNSA --fps 4 --max-frames 4096",
            "videonsa plan film.mkv --start 60 --end 90 --num-frames 32",
            "videonsa plan film.mkv --model Qwen/Qwen2.5-VL-7B-Instruct --memory 24GB --fit",
            "videonsa plan film.mkv --model Qwen/Qwen2.5-VL-7B-Instruct --gpu 4090 --fit",
            "videonsa plan film.mkv --model Qwen/Qwen2.5-VL-7B-Instruct --json",
        ),
    )
    parser.add_argument(
        "video", type=values.name, metavar="VIDEO", help="a video, a folder of images or an image"
    )
    add_model_options(parser)
    add_fresh_gates_option(parser)
    add_weights_option(parser)
    add_sampling_options(parser)
    add_fit_options(parser)
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        help="plan for a GPU that is not here, by its data sheet: h200, h100, a100, l40s, 4090, "
        "... (another name lists all)",
    )
    parser.add_argument(
        "--max-new-tokens",
        type=values.integer,
        default=64,
        metavar="N",
        help="most tokens of an answer (default: %(default)s)",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.models.shape import load_shape
        from videonsa.planning.defaults import change_sampling, default_sampling
        from videonsa.planning.devices import parse_memory, resolve_device, resolve_dtype
        from videonsa.planning.plan import plan_video

        where = {"base": args.base, "revision": args.revision}
        choice = {"method": args.method, "fresh_gates": args.fresh_gates}
        shape = load_shape(args.model, **where, **choice)
        usual = default_sampling(args.model, shape, **where)
        sampling = change_sampling(usual, **sampling_options(args))
        memory = None if args.memory is None else parse_memory(args.memory)
        # With --memory or --gpu it is a GPU that is planned for, here or elsewhere.
        for_gpu = args.gpu is not None or memory is not None
        place = resolve_device("cpu" if for_gpu else None)
        dtype = None if for_gpu and args.dtype is None else resolve_dtype(args.dtype, place)
        plan = plan_video(
            video_argument(args),
            args.model,
            sampling=sampling,
            dtype=None if dtype is None else str(dtype).removeprefix("torch."),
            memory=memory,
            gpu=args.gpu,
            fit=args.fit,
            weights=args.weights,
            max_new_tokens=args.max_new_tokens,
            **where,
            **choice,
        )
    if args.json:
        emit_json(plan.to_dict())
    else:
        emit(_text(plan))
    for note in plan.notes:
        report(f"note       {note}")
    if sampling.mode == "keyframes":
        report(
            "note       keyframes only: their number is known once the file is read; these are "
            "the wanted times, and the most frames there can be"
        )
    return 0


def _text(plan: "VideoPlan") -> str:
    info, frames = plan.info, plan.sampling
    text_tokens = plan.prompt_tokens - plan.video_tokens
    video_tokens = kept_text(plan.video_tokens, frames.num_tokens)
    fits = "fits" if plan.fits else f"does NOT fit: {_ADVICE}"
    lines = (
        f"video      {info.duration:.2f} s, {info.width}x{info.height}, {info.fps:.3g} fps, "
        f"{info.codec or info.container}",
        *(() if plan.fit is None else (f"fit        {plan.fit}",)),
        f"frames     {frames.num_frames} of {frames.width}x{frames.height}, "
        f"{frames.times[0]:.2f} s to {frames.times[-1]:.2f} s",
        f"tokens     {video_tokens} video + about {text_tokens} text, "
        f"{plan.max_new_tokens} for the answer, of {plan.context}: {fits}",
        f"attention  {attention_text(plan)}",
        f"computed   {plan.computed.describe()}",
        f"model      {plan.model}, {plan.parameters / 1e6:,.1f} M parameters, "
        f"{plan.dtype if plan.weights == 'full' else f'{plan.weights} and {plan.dtype}'}",
        *_memory_lines(plan),
        *_gpu_lines(plan),
        *_time_lines(plan),
    )
    return "\n".join(lines) + "\n"


def _memory_lines(plan: "VideoPlan") -> Iterator[str]:
    """The peak against what is there, and every stage with its terms."""
    from videonsa.planning.memory import size_text

    memory, machine = plan.memory, plan.machine
    verdict = ""
    if machine.memory is not None:
        fits = "fits" if plan.fits_memory else f"does NOT fit: {_memory_advice(plan)}"
        verdict = f" of {size_text(machine.memory)} on {machine.name}: {fits}"
    yield (
        f"memory     about {size_text(memory.total)}{verdict} (estimated; the peak is in "
        f"{memory.peak.name})"
    )
    for stage in memory.stages:
        terms = ", ".join(f"{size_text(value)} {name}" for name, value in stage.terms.items())
        yield f"  {stage.name:<13}{size_text(stage.total)}: {terms}"


def _gpu_lines(plan: "VideoPlan") -> Iterator[str]:
    """What is taken from the data sheet of a GPU that is not here, and whether the kernels run."""
    from videonsa.planning.gpus import RESERVED
    from videonsa.planning.memory import size_text

    gpu = plan.machine.gpu
    if gpu is None:
        return
    reason = gpu.why_no_kernels()
    kernels = (
        f"no kernels: {reason}" if reason else f"the kernels run there ({gpu.capability_text})"
    )
    yield (
        f"gpu        {size_text(gpu.memory)} by the data sheet, {size_text(RESERVED)} of it left "
        f"for driver and context; {kernels}"
    )


def _memory_advice(plan: "VideoPlan") -> str:
    """What to do where the memory is too small."""
    elsewhere = "" if plan.machine.kind == "cuda" else " (--memory 24GB plans for a GPU)"
    weights = plan.memory.peak.terms["weights"]
    if plan.machine.memory is None or weights < plan.machine.memory:
        return _ADVICE + elsewhere
    kinds = "--dtype bfloat16, --weights int8" if plan.dtype == "float32" else "--weights int8"
    return f"the weights alone do not; try {kinds} or a smaller model{elsewhere}"


def _time_lines(plan: "VideoPlan") -> Iterator[str]:
    from videonsa.planning.speed import MEASURED

    time = plan.time
    if time is None:
        if plan.machine.gpu is not None:
            yield f"time       not estimated: rates were measured on {', '.join(MEASURED)} only"
        return
    as_dense = " (were its attention dense)" if plan.computed.attention is None else ""
    yield (
        f"time       about {time.total:.1f} s (estimated with rates measured on {time.rates_of}): "
        f"vision tower {time.vision_tower:.2f} s, prefill {time.prefill:.2f} s{as_dense}, then "
        f"{1e3 * time.next_token:.0f} ms a token; reading the video is not in it"
    )
