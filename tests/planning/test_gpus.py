"""Plans for GPUs that are not here."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

import videonsa
from videonsa.errors import UsageError
from videonsa.models.methods import NSA
from videonsa.models.shape import published_shape
from videonsa.ops.triton.support import LEAST_SHARED
from videonsa.planning.devices import machine_elsewhere, runs_by_kernels
from videonsa.planning.gpus import GPUS, RESERVED, find_gpu

MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"
RESOURCES = Path(__file__).parents[1] / "ops/triton/resources.json"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("h200", "h200"),
        ("NVIDIA H100", "h100"),
        ("RTX 4090", "4090"),
        ("rtx4090", "4090"),
        ("NVIDIA GeForce RTX 5090", "5090"),
        ("A100-40GB", "a100-40gb"),
    ],
)
def test_a_gpu_is_found_by_the_names_people_use(name, key):
    assert find_gpu(name) is GPUS[key]


@pytest.mark.parametrize("name", ["", "h2000", "gtx 1080", "rtx", "x" * 400])
def test_another_name_is_refused_with_all_names(name):
    with pytest.raises(UsageError, match=r"want one of b200, h200, .*v100; for another") as raised:
        find_gpu(name)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


def test_every_gpu_has_memory_to_plan_with_and_a_verdict_on_the_kernels():
    for key, gpu in GPUS.items():
        assert machine_elsewhere(key).memory == gpu.memory - RESERVED > 10 * 10**9
        assert (gpu.why_no_kernels() is None) == (gpu.capability >= (8, 0)), key


def test_a_gpu_too_old_for_the_kernels_is_planned_without_them():
    shape = replace(published_shape(MODEL), method=NSA())
    assert runs_by_kernels(shape, machine_elsewhere("a100"))
    assert not runs_by_kernels(shape, machine_elsewhere("v100"))
    reason = find_gpu("v100").why_no_kernels()
    assert reason == "the GPU has compute capability 7.0, at least 8.0 is needed"


def test_fp8_is_planned_for_gpus_that_multiply_it_alone(clip_path):
    plan = videonsa.plan_video(clip_path, MODEL, gpu="4090", weights="fp8")
    assert plan.memory.peak.terms["weights"] < 10e9
    with pytest.raises(UsageError, match=r"fp8' on NVIDIA A100.*capability 8\.0: .*use int8"):
        videonsa.plan_video(clip_path, MODEL, gpu="a100", weights="fp8")


def test_the_forward_pass_takes_no_more_shared_memory_than_is_stated():
    """With the portable settings; other capabilities from 8.0 on compile to the same."""
    launches = json.loads(RESOURCES.read_text())["launches"]
    forward = {
        name: [int(re.search(r"(\d+) shared", line)[1]) for line in lines]
        for name, lines in launches.items()
        if name.startswith("sm_80") and "gradient" not in name
    }
    assert max(max(sizes) for sizes in forward.values()) == LEAST_SHARED


def test_a_time_is_told_for_the_gpu_that_was_measured_alone(clip_path):
    assert videonsa.plan_video(clip_path, MODEL, gpu="h200").time.rates_of == "NVIDIA H200"
    plan = videonsa.plan_video(clip_path, MODEL, gpu="h100")
    assert plan.time is None
    assert plan.fits_memory
    assert plan.machine.memory == 79 * 10**9


@pytest.mark.parametrize("other", [{"device": "cpu"}, {"memory": 10**9}])
def test_a_gpu_and_another_place_are_refused(clip_path, other):
    with pytest.raises(UsageError, match=f"both gpu and {next(iter(other))}: pass one"):
        videonsa.plan_video(clip_path, MODEL, gpu="h100", **other)
