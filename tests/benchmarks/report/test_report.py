"""The committed page of results and its plots."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import __main__ as report
from benchmarks.report.__main__ import figures, main, pictures, render
from videonsa.errors import UsageError

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "benchmarks/results"
ATTENTION = ROOT / "tests/fixtures/bench/attention.json"


def test_the_committed_page_is_what_the_committed_json_gives() -> None:
    assert (ROOT / "docs/results.md").read_text() == render(RESULTS)


def test_the_committed_plots_are_what_the_committed_json_gives() -> None:
    drawn = figures(RESULTS)
    committed = {path.name: path.read_text() for path in (ROOT / "docs").glob("attention*.svg")}
    assert committed == drawn


def test_the_committed_plots_of_accuracy_are_there_where_their_results_are() -> None:
    page = (ROOT / "docs/results.md").read_text()
    drawn = pictures(RESULTS)
    assert set(drawn) == {path.name for path in (ROOT / "docs").glob("*_accuracy.png")}
    for name, picture in drawn.items():
        assert picture[:8] == (ROOT / "docs" / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        assert f"({name})" in page


def folder_of(tmp_path: Path, *machines: str) -> Path:
    folder = tmp_path / "results"
    for machine in machines:
        (folder / machine).mkdir(parents=True)
        (folder / machine / "attention.json").write_bytes(ATTENTION.read_bytes())
    return folder


def test_page_and_plot_are_written_whole_beside_each_other(tmp_path, monkeypatch) -> None:
    folder, out = folder_of(tmp_path, "gpu"), tmp_path / "docs" / "results.md"
    out.parent.mkdir()
    monkeypatch.setattr("sys.argv", ["report", str(folder), "--out", str(out)])
    report.main()
    assert out.read_text() == render(folder)
    assert "![Time against length](attention.svg)" in out.read_text()
    assert (out.parent / "attention.svg").read_text() == figures(folder)["attention.svg"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["attention.svg", "results.md"]


def test_every_machine_has_its_own_plot(tmp_path) -> None:
    folder = folder_of(tmp_path, "gpu-a", "gpu-b")
    assert list(figures(folder)) == ["attention.svg", "attention-gpu-b.svg"]
    assert "(attention-gpu-b.svg)" in render(folder)


def test_other_passes_stand_behind_the_forward_pass_with_plots_of_their_own(tmp_path) -> None:
    folder = folder_of(tmp_path, "gpu")
    result = json.loads(ATTENTION.read_text())
    for which in ("both", "backward"):
        path = folder / f"gpu/attention_{which}.json"
        path.write_text(json.dumps(result | {"pass": which}))
    names = ["attention.svg", "attention_backward.svg", "attention_both.svg"]
    assert list(figures(folder)) == names
    page = render(folder)
    heads = [line for line in page.splitlines() if line.startswith("## Attention")]
    passes = ["", ": backward pass", ": forward and backward pass"]
    assert heads == [f"## Attention on Made-up GPU{x}" for x in passes]
    assert all(f"({name})" in page for name in names)
    (folder / "gpu/attention.json").unlink()
    assert list(figures(folder)) == names[1:]


def test_without_an_attention_benchmark_there_is_neither_section_nor_plot(tmp_path) -> None:
    assert figures(tmp_path) == {}
    assert "Attention" not in render(tmp_path)


def test_a_benchmark_of_one_length_has_a_table_and_no_plot(tmp_path) -> None:
    folder = folder_of(tmp_path, "gpu")
    path = folder / "gpu/attention.json"
    result = json.loads(path.read_text())
    result["shapes"] = result["shapes"][:1]
    path.write_text(json.dumps(result))
    assert figures(folder) == {}
    page = render(folder)
    assert "![" not in page
    assert "### 7b-16k" in page


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kinds": 3}', "[" * 9_999])
def test_a_result_that_is_none_is_one_line(tmp_path, capsys, content):
    (tmp_path / "gpu").mkdir()
    for name in ("embedded", "study", "attention"):
        path = tmp_path / f"gpu/{name}.json"
        path.write_text(content)
        assert main([str(tmp_path), "--out", str(tmp_path / "results.md")]) == 2
        told = capsys.readouterr().err
        assert told.startswith(f"report: {path} ")
        assert told.count("\n") == 1
        assert told.endswith("measure it again\n")
        assert not (tmp_path / "results.md").exists()
        path.unlink()


def test_results_with_uncommitted_changes_are_refused(tmp_path) -> None:
    folder = folder_of(tmp_path, "gpu")
    path = folder / "gpu/attention.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"machine": result["machine"] | {"dirty": True}}))
    for make in (render, figures):
        with pytest.raises(UsageError, match=r"attention\.json was measured with uncommitted"):
            make(folder)


def test_readme_states_the_speeds_of_the_committed_json() -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks/headline.py", "--check"], check=True)
