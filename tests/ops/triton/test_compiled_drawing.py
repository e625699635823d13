"""The kernel that draws frames compiles for every GPU, in registers, and fuses nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

from compiling_drawing import CAPABILITIES, WHAT

MOST_REGISTERS = 64
"""With them four programs of eight warps, or a thousand threads, fit a multiprocessor."""


def test_products_and_sums_are_rounded_one_by_one_in_registers():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiling_drawing.py")
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    launches = json.loads(run.stdout)
    assert len(launches) == len(CAPABILITIES) * len(WHAT)
    for launch in launches:
        assert not launch["fused"], "numpy fuses nothing"
        assert launch["spilled_bytes"] == launch["shared_bytes"] == 0, launch
        assert launch["registers"] <= MOST_REGISTERS, launch
