"""Small runs of the suite, shared by the tests of this room."""

from pathlib import Path
from typing import Any

from videonsa.evals.tasks.suite.answerers import ConstantAnswerer, OracleAnswerer
from videonsa.evals.tasks.suite.config import SuiteRun
from videonsa.evals.tasks.suite.journal import Line
from videonsa.evals.tasks.suite.runner import run_suite

FEW = ("needle", "order", "direction")
"""Kinds whose evidence fits 32 frames: 256 tokens."""
MACHINE = {"device": "test"}


def small_run(**options: Any) -> SuiteRun:
    values = {"model": "oracle", "lengths": (256,), "samples": 2, "kinds": FEW}
    return SuiteRun(**(values | options))


def ask(run: SuiteRun, folder: Path, answerer: Any = None, spec: Any = None) -> list[Line]:
    folder.mkdir(parents=True, exist_ok=True)
    chosen = answerer or {"oracle": OracleAnswerer, "constant": ConstantAnswerer}[run.model]()
    return run_suite(run, chosen, folder, spec=spec, machine=MACHINE, progress=False)
