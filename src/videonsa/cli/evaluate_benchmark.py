"""`videonsa eval benchmark`: a benchmark of the field by a frozen recipe, with both scorings."""

from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    add_model_options,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
)
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.evals.field.recipe import Recipe
    from videonsa.evals.field.scored_run import FieldScores


def add_parser(what: Commands) -> None:
    """Register the command."""
    parser = add_command(
        what,
        "benchmark",
        run=run,
        summary="Ask a model a benchmark of the field through lmms-eval 0.7.3, by a frozen recipe, "
        "and score it by the rules of the paper's time and by those of 0.7.3. Goes on where an "
        "earlier run into the same folder stopped. To share the samples among GPUs: accelerate "
        "launch -m videonsa eval benchmark ...",
        examples=(
            "videonsa eval benchmark --list",
            "videonsa eval benchmark mlvu_test --model Enxin/VideoNSA --out mlvu",
            "videonsa eval benchmark videomme --recipe long --method dense --out videomme-dense",
            "videonsa eval benchmark tomato --set max_frames=64 --limit 100 --out tomato",
            "videonsa eval benchmark mlvu_test --score-only --out mlvu",
            "videonsa eval benchmark mlvu_test --fixture tiny",
        ),
    )
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="the benchmark, by its name in lmms-eval"
    )
    parser.add_argument("--list", action="store_true", help="list benchmarks and their recipes")
    add_model_options(parser)
    _add_recipe_options(parser)
    _add_run_options(parser)


def _add_recipe_options(parser: LineParser) -> None:
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="paper, qwen2.5-vl, long, or a YAML file (default: paper where it has the benchmark, "
        "else qwen2.5-vl)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a setting of the recipe, such as max_frames=64; it stands in the run as a "
        "difference (may be given again)",
    )


def _add_run_options(parser: LineParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU)")
    parser.add_argument(
        "--limit", type=values.integer, metavar="N", help="the first N documents of each task"
    )
    parser.add_argument(
        "--batch",
        type=values.integer,
        default=1,
        metavar="N",
        help="questions about the same video that are answered side by side (default: 1)",
    )
    parser.add_argument(
        "--retry-failed", action="store_true", help="ask again what failed in an earlier run"
    )
    parser.add_argument(
        "--score-only",
        action="store_true",
        help="score what --out holds, and load no model; without lmms-eval by the paper's rules "
        "alone",
    )
    parser.add_argument(
        "--fixture",
        type=values.path,
        metavar="FOLDER",
        help="write a few rows of the benchmark with drawn videos, and print how to ask them "
        "without a network",
    )
    parser.add_argument(
        "--out",
        type=values.path,
        default=Path("videonsa-benchmark"),
        metavar="FOLDER",
        help="where samples-N.jsonl, run.json, scores.json and report.md go (default: %(default)s)",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    from videonsa.evals.field.recipe import changed_recipe, read_recipe

    if args.list:
        return _list(args)
    if args.score_only:
        return _score(args)
    if args.name is None:
        raise UsageError("no benchmark was named: want a NAME of 'videonsa eval benchmark --list'")
    published = read_recipe(args.name, name=args.recipe)
    recipe = changed_recipe(published, args.set)
    if args.fixture is not None:
        return _write_fixture(args)
    for name, value in (("--limit", args.limit), ("--batch", args.batch)):
        if value is not None and value < 1:
            raise UsageError(f"{name} {value}: want 1 or more")
    return _ask(args, published, recipe)


def _ask(args: Namespace, published: "Recipe", recipe: "Recipe") -> int:
    from videonsa.evals.field.tasks import check_task

    for task in recipe.tasks:
        check_task(task)
    from videonsa.evals.field.run import RunRequest, run_benchmark

    prepare_folder(args.out)
    request = RunRequest(
        published=published,
        recipe=recipe,
        model=args.model,
        folder=args.out,
        base=args.base,
        revision=args.revision,
        method=args.method,
        dtype=args.dtype,
        device=args.device,
        limit=args.limit,
        batch_size=args.batch,
        retry_failed=args.retry_failed,
    )
    with quiet_libraries(debug=args.debug):
        scores = run_benchmark(request, debug=args.debug)
    if scores is not None:  # in the first process
        report(f"recipe     {published.title}")
        _tell(args, scores)
    return 0


def _score(args: Namespace) -> int:
    from videonsa.evals.field.run import score_folder
    from videonsa.evals.field.scored_run import read_config

    if args.set or args.recipe is not None:
        raise UsageError("--score-only scores a run as it was asked: leave out --recipe and --set")
    benchmark = read_config(args.out).benchmark
    if args.name not in (None, benchmark):
        raise UsageError(
            f"{args.out} holds a run of {benchmark}, not of {args.name}: name its folder with --out"
        )
    with quiet_libraries(debug=args.debug):
        scores = score_folder(args.out, debug=args.debug)
    _tell(args, scores)
    return 0


def _tell(args: Namespace, scores: "FieldScores") -> None:
    from videonsa.evals.field.benchmark_report import accuracy_cell

    if args.json:
        emit_json({name: value for name, value in asdict(scores).items() if name != "lines"})
    else:
        emit(f"{scores.samples} samples, {scores.failed} of them failed\n")
        both = zip(scores.totals.answered, scores.totals.all, strict=True)
        for one, every in both:
            told = f"{accuracy_cell(one)} over answered, {accuracy_cell(every)} over all"
            emit(f"{one.scoring:<11}{told}\n")
    for note in scores.notes:
        report(note)
    report(f"written to {args.out}: report.md, scores.json, run.json, samples")


def _list(args: Namespace) -> int:
    from videonsa.evals.field.recipe import PREFERRED, packaged_recipes

    recipes = packaged_recipes()
    if args.json:
        named = {(one.name, one.benchmark) for one in recipes}
        taken = {
            benchmark: next(name for name in PREFERRED if (name, benchmark) in named)
            for _, benchmark in named
        }
        listed = [
            {**asdict(one), "digest": one.digest, "preferred": one.name == taken[one.benchmark]}
            for one in recipes
        ]
        emit_json({"recipes": listed})
        return 0
    form = "{:<22}{:<16}{:<18}{:>4} {:>10} {:>14} {:>12} {:>10}  {}\n"
    head = ("benchmark", "recipe", "hash", "fps", "frames", "tokens/frame", "video tokens")
    emit(form.format(*head, "new tokens", "scoring"))
    for one in sorted(recipes, key=lambda one: one.benchmark):
        span = f"{one.min_pixels // 784}-{one.tokens_a_frame}"
        emit(
            form.format(
                one.benchmark,
                f"{one.name} v{one.version}",
                one.digest,
                f"{one.fps:g}",
                f"{one.min_frames}-{one.max_frames}",
                span,
                one.max_video_tokens or "-",
                one.max_new_tokens,
                one.scoring,
            )
        )
    for name, summary in {one.name: one.summary for one in recipes}.items():
        emit(f"\n{name}: {summary}")
    emit("\n")
    return 0


def _write_fixture(args: Namespace) -> int:
    from videonsa.evals.field.fixtures.hub_cache import offline_variables, write_fixtures

    prepare_folder(args.fixture)
    write_fixtures(args.fixture, [args.name])
    variables = offline_variables(args.fixture)
    stated = " ".join(f"{name}={value}" for name, value in variables.items())
    if args.json:
        emit_json({"variables": variables})
    else:
        emit(f"{stated} videonsa eval benchmark {args.name} --out FOLDER\n")
    return 0
