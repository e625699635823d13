"""`videonsa eval table`: the paper against runs of benchmarks, cell by cell."""

from argparse import Namespace
from dataclasses import asdict

from videonsa.cli import values
from videonsa.cli.common import Commands, add_command, emit, emit_json, report, write_output
from videonsa.errors import UsageError


def add_parser(what: Commands) -> None:
    """Register the command."""
    parser = add_command(
        what,
        "table",
        run=run,
        summary="Compare runs with the paper, cell by cell: its values and what contradicts them "
        "inside the paper, ours under both scorings with intervals, and the settings that differ.",
        examples=(
            "videonsa eval table results",
            "videonsa eval table nsa dense fastv --csv table.csv > table.md",
        ),
    )
    parser.add_argument(
        "folders",
        type=values.path,
        nargs="+",
        metavar="RUN",
        help="the --out of a run of 'videonsa eval benchmark'",
    )
    parser.add_argument(
        "--csv",
        type=values.path,
        metavar="FILE.csv",
        help="also write a line for each run and each value of the paper for it",
    )


def run(args: Namespace) -> int:
    """Run the command."""
    from videonsa.evals.field.table import csv_table, markdown_table, read_cell

    if args.csv is not None and args.csv.suffix.lower() != ".csv":
        raise UsageError(f"--csv {args.csv}: want the name of a file that ends with .csv")
    cells = [read_cell(folder) for folder in args.folders]
    if args.csv is not None:
        write_output(args.csv, csv_table(cells).encode())
        report(f"csv        {args.csv}")
    if args.json:
        emit_json({"cells": [asdict(cell) for cell in cells]})
    else:
        emit(markdown_table(cells))
    return 0
