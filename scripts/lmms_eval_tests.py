"""Runs tests_lmms/ and keeps what came of it; scripts/lmms_eval_tests.sh calls it.

Nothing is skipped here: a test that was skipped makes the run fail.
"""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from videonsa.disk import write_atomic
from videonsa.machine import evaluation_facts, package_versions

RESULT = Path(__file__).parents[1] / "benchmarks/results/cpu/lmms_eval_tests.json"


class Outcomes:
    """Counts what became of each test."""

    def __init__(self) -> None:
        self.by_file: dict[str, Counter[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test is passed at its call; it may fail or be skipped before or after it."""
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.split("::")[0]
            self.by_file.setdefault(name, Counter())[report.outcome] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A whole file can be skipped too."""
        if report.skipped:
            self.by_file.setdefault(report.nodeid, Counter())[report.outcome] += 1

    def num_skipped(self) -> int:
        """Tests and whole files that did not run."""
        return sum(found["skipped"] for found in self.by_file.values())


def main(arguments: list[str]) -> int:
    """Run; keep the result where all tests ran."""
    outcomes, begin = Outcomes(), time.monotonic()
    status = int(pytest.main(["-q", *(arguments or ["tests_lmms"])], plugins=[outcomes]))
    if status == 0 and outcomes.num_skipped():
        print(f"{outcomes.num_skipped()} skipped: all have to run here", file=sys.stderr)
        status = 1
    if not arguments:
        facts = evaluation_facts(torch.device("cpu"))
        content = {
            "machine": facts | package_versions("lmms_eval", "datasets", "accelerate", "av"),
            "seconds": round(time.monotonic() - begin),
            "exit_status": status,
            "tests": {name: dict(found) for name, found in sorted(outcomes.by_file.items())},
        }
        write_atomic(RESULT, json.dumps(content, indent=2) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
