"""Damaged folders of results: one line that names the file and says what to do."""

import json
import shutil
from pathlib import Path

import pytest
from damage import DAMAGES, damage, to_line, wrong_values
from suite_runs import ask, small_run

from videonsa.errors import UsageError
from videonsa.evals.journal import RUN, SAMPLES
from videonsa.evals.tasks.suite.report_markdown import render_suite
from videonsa.evals.tasks.suite.suite_line import read_suite_lines
from videonsa.evals.tasks.suite.suite_report import write_report
from videonsa.evals.tasks.suite.suite_summary import summarise


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    ask(small_run(samples=1), folder)
    return folder


@pytest.mark.parametrize("name", DAMAGES)
@pytest.mark.parametrize("file", [SAMPLES, RUN])
def test_a_damaged_file_is_one_line_that_names_it(
    results: Path, tmp_path: Path, file: str, name: str
) -> None:
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    damage(folder / file, name)
    try:
        ask(small_run(samples=1), folder)
    except UsageError as error:
        told = str(error)
        assert str(folder) in told
        assert len(told.splitlines()) == 1
        assert "another" in told
    else:
        kept = file == SAMPLES and not name.startswith("a ")  # a line that was cut off
        assert kept or name.startswith(("overwritten", "inserted"))


def test_lines_with_wrong_values_are_refused_or_reported_on(results: Path, tmp_path: Path) -> None:
    line = json.loads((results / SAMPLES).read_text().splitlines()[0])
    spec = ("block_size", "num_selected_blocks", "window_size", "branches", "compressed_mask")
    line |= {"spec": dict.fromkeys(spec, 1), "evidence": line["evidence"][:1]}
    run = json.loads((results / RUN).read_text())
    refused = 0
    for wrong in wrong_values(line):
        (tmp_path / SAMPLES).write_text(to_line(wrong))
        try:
            lines = read_suite_lines(tmp_path)
        except UsageError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path / SAMPLES}, line 1: ")
        else:
            render_suite(summarise(lines) | {"run": run}, title="# A", figures=())
    assert refused > 500


def test_runs_with_wrong_values_are_refused_or_resumed(results: Path, tmp_path: Path) -> None:
    run = json.loads((results / RUN).read_text())
    folder = Path(shutil.copytree(results, tmp_path / "results"))
    for wrong in wrong_values({name: run[name] for name in ("config", "seconds")}):
        (folder / RUN).write_text(to_line(wrong))
        try:
            ask(small_run(samples=1), folder)
        except UsageError as error:
            assert str(folder) in str(error)


def test_a_report_of_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="name the folder of a run"):
        write_report(tmp_path)
