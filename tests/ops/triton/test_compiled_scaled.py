"""The kernel that quantises rows compiles for every GPU with float8, in registers alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiling_scaled import CAPABILITIES, WIDTHS

MOST_REGISTERS = 128
"""That a thread of sixteen warps can have."""


@pytest.fixture(scope="module")
def launches():
    """Compiled in a process of its own: kernels of this one may be interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiling_scaled.py")
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


@pytest.mark.slow
def test_rows_are_held_in_registers(launches):
    assert len(launches) == len(CAPABILITIES) * len(WIDTHS) * 2
    for launch in launches:
        assert launch["spilled_bytes"] == 0, launch
        assert launch["registers"] <= MOST_REGISTERS, launch
