"""`videonsa plan`: what a question would cost, before any weight is loaded."""

from argparse import Namespace
from typing import TYPE_CHECKING

from videonsa.cli.common import (
    Commands,
    add_command,
    add_model_options,
    add_sampling_options,
    attention_text,
    emit,
    emit_json,
    quiet_libraries,
    report,
    sampling_options,
)

if TYPE_CHECKING:
    from videonsa.inference.plan import VideoPlan

_GIB = 2**30
_MIB = 2**20


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "plan",
        run=run,
        summary="Show the frames, tokens and estimated memory of a question, without loading "
        "weights.",
        examples=(
            "videonsa plan clip.mp4",
            "videonsa plan film.mkv --model Enxin/VideoNSA --fps 4 --max-frames 4096",
            "videonsa plan film.mkv --model Qwen/Qwen2.5-VL-7B-Instruct --json",
        ),
    )
    parser.add_argument("video", metavar="VIDEO", help="a video, a folder of images or an image")
    add_model_options(parser)
    add_sampling_options(parser)


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.inference.defaults import change_sampling, default_sampling
        from videonsa.inference.devices import resolve_device, resolve_dtype
        from videonsa.inference.plan import plan_video
        from videonsa.inference.shapes import load_shape

        shape = load_shape(args.model)
        sampling = change_sampling(default_sampling(args.model, shape), **sampling_options(args))
        dtype = resolve_dtype(args.dtype, resolve_device(None))
        plan = plan_video(
            args.video,
            args.model,
            sampling=sampling,
            attention=args.attention,
            dtype=None if dtype is None else str(dtype).removeprefix("torch."),
        )
    if args.json:
        emit_json(plan.to_dict())
    else:
        emit(_text(plan))
    if sampling.mode == "keyframes":
        report(
            "note       keyframes only: their number is known once the file is read; these are "
            "the wanted times, and the most frames there can be"
        )
    return 0


def _text(plan: "VideoPlan") -> str:
    info, frames, memory = plan.info, plan.sampling, plan.memory
    text_tokens = plan.prompt_tokens - frames.num_tokens
    fits = "fits" if plan.fits else "does NOT fit: lower --fps, --max-frames or --max-tokens"
    lines = (
        f"video      {info.duration:.2f} s, {info.width}x{info.height}, {info.fps:.3g} fps, "
        f"{info.codec or info.container}",
        f"frames     {frames.num_frames} of {frames.width}x{frames.height}, "
        f"{frames.times[0]:.2f} s to {frames.times[-1]:.2f} s",
        f"tokens     {frames.num_tokens} video + about {text_tokens} text, "
        f"{plan.max_new_tokens} for the answer, of {plan.context}: {fits}",
        f"attention  {attention_text(plan.spec, plan.budget)}",
        f"model      {plan.model}, {plan.parameters / 1e6:,.1f} M parameters, {plan.dtype}",
        f"memory     about {_size(memory.total)}: {_size(memory.weights)} weights, "
        f"{_size(memory.cache)} KV cache, {_size(memory.activations)} activations (estimated)",
    )
    return "\n".join(lines) + "\n"


def _size(count: int) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / _MIB:.1f} MiB"
