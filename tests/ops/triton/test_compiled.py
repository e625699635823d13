"""Every launch with the committed tuning compiles for GPUs that are not here, and fits them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton
from compiling import table

SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
"""Bytes of shared memory that one program may have, by compute capability."""
NO_TMA = "dim 80, sixteen heads a group, packed"
WIDE = "7B, a million rows"
SPILLS = {
    (90, "_selected_kernel"): 104,
    (90, "_partial_kernel"): 72,
    (90, "_partial_kernel", "7B, blocks of 128"): 192,
    (90, "_compressed_kernel"): 104,
    (90, "_importance_kernel", NO_TMA): 16,
    (90, "_window_kernel"): 120,
    (90, "_query_gradient_kernel", NO_TMA): 48,
    (90, "_block_gradient_kernel"): 136,
    (90, "_block_gradient_kernel", WIDE): 328,
    (90, "_compressed_gradient_kernel"): 360,
    (90, "_pair_gradient_kernel", "7B, blocks of 128"): 56,
    (90, "_pair_gradient_kernel", WIDE): 32,
    (80, "_compressed_kernel"): 80,
    (80, "_selected_kernel"): 72,
    (80, "_window_kernel"): 112,
    (80, "_block_gradient_kernel"): 576,
    (80, "_compressed_gradient_kernel"): 496,
    (80, "_pair_gradient_kernel", "7B, blocks of 128"): 360,
    (80, "_query_gradient_kernel"): 208,
    (100, "_selected_kernel"): 64,
    (100, "_window_kernel"): 40,
    (100, "_pair_gradient_kernel", "7B, blocks of 128"): 24,
    **{(capability, "_top_blocks_kernel"): 16 for capability in SHARED_LIMIT},
}
"""Bytes that a thread may spill: what was measured with Triton 3.6 and a little; 0 where unlisted.

On sm_90 registers are limited so that two or three programs fit a multiprocessor. The kernels of
the backward pass keep two sums in registers beside what they multiply. Loops that run only where
something is not finite spill most: where all is, the kernels take as long as without them.
"""
KERNELS = {
    "_block_gradient_kernel",
    "_compressed_gradient_kernel",
    "_compressed_kernel",
    "_importance_kernel",
    "_items_kernel",
    "_list_kernel",
    "_merge_kernel",
    "_pair_gradient_kernel",
    "_pair_sum_kernel",
    "_partial_kernel",
    "_plan_kernel",
    "_pool_kernel",
    "_query_gradient_kernel",
    "_selected_kernel",
    "_sum_kernel",
    "_terms_kernel",
    "_top_blocks_kernel",
    "_top_groups_kernel",
    "_window_kernel",
}


@pytest.fixture(scope="module")
def launches():
    """Compiled in a process of its own: kernels of this one may be interpreted."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    script = Path(__file__).with_name("compiling.py")
    run = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout)


def described(launch):
    return "{kernel} of {shape!r} for sm_{capability}: {registers} registers".format(**launch)


@pytest.mark.slow
def test_every_kernel_is_compiled_for_every_architecture(launches):
    for capability in SHARED_LIMIT:
        found = {x["kernel"] for x in launches if x["capability"] == capability}
        assert found == KERNELS, f"sm_{capability}"


@pytest.mark.slow
def test_shared_memory_is_within_the_limit(launches):
    too_much = [
        f"{described(x)}, {x['shared_bytes']} bytes of shared memory"
        for x in launches
        if x["shared_bytes"] > SHARED_LIMIT[x["capability"]]
    ]
    assert not too_much, "\n".join(too_much)


def allowed_spills(launch):
    key = (launch["capability"], launch["kernel"])
    return SPILLS.get((*key, launch["shape"]), SPILLS.get(key, 0))


@pytest.mark.slow
def test_registers_spills_and_shared_memory_are_those_that_were_measured(launches):
    held = json.loads(Path(__file__).with_name("resources.json").read_text(encoding="utf-8"))
    if triton.__version__ != held["triton"]:
        pytest.skip(f"resources.json is of Triton {held['triton']}, not {triton.__version__}")
    found, wanted = table(launches), held["launches"]
    assert found.keys() == wanted.keys()
    differ = [
        f"{name}: {found[name]}, wanted {needs}"
        for name, needs in wanted.items()
        if found[name] != needs
    ]
    assert not differ, "\n".join(differ)


@pytest.mark.slow
def test_spills_are_within_the_allowance(launches):
    too_much = [
        f"{described(x)}, {x['spilled_bytes']} bytes spilled, {allowed_spills(x)} allowed"
        for x in launches
        if x["spilled_bytes"] > allowed_spills(x)
    ]
    assert not too_much, "\n".join(too_much)
