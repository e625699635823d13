"""`videonsa convert`: write a checkpoint in this package's format."""

from argparse import Namespace

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    add_revision_option,
    emit,
    emit_json,
    quiet_libraries,
    report,
)


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "convert",
        run=run,
        summary="Write a checkpoint of Qwen2.5-VL or VideoNSA in this package's format, or a "
        "dense one as stock Qwen2.5-VL: the config states its attention, the values of the weights "
        "do not change. The write is atomic: TARGET appears complete or not at all.",
        examples=(
            "videonsa convert Enxin/VideoNSA ./videonsa-7b",
            "videonsa convert Qwen/Qwen2.5-VL-3B-Instruct ./fresh-3b --fresh-gates half",
            "videonsa convert runs/dense/model ./stock --to qwen2_5_vl --dtype bfloat16",
            "videonsa convert ./weights ./half --dtype bfloat16 --max-shard-size 2GB --force",
        ),
    )
    parser.add_argument("source", metavar="SOURCE", help="a folder or a Hugging Face id")
    add_revision_option(parser)
    parser.add_argument("target", type=values.path, metavar="TARGET", help="the folder to write")
    _add_format(parser)
    parser.add_argument(
        "--fresh-gates",
        choices=("half", "released"),
        help="add untrained gates to weights without gates: half makes every gate 0.5, released "
        "draws them as the released code does",
    )
    parser.add_argument(
        "--seed",
        type=values.seed,
        default=0,
        metavar="N",
        help="seed of the fresh gates (default: %(default)s)",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace TARGET if it is a checkpoint or empty"
    )


def _add_format(parser: LineParser) -> None:
    parser.add_argument(
        "--to",
        choices=("videonsa", "qwen2_5_vl"),
        default="videonsa",
        help="qwen2_5_vl writes weights without gates as stock Qwen2.5-VL, which transformers and "
        "vLLM load without this package (default: %(default)s)",
    )
    parser.add_argument(
        "--drop-gates",
        action="store_true",
        help="with --to qwen2_5_vl: leave out the gates; the model then attends densely, and its "
        "answers change",
    )
    parser.add_argument(
        "--layout",
        choices=("hub", "transformers"),
        default="hub",
        help="names of the weights: hub is model.layers.* and visual.* as published, transformers "
        "is model.language_model.* and model.visual.* (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="dtype of the weights (default: unchanged)",
    )
    parser.add_argument(
        "--max-shard-size",
        type=values.size,
        default="5GB",
        metavar="SIZE",
        help="largest file of weights, such as 500MB (default: %(default)s)",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        import torch

        from videonsa.models.checkpoints.convert import convert
        from videonsa.models.locate import locate_model

        done = convert(
            locate_model(args.source),
            args.target,
            to=args.to,
            drop_gates=args.drop_gates,
            revision=args.revision,
            layout=args.layout,
            dtype=getattr(torch, args.dtype) if args.dtype else None,
            max_shard_bytes=args.max_shard_size,
            fresh_gates=args.fresh_gates,
            seed=args.seed,
            force=args.force,
            progress=report,
        )
    for note in done.notes:
        report(f"note       {note}")
    if args.json:
        emit_json(
            {
                "target": str(done.folder),
                "layout": args.layout,
                "tensors": done.num_tensors,
                "bytes": done.num_bytes,
                "files": list(done.files),
                "notes": list(done.notes),
            }
        )
    else:
        emit(f"{done.num_tensors} tensors, {done.num_bytes / 1e9:.2f} GB in {done.folder}\n")
    return 0
