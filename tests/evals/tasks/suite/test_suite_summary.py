"""The numbers of a report, by hand."""

from dataclasses import replace
from typing import Any

import pytest
from suite_runs import ask, small_run

from videonsa.errors import UsageError
from videonsa.evals.tasks.suite.report_markdown import length_text, percent, render_suite
from videonsa.evals.tasks.suite.suite_line import SuiteLine
from videonsa.evals.tasks.suite.suite_summary import position_bin, summarise

PAIR = ["red", "blue"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> SuiteLine:
    return ask(small_run(), tmp_path_factory.mktemp("base"))[0]


def line(
    base: SuiteLine, sample: int, right: bool, answer: str = "red", **changes: Any
) -> SuiteLine:
    values = {"length": 1024, "kind": "order", "condition": "whole", "position": 0.5}
    values |= {"options": PAIR, "oracle": answer, "chosen": answer if right else None}
    return replace(
        base, **(values | {"sample": sample, "right": right, "answer": answer}), **changes
    )


def lines_of(base: SuiteLine) -> list[SuiteLine]:
    """Order: 3 of 4 right at 1K, 1 of 2 at 4K; count: 0 of 1. Blind: 1 of 4."""
    cost = {"prefill_seconds": 2.0, "peak_bytes": 10, "attention_fraction": 0.25}
    dear = {"prefill_seconds": 6.0, "peak_bytes": 30, "attention_fraction": 0.25}
    four = ["1", "2", "3", "4"]
    return [
        line(base, 0, True, **cost),
        line(base, 1, True, **cost),
        line(base, 2, True, answer="blue", **dear),
        line(base, 3, False, **dear),
        replace(line(base, 0, True), length=4096, position=0.99),
        replace(line(base, 1, False), length=4096, position=0.0),
        replace(line(base, 0, False, answer="4"), kind="count", options=four, position=None),
        *(replace(line(base, i, i == 0), condition="blind") for i in range(4)),
    ]


def found(entries: list[dict[str, Any]], **where: Any) -> dict[str, Any]:
    (entry,) = [x for x in entries if all(x[name] == value for name, value in where.items())]
    return entry


def test_scores_are_counted_by_length_kind_and_condition(base) -> None:
    result = summarise(lines_of(base))
    scores = result["scores"]
    order = found(scores, condition="whole", length="1024", kind="order")
    assert (order["right"], order["total"], order["unparsed"]) == (3, 4, 1)
    total = found(scores, condition="whole", length="all", kind="all")
    assert (total["right"], total["total"], total["unparsed"]) == (4, 7, 3)
    assert found(scores, condition="blind", length="all", kind="all")["right"] == 1
    assert (result["main"], result["conditions"]) == ("whole", ["whole", "blind"])
    assert result["videos"] == {"1024": 4, "4096": 2}
    assert result["kinds"] == ["order", "count"]


def test_guessing_is_that_of_the_questions_of_the_main_condition(base) -> None:
    guessing = summarise(lines_of(base))["guessing"]
    # red is right in 3 of 4 at 1K, in 5 of 6 altogether; 4 in the only count.
    assert found(guessing, length="1024", kind="order")["constant"] == 3
    every = found(guessing, length="all", kind="all")
    assert (every["constant"], every["total"], every["oracle"]) == (6, 7, 7)
    assert every["chance"] == pytest.approx((6 * 0.5 + 0.25) / 7)


def test_positions_fall_into_five_parts_and_strewn_evidence_into_none(base) -> None:
    assert [position_bin(x) for x in (0, 0.19, 0.2, 0.5, 0.99, 1)] == [0, 0, 1, 2, 4, 4]
    positions = summarise(lines_of(base))["positions"]
    middle = found(positions, condition="whole", length=1024, bin=2)
    assert (middle["right"], middle["total"]) == (3, 4)
    assert found(positions, condition="whole", length=4096, bin=4)["right"] == 1
    assert sum(x["total"] for x in positions if x["condition"] == "whole") == 6


def test_costs_are_medians_and_memory_the_highest(base) -> None:
    costs = found(summarise(lines_of(base))["costs"], condition="whole", length=1024)
    assert (costs["prefill_seconds"], costs["peak_bytes"]) == (4.0, 30)
    assert (costs["attention_fraction"], costs["encode_seconds"]) == (0.25, None)


def test_the_page_shows_what_was_counted(base) -> None:
    result = summarise(lines_of(base)) | {"run": {"machine": {"device": "cpu"}, "seconds": 7.2}}
    page = render_suite(result, title="## Title", figures=("a-b.png",), note="A note.")
    assert page.startswith("## Title\n")
    assert "![a b](a-b.png)" in page
    assert "A note." in page
    assert f"| all branches | {percent(3, 5)} | {percent(1, 2)} | {percent(4, 7)} | 42.9 |" in page
    assert f"| order | {percent(3, 4)} | {percent(1, 2)} | {percent(4, 6)} |" in page
    assert f"| 1K | - | - | {percent(3, 4)} | - | - |" in page
    assert "| 25.00 | 60.0 (23.1-88.2) | - | 4.00 | - | 0.00 |" in page
    assert "above in no kind; below in no kind" in page
    assert "7 s in all" in page


def test_a_kind_beyond_guessing_is_named(base) -> None:
    lines = [line(base, sample, True) for sample in range(20)]
    lines += [replace(line(base, s, False), kind="compare") for s in range(20)]
    result = summarise(lines) | {"run": {"machine": {}, "seconds": 0.0}}
    page = render_suite(result, title="# T", figures=())
    assert "above in order; below in compare" in page
    assert "The other conditions" not in page


def test_lengths_are_written_short() -> None:
    assert [length_text(n) for n in (1024, 1536, 2**20, "all")] == ["1K", "1.5K", "1M", "all"]


def test_no_lines_or_lines_of_two_runs_make_no_report(base) -> None:
    with pytest.raises(UsageError, match="nothing to report"):
        summarise([])
    with pytest.raises(UsageError, match="lines with difficulty easy, hard"):
        summarise([base, replace(base, difficulty="hard")])
