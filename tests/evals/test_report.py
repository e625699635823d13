"""The committed page of results."""

from pathlib import Path

from videonsa.evals.report import render

ROOT = Path(__file__).parents[2]


def test_the_committed_page_is_what_the_committed_json_gives() -> None:
    assert (ROOT / "docs/results.md").read_text() == render(ROOT / "benchmarks/results")
