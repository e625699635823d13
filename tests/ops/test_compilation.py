"""Triton's hooks count what is compiled, and kernels compile ahead of their use."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from videonsa.ops.compilation import watch_compilation

SCRIPT = Path(__file__).parent / "triton/compiling_ahead.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Told by a process of its own: kernels of this one may be interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))
    run = subprocess.run(
        [sys.executable, str(SCRIPT)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def test_a_kernel_is_counted_when_it_is_compiled_and_not_when_it_is_found(found):
    assert found["first"] == 1
    assert found["same process"] == 1
    assert found["next process"] == 1, "it was on the disk"
    assert found["notices"] == [1]
    assert 0 < found["seconds"] < 60


def test_the_hook_is_there_inside_only_and_others_are_told_too(found):
    assert found["restored"]
    assert found["outside"] == 1
    assert found["others"][:3] == [False, True, False]


def test_kernels_compile_side_by_side_and_are_then_ready(found):
    assert found["together"] == ["done", 1], "one of the two was on the disk"
    assert found["afterwards"] == 1


def test_a_kernel_that_does_not_compile_leaves_nothing_behind(found):
    assert found["after one that does not compile"] == "done"


def test_without_a_gpu_nothing_is_watched(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with watch_compilation() as watch:
        pass
    assert watch.compiled.count == 0
