"""Writes the report of a folder: `report.json`, `report.md` and the plots."""

import json
from pathlib import Path
from typing import Any

from videonsa.disk import write_atomic
from videonsa.errors import UsageError
from videonsa.evals.journal import RUN, read_run
from videonsa.evals.tasks.suite.report_markdown import render_suite
from videonsa.evals.tasks.suite.report_plots import draw_plots
from videonsa.evals.tasks.suite.suite_line import read_suite_lines
from videonsa.evals.tasks.suite.suite_summary import summarise

JSON, MARKDOWN = "report.json", "report.md"


def write_report(folder: Path) -> dict[str, Any]:
    """Report on all lines of `samples.jsonl`; what they hold for is in `run.json`.

    Returns:
        What `report.json` holds.

    Raises:
        UsageError: a folder without results, or matplotlib is not installed: the JSON and the
            Markdown without plots are written all the same.
    """
    run = read_run(folder)
    if run is None:
        raise UsageError(f"{folder} has no {RUN}: name the folder of a run")
    result = summarise(read_suite_lines(folder)) | {"run": run}
    write_atomic(folder / JSON, (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    title = "# The suite"
    write_atomic(folder / MARKDOWN, render_suite(result, title=title, figures=()).encode())
    plots = draw_plots(result)
    for name, content in plots.items():
        write_atomic(folder / name, content)
    markdown = render_suite(result, title=title, figures=tuple(plots))
    write_atomic(folder / MARKDOWN, markdown.encode())
    return result
