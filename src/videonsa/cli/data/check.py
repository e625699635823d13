"""`videonsa data check`: whether training data still is what was built."""

import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from videonsa.cli import values
from videonsa.cli.common import Commands, add_command, emit, emit_json, quiet_libraries

if TYPE_CHECKING:
    from videonsa.video.sampling import SamplingSpec

EXIT_PROBLEMS = 2


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "check",
        run=run,
        summary="Check a manifest: its rows, whether their files are there and unchanged, and, for "
        "1000 rows, whether sampling and token counts still agree with it. One line per problem; "
        "exit status 2 if there is any.",
        examples=("videonsa data check ./data", "videonsa data check ./data --all"),
    )
    parser.add_argument("folder", type=values.path, metavar="DIR", help="the folder of a build")
    parser.add_argument(
        "--all", action="store_true", help="probe and count all rows, not 1000 of them"
    )
    parser.add_argument(
        "--model",
        metavar="ID_OR_PATH",
        help="model with its tokenizer (default: the one of the build)",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from tqdm import tqdm

        from videonsa.cli.data.tokenizer import load_counting_tokenizer
        from videonsa.data.check import check_manifest
        from videonsa.data.manifest import read_manifest

        manifest = read_manifest(args.folder)
        model = args.model or manifest.facts.model
        tokenizer, tokenizer_hash = load_counting_tokenizer(model)
        found = check_manifest(
            manifest,
            tokenizer=tokenizer,
            tokenizer_hash=tokenizer_hash,
            model=model,
            sampling=_sampling_of(model),
            all_rows=args.all,
        )
        problems = []
        with tqdm(
            total=len(manifest),
            desc="checking",
            unit="row",
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
        ) as bar:
            for problem in found:
                if problem is None:
                    bar.update()
                    continue
                problems.append(problem)
                if not args.json:
                    emit(f"{problem}\n")
    if args.json:
        emit_json({"rows": len(manifest), "problems": [str(problem) for problem in problems]})
    else:
        emit(f"{len(manifest):,} rows, {len(problems):,} problems\n")
    return EXIT_PROBLEMS if problems else 0


def _sampling_of(model: str) -> "SamplingSpec | None":
    """How a model samples; None of a folder that has a tokenizer alone."""
    from videonsa.models.checkpoints.hub import model_folder
    from videonsa.models.locate import locate_model
    from videonsa.models.shape import load_shape
    from videonsa.planning.defaults import sampling_of_shape

    has_config = (model_folder(locate_model(model)) / "config.json").exists()
    return sampling_of_shape(load_shape(model)) if has_config else None
