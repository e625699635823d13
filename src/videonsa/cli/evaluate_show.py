"""`videonsa eval show`: samples of a run that is done, printed or as a page."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    add_command,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
    write_output,
)
from videonsa.errors import UsageError

if TYPE_CHECKING:
    from videonsa.evals.field.shown import ShownSample
    from videonsa.evals.field.shown_run import ShownRun

_MOST, _MOST_OF_A_PAGE = 20, 200
"""Samples that are shown where --limit does not say."""


def add_parser(what: Commands) -> None:
    """Register the command."""
    show = add_command(
        what,
        "show",
        run=run,
        summary="Find and print samples of a run: what was asked, with which frames, what was "
        "answered, and what each scoring made of it; with --page, as one page that needs no other "
        "file.",
        examples=(
            "videonsa eval show results --failed",
            "videonsa eval show results --sample mlvu_dev/17",
            "videonsa eval show results --task tomato --disagree --limit 5",
            "videonsa eval show results --wrong --grep bicycle --page wrong.html",
        ),
    )
    show.add_argument("folder", type=values.path, metavar="RUN", help="the --out of a run")
    _add_choice(show)
    show.add_argument(
        "--page", type=values.path, metavar="FILE.html", help="write a page instead of printing"
    )
    show.add_argument(
        "--videos",
        type=values.path,
        metavar="FOLDER",
        help="where the page finds videos by their names (default: where they were)",
    )


def _add_choice(show: ArgumentParser) -> None:
    """Which samples."""
    show.add_argument(
        "--sample", metavar="KEY", help="the sample of this key, or of this number in every task"
    )
    show.add_argument("--task", metavar="NAME", help="samples of this task")
    show.add_argument(
        "--grep",
        metavar="TEXT",
        help="samples with this text in prompt, answer, truth, failure or the name of a video, in "
        "any case",
    )
    show.add_argument("--failed", action="store_true", help="samples that could not be asked")
    show.add_argument(
        "--wrong",
        action="store_true",
        help="samples whose answer gets less than the full score by a scoring; with --failed or "
        "--disagree, those too",
    )
    show.add_argument(
        "--disagree", action="store_true", help="samples that the scorings score differently"
    )
    show.add_argument(
        "--limit",
        type=values.integer,
        metavar="N",
        help=f"show at most so many (default: {_MOST}, on a page {_MOST_OF_A_PAGE})",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    from videonsa.evals.field.shown import Wanted, counted, sample_text
    from videonsa.evals.field.shown_run import read_shown_run

    if args.limit is not None and args.limit < 1:
        raise UsageError(f"--limit {args.limit}: want 1 or more")
    _check_page(args)
    run = read_shown_run(args.folder)
    wanted = Wanted(
        key=args.sample,
        task=args.task,
        text=args.grep,
        failed=args.failed,
        wrong=args.wrong,
        disagree=args.disagree,
    )
    found = [sample for sample in run.samples if wanted.takes(sample)]
    shown = found[: args.limit or (_MOST if args.page is None else _MOST_OF_A_PAGE)]
    counts = ", ".join(f"{count} {verdict}" for verdict, count in counted(found).items())
    told = f"{len(found)} of {len(run.samples)} samples match{f' ({counts})' if counts else ''}"
    if len(shown) < len(found):
        told += f"; the first {len(shown)} are shown: --limit shows more"
    if args.page is not None:
        _write_page(args, run, shown, told)
    else:
        if args.json:
            emit_json({"matched": len(found), "samples": [asdict(sample) for sample in shown]})
        else:
            emit("\n".join(map(sample_text, shown)))
        for note in run.notes:
            report(note)
    report(told)
    return 0


def _check_page(args: Namespace) -> None:
    page = args.page
    if page is None:
        return
    if args.json:
        raise UsageError("--page and --json given together: give one of them")
    if page.is_dir() or page.suffix.lower() != ".html":
        raise UsageError(f"--page {page}: want the name of a file that ends with .html")
    prepare_folder(page.parent)


def _write_page(args: Namespace, run: "ShownRun", shown: "list[ShownSample]", told: str) -> None:
    from videonsa.evals.field.frame_pictures import Pictures
    from videonsa.evals.field.samples_page import samples_page

    pictures = Pictures(folder=args.videos)
    with quiet_libraries(debug=args.debug):
        pictures.add(shown)
    notes = [*run.notes, f"{told}."]
    if pictures.of:
        notes.append(pictures.sentence())
        report(pictures.sentence())
    text = samples_page(shown, title=run.title, notes=notes, pictures=pictures)
    write_output(args.page, text.encode())
    report(f"page       {args.page}")
