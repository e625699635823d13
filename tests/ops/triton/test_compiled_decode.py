"""Every launch of a decode step compiles for GPUs that are not here, and fits them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_compiled import SHARED_LIMIT

from videonsa.ops.triton.support import LEAST_SHARED

HERE = Path(__file__).parent
KERNELS = {"_gated_kernel", "_products_kernel", "_split_kernel", "_split_sum_kernel"}


@pytest.mark.slow
def test_every_launch_compiles_and_fits_every_architecture():
    """Compiled in a process of its own: kernels of this one may be interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, str(HERE / "compiling_decode.py")]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    launches = json.loads(run.stdout)
    for capability in SHARED_LIMIT:
        assert {x["kernel"] for x in launches if x["capability"] == capability} == KERNELS
    for launch in launches:
        # The portable settings are for every GPU that has the kernels.
        limit = SHARED_LIMIT[90] if launch["capability"] == 90 else LEAST_SHARED
        assert launch["shared_bytes"] <= limit, launch
