"""`videonsa eval`: its subcommands; `synthetic` is here."""

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from videonsa.cli import evaluate_benchmark, evaluate_show, evaluate_table, values
from videonsa.cli.common import (
    DEFAULT_MODEL,
    Commands,
    LineParser,
    add_command,
    add_model_options,
    emit,
    emit_json,
    parse_tokens,
    prepare_folder,
    quiet_libraries,
    report,
)
from videonsa.disk import sole_writer
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.evals.tasks.suite.answerers import Answerer
    from videonsa.evals.tasks.suite.suite_run import SuiteRun

ORACLE, CONSTANT = _NO_MODELS = ("oracle", "constant")
"""In place of a model: reads the script; says the first option always."""
_SMALL_FRAME, _FRAME = 112, 224


def add_parser(commands: Commands) -> None:
    """Register the command and what it can evaluate on."""
    summary = "Score a model on questions about videos."
    parser = commands.add_parser("eval", help=summary, description=summary)
    what: Commands = parser.add_subparsers(title="what to do", metavar="WHAT", required=True)
    synthetic = add_command(
        what,
        "synthetic",
        run=run,
        summary="Score a model on rendered long videos whose every fact is known: accuracy "
        "against length, position of the evidence and attention computed, compared with guessing "
        "and with the same model without a video. Every answer is kept in OUT/samples.jsonl; the "
        "same command resumes a run, also with more lengths, samples or conditions.",
        examples=(
            "videonsa eval synthetic --lengths 1k,4k --samples 5 --out results",
            "videonsa eval synthetic --lengths 4k,16k,64k,128k --model Enxin/VideoNSA --out out",
            "videonsa eval synthetic --conditions whole,no-selected,none,blind --out results",
            "videonsa eval synthetic --positions 0.1,0.5,0.9 --kinds needle,number --out results",
            "videonsa eval synthetic --suite 2 --lengths 16,1k,4k --out results",
            "videonsa eval synthetic --method nsa:num_selected_blocks=16 --out results",
            "videonsa eval synthetic --model oracle --out check",
        ),
    )
    add_model_options(synthetic)
    _add_options(synthetic)
    evaluate_benchmark.add_parser(what)
    evaluate_show.add_parser(what)
    evaluate_table.add_parser(what)


def _add_options(parser: LineParser) -> None:
    _add_questions(parser)
    _add_ways_to_ask(parser)
    _add_run(parser)


def _add_questions(parser: LineParser) -> None:
    parser.add_argument(
        "--suite",
        type=values.integer,
        default=1,
        metavar="N",
        help="1: nine kinds, one question each; 2: stills and videos, 16 kinds, many questions a "
        "video, free answers and the likeliest option both scored (default: %(default)s)",
    )
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: a GPU)")
    parser.add_argument(
        "--lengths",
        default="4k,16k",
        metavar="A,B",
        help="tokens of a video; k is 1,024, m 1,048,576 (default: %(default)s)",
    )
    parser.add_argument(
        "--samples",
        type=values.integer,
        default=20,
        metavar="N",
        help="videos of each length (default: %(default)s)",
    )
    parser.add_argument(
        "--conditions",
        type=_names,
        default=["whole", "blind"],
        metavar="A,B",
        help="no-compressed, no-selected, no-window: that branch ablated; none: all branches "
        "ablated; grey: every frame grey; blind: the question without a video; whole: nothing is "
        "changed (default: whole,blind)",
    )
    parser.add_argument(
        "--kinds",
        type=_names,
        metavar="A,B",
        help="kinds of question (default: all; of suite 2 any, which draws those of each video)",
    )
    parser.add_argument(
        "--difficulty", default="easy", help="easy, medium, hard (default: %(default)s)"
    )
    parser.add_argument(
        "--positions",
        default="even",
        metavar="A,B",
        help="where the evidence lies, from 0 to 1; videos take these in turn (default: even, "
        "which draws uniformly)",
    )


def _add_ways_to_ask(parser: LineParser) -> None:
    parser.add_argument(
        "--frame-size",
        type=values.integer,
        metavar="N",
        help=f"pixels a side (default: {_SMALL_FRAME} for the embedded model, else {_FRAME})",
    )
    parser.add_argument(
        "--style",
        choices=("free", "choice", "likeliest"),
        help="free: the reply has to be the answer; choice: the options are listed below the "
        "question; likeliest: the option with the highest probability counts, and no reply is "
        "written (default: free for the embedded model, which was trained that way, and for suite "
        "2, else choice)",
    )
    parser.add_argument(
        "--time-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="multiplies the seconds that the model is told: 0.25 gives a video of four times the "
        "training length the position ids of training (default: 1)",
    )


def _add_run(parser: LineParser) -> None:
    parser.add_argument(
        "--split",
        choices=("test", "train"),
        default="test",
        help="of the suite (default: %(default)s)",
    )
    parser.add_argument(
        "--seed",
        type=values.integer,
        default=0,
        metavar="N",
        help="number of the first video (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=values.path,
        default=Path("videonsa-eval"),
        metavar="FOLDER",
        help="where samples.jsonl, run.json, report.json, report.md and the plots go "
        "(default: %(default)s)",
    )


def _names(text: str) -> list[str]:
    return text.split(",")


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.evals.runner import run_task
        from videonsa.evals.tasks.suite.suite_report import write_report
        from videonsa.evals.tasks.suite.suite_task import SuiteTask

        request = _request(args)  # what cannot be asked is told before weights are loaded
        prepare_folder(args.out)
        with sole_writer(args.out, work="eval synthetic"):
            asked = _without_model(request) or _with_model(args, request)
            task = SuiteTask(asked.request, asked.answerer)
            run_task(task, args.out, machine=asked.machine)
            result = write_report(args.out)
    report(f"written to {args.out}: report.md, report.json, plots, samples.jsonl")
    if args.json:
        emit_json(result)
    else:
        emit(_text(result))
    return 0


class _Asked(NamedTuple):
    request: "SuiteRun"
    answerer: "Answerer"
    machine: dict[str, Any]


def _request(args: Namespace) -> "SuiteRun":
    """The options as a run; attention, dtype and device are those of no model yet."""
    from videonsa.evals.tasks.suite.suite_run import SuiteRun, check_conditions
    from videonsa.models.methods import SPARSE
    from videonsa.models.methods.registry import attending_class, read_method
    from videonsa.rendered.suite import KINDS
    from videonsa.rendered.suite2 import ANY

    named = read_method(args.method or SPARSE)
    embedded = args.model in (DEFAULT_MODEL, *_NO_MODELS)
    size = _SMALL_FRAME if embedded else _FRAME
    asked = SuiteRun(
        model=args.model if args.revision is None else f"{args.model}@{args.revision}",
        lengths=tuple(parse_tokens(text, "--lengths") for text in args.lengths.split(",")),
        samples=args.samples,
        conditions=tuple(args.conditions),
        kinds=tuple(args.kinds or (KINDS if args.suite == 1 else ANY)),
        difficulty=args.difficulty,
        positions=() if args.positions == "even" else _positions(args.positions),
        frame_size=size if args.frame_size is None else args.frame_size,
        style=args.style or ("free" if embedded or args.suite == 2 else "choice"),
        attention="+".join(one.name for one in named),
        nsa=tuple(named[0].options.items()) if named[0].name == SPARSE else (),
        split=args.split,
        seed=args.seed,
        time_scale=args.time_scale,
        suite=args.suite,
    )
    check_conditions(asked.conditions, attending_class(named))
    return asked


def _positions(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(
            f"--positions {text!r}: want numbers from 0 to 1 such as 0.1,0.5,0.9, or even"
        ) from error


def _without_model(request: "SuiteRun") -> _Asked | None:
    """The answerers that read no video; None for a model."""
    import torch

    from videonsa.evals.tasks.suite.answerers import ConstantAnswerer, OracleAnswerer
    from videonsa.machine import evaluation_facts

    answerers: dict[str, Answerer] = {ORACLE: OracleAnswerer(), CONSTANT: ConstantAnswerer()}
    if request.model not in answerers:
        return None
    return _Asked(request, answerers[request.model], evaluation_facts(torch.device("cpu")))


def _with_model(args: Namespace, request: "SuiteRun") -> _Asked:
    """Load the model, and complete the run by what it says."""
    from videonsa.evals.tasks.suite.video_answerer import ModelAnswerer
    from videonsa.inference.demonstration import DEMONSTRATION
    from videonsa.inference.engine import load
    from videonsa.machine import evaluation_facts

    qa = load(
        args.model,
        base=args.base,
        revision=args.revision,
        method=args.method,
        device=args.device,
        dtype=args.dtype,
    )
    for note in ((DEMONSTRATION,) if qa.demonstration else ()) + qa.notes:
        report(note)
    longest = max(request.lengths)
    if longest > qa.shape.context:
        report(
            f"{longest} tokens are more than the context of {qa.shape.context} that the model "
            "states: read the results as such"
        )
    request = replace(
        request,
        attention=qa.model.method.full_name,
        dtype=str(qa.model.dtype).removeprefix("torch."),
        device=qa.model.device.type,
    )
    answerer = ModelAnswerer(qa, request)
    return _Asked(request, answerer, evaluation_facts(qa.model.device))


def _text(result: dict[str, Any]) -> str:
    """Accuracy by length, a line a condition."""
    from videonsa.evals.tasks.suite.report_markdown import length_text, percent

    lengths = [*map(str, result["lengths"]), "all"]
    head = ["", *(f"{length_text(length):<20}" for length in lengths)]
    lines = ["".join([f"{head[0]:<14}", *head[1:]])]
    scores = {(x["condition"], x["length"]): x for x in result["scores"] if x["kind"] == "all"}
    for name in result["conditions"]:
        found = [scores.get((name, length)) for length in lengths]
        cells = ["-" if x is None else percent(x["right"], x["total"]) for x in found]
        lines.append("".join([f"{name:<14}", *(f"{cell:<20}" for cell in cells)]))
        if "likeliest" in scores[name, "all"]:
            cells = ["-" if x is None else percent(x["likeliest"], x["total"]) for x in found]
            lines.append("".join([f"{'  likeliest':<14}", *(f"{cell:<20}" for cell in cells)]))
    guesses = {x["length"]: x for x in result["guessing"] if x["kind"] == "all"}
    for name in ("constant", "oracle"):
        row = [percent(guesses[length][name], guesses[length]["total"]) for length in lengths]
        lines.append("".join([f"{name:<14}", *(f"{cell:<20}" for cell in row)]))
    return "".join(line.rstrip() + "\n" for line in lines)
