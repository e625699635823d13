"""Attention over block lists compiles for GPUs that are not here, in registers, and fits them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from compiling_sparse import TESTED
from test_compiled import SHARED_LIMIT

from videonsa.ops.triton.support import LEAST_SHARED

SPILLS = {
    (80, "vertical-slash, query tiles of 128"): 32,
    (80, "dim 256"): 200,
}
"""Bytes that a thread may spill with Triton 3.6; 0 where unlisted."""
PROGRAMS = {"blocks of 128": 2, "vertical-slash": 2}
"""Of the main kernel on a multiprocessor of an H200: what its settings count on."""


@pytest.mark.slow
def test_launches_fit_every_architecture_and_keep_their_sums_in_registers():
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiling_sparse.py")
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    launches = json.loads(run.stdout)
    assert {x["capability"] for x in launches} == set(TESTED)
    for x in launches:
        # Those of capability 8 are for every GPU that has the kernels.
        limit = LEAST_SHARED if x["capability"] == 80 else SHARED_LIMIT[x["capability"]]
        assert x["shared_bytes"] <= limit // PROGRAMS.get(x["shape"], 1), x
        assert x["spilled_bytes"] <= SPILLS.get((x["capability"], x["shape"]), 0), x
