"""`videonsa train`: a recipe to a trained model."""

import time
from argparse import Namespace
from pathlib import Path

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    add_command,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
)


def add_parser(commands: Commands) -> None:
    """Register the command."""
    parser = add_command(
        commands,
        "train",
        run=run,
        summary="Train a model by a recipe, on one GPU or on several under torchrun. The same "
        "command resumes from the last checkpoint in OUT.",
        examples=(
            "videonsa train tiny --set data.manifest=data --out runs/tiny",
            "videonsa train videonsa-7b --show",
            "torchrun --nproc-per-node 8 -m videonsa train videonsa-7b --set data.manifest=data "
            "--set parallel.sequence=2 --out runs/7b",
            "videonsa train my-recipe.yaml --set optimizer.learning_rate=2e-6 --out runs/mine",
        ),
    )
    parser.add_argument(
        "recipe", metavar="RECIPE", help="name of a recipe, or a YAML file (docs/training.md)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override a setting of the recipe; may be repeated",
    )
    parser.add_argument(
        "--out", type=values.path, metavar="FOLDER", help="folder of the run (default: runs/RECIPE)"
    )
    parser.add_argument(
        "--show", action="store_true", help="print the recipe with every setting, and do not train"
    )


def run(args: Namespace) -> int:
    """Run the command."""
    begun = time.monotonic()  # before half a minute of imports and loading
    with quiet_libraries(debug=args.debug):
        from videonsa.train.reading import read_recipe, recipe_to_yaml

        recipe = read_recipe(args.recipe, settings=args.set)
        if args.show:
            emit(recipe_to_yaml(recipe))
            return 0
        from videonsa.cli.train_evaluation import suite_evaluation
        from videonsa.train.run import train

        out = args.out or Path("runs", recipe.name)
        prepare_folder(out)
        model = train(recipe, out, evaluation=suite_evaluation(recipe, out), begun=begun)
    if model is None:
        report(f"stopped after {recipe.run.seconds:g} s: the same command resumes from {out}")
        if args.json:
            emit_json({"model": None, "recipe": recipe.name})
        return 0
    report(f"written to {out}: log.jsonl, recipe.yaml, run.json and the model")
    if args.json:
        emit_json({"model": str(model), "recipe": recipe.name})
    else:
        emit(f"{model}\n")
    return 0
