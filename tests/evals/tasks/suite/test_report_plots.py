"""The plots, and what is said without matplotlib."""

import io
import sys

import pytest
from PIL import Image
from suite_runs import ask, small_run

from videonsa.errors import UsageError
from videonsa.evals.tasks.suite.report_plots import ATTENTION, KIND, LENGTH, POSITION
from videonsa.evals.tasks.suite.suite_report import write_report


def test_plots_are_pictures_and_attention_is_drawn_only_where_it_was_computed(tmp_path) -> None:
    ask(small_run(lengths=(256, 512)), tmp_path)
    write_report(tmp_path)
    for name in (LENGTH, KIND, POSITION):
        with Image.open(io.BytesIO((tmp_path / name).read_bytes())) as picture:
            assert picture.size == (1032, 600)
            assert len(picture.convert("RGB").getcolors(1 << 20)) > 10
        assert f"({name})" in (tmp_path / "report.md").read_text()
    assert not (tmp_path / ATTENTION).exists()


def test_without_matplotlib_the_page_is_written_and_the_extra_named(tmp_path, monkeypatch) -> None:
    ask(small_run(), tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'videonsa\[eval\]'"):
        write_report(tmp_path)
    assert "# The suite" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.json").exists()


def test_a_folder_without_a_run_has_no_report(tmp_path) -> None:
    with pytest.raises(UsageError, match=r"has no run\.json"):
        write_report(tmp_path)
