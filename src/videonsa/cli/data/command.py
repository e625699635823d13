"""`videonsa data`: its subcommands; `build` is here."""

import sys
from argparse import ArgumentTypeError, Namespace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from videonsa.cli import values
from videonsa.cli.common import (
    Commands,
    LineParser,
    add_command,
    emit,
    emit_json,
    prepare_folder,
    quiet_libraries,
    report,
)
from videonsa.cli.data import check as data_check
from videonsa.cli.data import show as data_show
from videonsa.machine import usable_cores

if TYPE_CHECKING:
    from videonsa.data.build_report import Report


def add_parser(commands: Commands) -> None:
    """Register the command and what it can do."""
    parser = commands.add_parser(
        "data",
        help="Build, check and show training data.",
        description="Build, check and show training data.",
    )
    what: Commands = parser.add_subparsers(title="what to do", metavar="WHAT", required=True)
    build = add_command(
        what,
        "build",
        run=run,
        summary="Read conversations about videos, keep those that the paper's rule keeps, and "
        "write a manifest of them and a report. A build that was killed resumes when it is run "
        "again, with the same result.",
        examples=(
            "videonsa data build ./LLaVA-Video-178K --model Qwen/Qwen2.5-VL-7B-Instruct --out data",
            "videonsa data build a.jsonl b.json --media-root /videos --model embedded --out data",
            "videonsa data build synthetic:count=200,frames=128 --min-frames 0 --model embedded "
            "--out data",
        ),
    )
    build.add_argument(
        "sources",
        nargs="+",
        type=values.name,
        metavar="SOURCE",
        help="a folder or file of LLaVA-Video-178K, ms-swift JSONL or Hugging Face messages (the "
        "format is detected); or rendered videos of the suite's training split: "
        "synthetic:count=N,frames=N[,size=N][,difficulty=WORD][,kinds=A+B][,first=N][,suite=2]; or "
        "clips like those of the embedded model: clips:count=N,patches=N[,first=N]",
    )
    _add_options(build)
    data_check.add_parser(what)
    data_show.add_parser(what)


def _add_options(parser: LineParser) -> None:
    parser.add_argument(
        "--out",
        type=values.path,
        required=True,
        metavar="DIR",
        help="the folder to write to",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="ID_OR_PATH",
        help="the model whose tokenizer counts tokens: a folder, a Hugging Face id or 'embedded'",
    )
    parser.add_argument(
        "--media-root",
        type=values.path,
        action="append",
        default=[],
        metavar="DIR",
        help="where relative paths are looked up first; may be repeated (then: the folder of the "
        "annotations, then its parent)",
    )
    _add_rule(parser)
    probing = parser.add_argument_group("how files are probed")
    probing.add_argument(
        "--workers",
        type=values.whole_number(1, values.MOST_WORKERS),
        metavar="N",
        help="processes (default: one per core)",
    )
    probing.add_argument(
        "--timeout",
        type=values.positive_number,
        default=30.0,
        metavar="S",
        help="seconds that the header of a file may take (default: %(default)g)",
    )


def _add_rule(parser: LineParser) -> None:
    rule = parser.add_argument_group("which rows are kept (the defaults are the paper's)")
    rule.add_argument(
        "--fps", type=float, metavar="N", help="frames sampled per second (default: 4)"
    )
    for option, text in (
        ("min-frames", "least number of sampled frames of a row (default: 350)"),
        ("max-frames", "largest number of sampled frames of a row (default: 550)"),
        ("min-pixels", "pixels that smaller frames are enlarged to (default: 3136)"),
        ("max-pixels", "most pixels of a frame (default: 50176)"),
    ):
        rule.add_argument(f"--{option}", type=values.integer, metavar="N", help=text)
    rule.add_argument(
        "--max-tokens",
        type=_number_or_none,
        metavar="N",
        help="most tokens of a row, or 'none' (default: 36864)",
    )
    rule.add_argument(
        "--long",
        choices=("cut", "drop"),
        help="cut longer rows at turns, if the first exchange fits, or drop them (default: cut)",
    )
    rule.add_argument("--system", metavar="TEXT", help="the system message of rows that have none")


def _number_or_none(text: str) -> int | Literal["none"]:
    if text == "none":
        return "none"
    try:
        return values.whole_number(1)(text)
    except ArgumentTypeError as error:
        raise ArgumentTypeError(f"{error}, or none") from error


def run(args: Namespace) -> int:
    """Run the command."""
    with quiet_libraries(debug=args.debug):
        from videonsa.cli.data.tokenizer import load_counting_tokenizer
        from videonsa.data.build import BuildOptions, build, open_sources
        from videonsa.data.filter import FilterOptions

        rule = FilterOptions(**_rule(args))
        sources = open_sources(args.sources, roots=args.media_root)
        prepare_folder(args.out)
        tokenizer, tokenizer_hash = load_counting_tokenizer(args.model)
        for note in sources.notes:
            report(f"note       {note}")
        done = build(
            sources.sources,
            args.out,
            options=BuildOptions(
                filter=rule,
                model=args.model,
                tokenizer_hash=tokenizer_hash,
                workers=args.workers or usable_cores(),
                timeout=args.timeout,
                progress=sys.stderr.isatty(),
            ),
            tokenizer=tokenizer,
            notes=sources.notes,
        )
    if args.json:
        emit_json(done.summary() | {"folder": str(args.out)})
    else:
        emit(_text(done, args.out))
    return 0


def _rule(args: Namespace) -> dict[str, Any]:
    """The options of the filter that were given."""
    names = ("fps", "min_frames", "max_frames", "min_pixels", "max_pixels", "long", "system")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if args.max_tokens is not None:
        given["max_tokens"] = None if args.max_tokens == "none" else args.max_tokens
    return given


def _text(done: "Report", folder: Path) -> str:
    lines = [f"kept       {done.kept:,} of {done.rows:,} rows"]
    if done.text_only:
        lines.append(f"text       {done.text_only:,} of them show nothing: the rule is for videos")
    lines += [f"dropped    {count:,} {reason}" for reason, count in done.dropped.items()]
    if done.unread:
        fields = [f"{name} ({rows:,} rows)" for name, rows in islice(done.unread.items(), 8)]
        lines.append(f"not read   {', '.join(fields)}{' ...' if len(done.unread) > 8 else ''}")
    lines += [f"note       {note}" for note in done.notes]
    lines.append(f"files      {folder}: manifest.parquet, dropped.parquet, report.md, ...")
    return "\n".join(lines) + "\n"
