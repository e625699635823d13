"""The paper's values, and runs beside them, from results made by hand."""

import csv
import io
from dataclasses import replace

import pytest

from videonsa.evals.field.paper import PaperTask, the_paper
from videonsa.evals.field.scored_run import NOT_COMPARABLE
from videonsa.evals.field.scoring.totals import Total
from videonsa.evals.field.table import (
    OurResult,
    compare,
    csv_table,
    markdown_table,
)

TABLE_5 = the_paper().tasks["timescope"]
OURS = OurResult(
    run="out/nsa",
    task="timescope",
    model="Enxin/VideoNSA",
    demonstration=False,
    method="nsa",
    parameters={},
    recipe="paper",
    settings=TABLE_5,
    samples=100,
    failed=2,
    answered=(
        Total(scoring="paper", samples=98, value=81.5),
        Total(scoring="lmms-0.7.3", samples=90, value=80.0, low=71.1, high=86.7),
    ),
    all=(
        Total(scoring="paper", samples=100, value=79.87),
        Total(scoring="lmms-0.7.3", samples=92, value=78.26),
    ),
    median_tokens=65_000,
    most_tokens=65_600,
)


def test_each_cell_is_in_a_table_and_each_contradiction_at_cells_that_exist():
    paper = the_paper()
    cells = {(row.table, row.row, task) for row in paper.rows for task in row.values}
    assert len({(row.table, row.row) for row in paper.rows}) == len(paper.rows)
    assert {task for _, _, task in cells} == set(paper.tasks)
    for one in paper.contradictions:
        for table, row in one.cells:
            assert any((table, row, task) in cells for task in one.tasks), (table, row)


def test_table_1_is_the_papers():
    mean = {row.row: sum(row.values.values()) for row in the_paper().rows if row.table == "1"}
    assert len(mean) == 16
    assert mean["VideoNSA"] == pytest.approx(60.0 + 51.8 + 83.7 + 44.4 + 26.5 + 36.1)
    assert mean["Qwen2.5-VL-7B"] == pytest.approx(58.7 + 51.2 + 81.0 + 40.7 + 22.6 + 29.7)
    assert mean["FastV"] == pytest.approx(57.3 + 41.8 + 46.5 + 35.6 + 21.6 + 32.0)


def test_all_values_for_a_method_stand_beside_ours_with_what_contradicts_them():
    cell = compare(OURS)
    assert [(one.table, one.value) for one in cell.paper] == [
        *[("1", 83.7), ("3", 82.7)],
        *[("27", 78.5), ("27", 81.7), ("27", 83.7)],
    ]
    assert "40 blocks and a window of 1,024" in cell.paper[0].contradictions[0]
    assert cell.not_comparable is None and cell.differences == ()
    assert cell.claimed_tokens == 131_072


@pytest.mark.parametrize(
    ("changes", "row", "differences"),
    [
        ({"method": "dense"}, "Dense-NSA", ()),
        ({"method": "dense", "model": "/models/Qwen2.5-VL-7B-Instruct/"}, "Qwen2.5-VL-7B", ()),
        ({"method": "fastv"}, "FastV", ("weights VideoNSA (paper: Qwen2.5-VL-7B)",)),
        ({"parameters": {"branches": ["window"]}}, "SWA", ()),
        ({"parameters": {"window_size": 64}}, "VideoNSA", ("window_size 64 (paper: 256)",)),
        ({"settings": replace(TABLE_5, frames=256)}, "VideoNSA", ("frames 256 (paper: 2048)",)),
        ({"changed": ("limit 100",)}, "VideoNSA", ("limit 100",)),
    ],
)
def test_the_row_is_that_of_weights_and_method_and_other_settings_are_named(
    changes, row, differences
):
    cell = compare(replace(OURS, **changes))
    assert cell.paper[0].row == row
    assert cell.differences == differences


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model": "embedded", "demonstration": True}, "embedded demonstration model"),
        ({"model": "me/tuned"}, "the weights of me/tuned are not the paper's"),
    ],
)
def test_other_weights_are_loudly_not_comparable(changes, why):
    cell = compare(replace(OURS, **changes))
    assert why in (cell.not_comparable or "")
    text = markdown_table([cell])
    assert text.splitlines()[2] == f"**{NOT_COMPARABLE}: out/nsa: {cell.not_comparable}.**"
    assert text.count(NOT_COMPARABLE) == 2


def test_markdown_has_both_scorings_the_papers_first_and_numbers_contradictions():
    text = markdown_table([compare(OURS)])
    head, _, row = [line for line in text.splitlines() if line.startswith("|")][:3]
    assert head.index("ours, paper scoring") < head.index("ours, lmms-0.7.3 scoring")
    assert (
        "| 81.5; over all 79.9 | 80.0 (71.1-86.7), 90 scored; over all 78.3 | 100 (2 failed) | "
        "65,000, 65,600 (131,072) |"
    ) in row
    assert "83.7 (1: VideoNSA) [1]<br>82.7 (3: VideoNSA, one configuration) [2]" in row
    assert "\n1. Table 1's 83.7 is 40 blocks" in text
    assert "| 1 | LLaVA-Video-7B | 74.1 |" in text and "InternVL2.5-8B | 55.8" in text
    assert "128K tokens | 81.0 |" in text and "64K tokens | 81.13 |" in text


def test_csv_has_a_line_for_each_value_of_the_paper():
    other = replace(OURS, task="videomme", settings=PaperTask(name="Video-MME"), run="a,b|c")
    rows = list(csv.DictReader(io.StringIO(csv_table([compare(OURS), compare(other)]))))
    assert [row["paper_value"] for row in rows] == ["83.7", "82.7", "78.5", "81.7", "83.7", ""]
    assert {row["paper_score"] for row in rows} == {"81.5"}
    assert rows[0]["lmms-0.7.3_low"] == "71.1" and rows[0]["failed"] == "2"
    assert rows[-1]["run"] == "a,b|c" and rows[-1]["claimed_tokens"] == ""
    assert "a,b\\|c" in markdown_table([compare(other)])
