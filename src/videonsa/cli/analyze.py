"""`videonsa analyze`: the findings of the paper, measured on any model; `report` is here too."""

from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from videonsa.analysis.registry import FINDINGS, FindingEntry, finding_from, options_from
from videonsa.cli import values
from videonsa.cli.answering import add_answering_options, load_model
from videonsa.cli.common import (
    DEFAULT_MODEL,
    Commands,
    LineParser,
    add_command,
    add_sampling_options,
    emit,
    emit_json,
    parse_tokens,
    prepare_folder,
    quiet_libraries,
    report,
    sampling_options,
    video_argument,
    write_output,
)
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.analysis.asked import Asked
    from videonsa.analysis.finding import Finding

_PAGE = "report.html"
_ONLY_OF_SUITES = ("kinds", "videos", "length", "frame_size", "difficulty", "seed")


def add_parser(commands: Commands) -> None:
    """Register the command."""
    summary = "Measure the findings of the paper on a model: figures, and JSON beside them."
    parser = commands.add_parser("analyze", help=summary, description=summary)
    what: Commands = parser.add_subparsers(title="what to measure", metavar="WHAT", required=True)
    for name, entry in FINDINGS.items():
        _add_finding(what, name, entry)
    page = add_command(
        what,
        "report",
        run=run_report,
        summary="Put all findings of a folder on one HTML page, which needs no network.",
        examples=("videonsa analyze report findings",),
    )
    page.add_argument("folder", type=values.path, metavar="FOLDER", help="with NAME.json files")


def _add_finding(what: Commands, name: str, entry: FindingEntry) -> None:
    of_videos = (
        f"videonsa analyze {name} --model RUN --suite 2 --videos 20 --length 4k",
        f'videonsa analyze {name} clip.mp4 "What flashed?"',
    )
    parser = add_command(
        what,
        name,
        run=partial(run, name=name),
        summary=f"{entry.what[0].upper()}{entry.what[1:]}. NAME.json and NAME.png go to --out.",
        examples=(f"videonsa analyze {name}", *(of_videos if entry.asks else ())),
    )
    if entry.asks:
        _add_asked_options(parser, entry)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of this finding; the values of a list with / between; docs/findings.md "
        "lists them",
    )
    parser.add_argument(
        "--out",
        type=values.path,
        default=Path("videonsa-findings"),
        metavar="FOLDER",
        help="where the files go (default: %(default)s)",
    )
    add_answering_options(parser)


def _add_asked_options(parser: LineParser, entry: FindingEntry) -> None:
    parser.add_argument(
        "video",
        nargs="?",
        type=values.name,
        metavar="VIDEO",
        help="one of your own (default: --suite)",
    )
    parser.add_argument("question", nargs="?", metavar="QUESTION", help="what to ask about it")
    _add_suite_options(parser, entry)
    add_sampling_options(parser)


def _add_suite_options(parser: LineParser, entry: FindingEntry) -> None:
    parser.add_argument(
        "--suite",
        choices=("clips", "1", "2"),
        help="rendered videos with known answers: the suites, or clips, which the embedded model "
        "was trained on (default: clips for the embedded model, else 2)",
    )
    parser.add_argument(
        "--kinds",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="kinds of question, each with videos of its own",
    )
    parser.add_argument(
        "--videos",
        type=values.whole_number(1),
        metavar="N",
        help=f"of each kind (default: {entry.videos}; of clips, which show all kinds, four times "
        "that)",
    )
    parser.add_argument(
        "--length",
        metavar="N",
        help=f"tokens of a video; k is 1,024 (default: {entry.tokens}; of clips "
        f"{entry.clip_tokens})",
    )
    parser.add_argument(
        "--frame-size",
        type=values.whole_number(1),
        metavar="N",
        help="pixels a side (default: 112 for the embedded model, else 224)",
    )
    parser.add_argument("--difficulty", choices=("easy", "medium", "hard"), help="default: easy")
    parser.add_argument(
        "--seed", type=values.whole_number(0), metavar="N", help="of the first video (default: 0)"
    )


def run(args: Namespace, *, name: str) -> int:
    """Measure one finding."""
    from videonsa.analysis.look import LIGHT, picture

    with quiet_libraries(debug=args.debug):
        kind = FINDINGS[name].load()
        asked = _asked(args, FINDINGS[name])  # what cannot be asked is told before weights load
        options = options_from(kind.options, args.set)
        prepare_folder(args.out)
        found = kind.measure(load_model(args), asked, options, progress=report)
        write_output(args.out / f"{name}.png", picture(found, LIGHT))
        found.write(args.out)
    _tell(args, found)
    return 0


def _tell(args: Namespace, found: "Finding") -> None:
    for note in found.facts.notes:
        report(f"note       {note}")
    report(f"written to {args.out}: {found.name}.json and {found.name}.png")
    if args.json:
        emit_json(found.to_json())
    else:
        emit("".join(f"{sentence}\n" for sentence in found.sentences()))


def _asked(args: Namespace, entry: FindingEntry) -> "Asked":
    from videonsa.analysis.asked import CLIPS, AskedFile, AskedNothing, AskedSuite
    from videonsa.video.chat import check_question

    if not entry.asks:
        return AskedNothing()
    given = [name for name in _ONLY_OF_SUITES if getattr(args, name) is not None]
    if args.video is not None:
        if args.question is None or args.suite is not None or given:
            raise UsageError(
                f"a video of your own, {args.video}: want a QUESTION after it, and no --suite, "
                f"--{', --'.join(_ONLY_OF_SUITES).replace('_', '-')}"
            )
        check_question(args.question)
        return AskedFile(
            video=video_argument(args),
            question=args.question,
            changes=sampling_options(args),  # type: ignore[arg-type]
        )
    if sampling_options(args):
        raise UsageError("options of sampling without a VIDEO: want --length, --frame-size")
    embedded = args.model == DEFAULT_MODEL
    suite = args.suite or (CLIPS if embedded else "2")
    is_clips = suite == CLIPS
    tokens = entry.clip_tokens if is_clips else entry.tokens
    return AskedSuite(
        suite=suite,
        kinds=args.kinds or (),
        videos_per_task=args.videos or entry.videos * (4 if is_clips else 1),
        tokens=tokens if args.length is None else parse_tokens(args.length, "--length"),
        frame_size=args.frame_size or (112 if embedded or is_clips else 224),
        difficulty=args.difficulty or "easy",
        seed=args.seed or 0,
    )


def run_report(args: Namespace) -> int:
    """Put the findings of a folder on one page."""
    from videonsa.analysis.finding import findings_in
    from videonsa.analysis.report_page import report_page

    found = [finding_from(content) for content in findings_in(args.folder)]
    if not found:
        raise UsageError(
            f"{args.folder} has no findings: run 'videonsa analyze NAME --out {args.folder}' first"
        )
    path = args.folder / _PAGE
    write_output(path, report_page(found).encode())
    if args.json:
        emit_json({"page": str(path), "findings": [one.name for one in found]})
    else:
        emit(f"{path}\n")
    return 0
