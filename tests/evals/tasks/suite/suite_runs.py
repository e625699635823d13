"""Small runs of the suite, shared by the tests of this room."""

from pathlib import Path
from typing import Any

from videonsa.evals.runner import run_task
from videonsa.evals.tasks.suite.answerers import ConstantAnswerer, OracleAnswerer
from videonsa.evals.tasks.suite.suite_line import SuiteLine
from videonsa.evals.tasks.suite.suite_run import SuiteRun
from videonsa.evals.tasks.suite.suite_task import SuiteTask

FEW = ("needle", "order", "direction")
"""Kinds whose evidence fits 32 frames: 256 tokens."""
MACHINE = {"device": "test"}


def small_run(**options: Any) -> SuiteRun:
    values = {"model": "oracle", "lengths": (256,), "samples": 2, "kinds": FEW}
    return SuiteRun(**(values | options))


def ask(run: SuiteRun, folder: Path, answerer: Any = None) -> list[SuiteLine]:
    folder.mkdir(parents=True, exist_ok=True)
    chosen = answerer or {"oracle": OracleAnswerer, "constant": ConstantAnswerer}[run.model]()
    return run_task(SuiteTask(run, chosen), folder, machine=MACHINE, progress=False)
