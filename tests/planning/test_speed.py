"""Operations against the counts of the design, and times against what was measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from videonsa.models.methods import NSA, Dense, ReleasedNSA
from videonsa.models.shape import published_shape
from videonsa.planning.memory import Workload
from videonsa.planning.speed import (
    MEASURED,
    attention_seconds,
    estimate_time,
    linear_operations,
    rates_for,
    tower_operations,
)

LAYERS = 28
H200 = MEASURED["NVIDIA H200"]
RESULTS = Path(__file__).parents[2] / "benchmarks/results/nvidia-h200"
PREFILL = {"full": "prefill.json", "fp8": "prefill_fp8.json"}


def work(tokens, method=None, model="Qwen/Qwen2.5-VL-7B-Instruct", **changes):
    shape = replace(published_shape(model), method=method or NSA(), **changes)
    return Workload(
        shape=shape,
        grid=(tokens // 64, 16, 16),
        prompt_tokens=tokens,
        max_new_tokens=64,
        kernels=True,
    )


def test_operations_of_the_7b_model_at_128k_tokens():
    whole = work(131_072)
    assert linear_operations(whole) == pytest.approx(1.71e15, rel=0.01)
    assert linear_operations(work(131_072, gates=True)) == pytest.approx(1.81e15, rel=0.01)
    assert Dense().operations(whole.attention) / LAYERS == pytest.approx(123e12, rel=0.01)
    assert NSA().operations(whole.attention) / LAYERS == pytest.approx(7.2e12, rel=0.01)
    assert tower_operations(whole) == pytest.approx(0.68e15, rel=0.03)


@pytest.mark.parametrize(
    ("tokens", "milliseconds"), [(16_384, 3.59), (32_768, 8.55), (65_536, 18.4), (131_072, 41.0)]
)
def test_attention_takes_what_was_measured_of_a_layer(tokens, milliseconds):
    """`videonsa bench attention` on an H200, rows that do not agree."""
    seconds = attention_seconds(work(tokens), H200) / LAYERS
    assert 1e3 * seconds == pytest.approx(milliseconds, rel=0.15)


def test_dense_attention_takes_what_was_measured_of_a_layer():
    seconds = attention_seconds(work(131_072, Dense()), H200) / LAYERS
    assert 1e3 * seconds == pytest.approx(368.7, rel=0.02)


def test_the_whole_is_the_sum_of_its_stages():
    time = estimate_time(work(65_536), H200)
    assert time.total == pytest.approx(time.vision_tower + time.prefill + 63 * time.next_token)
    dense = estimate_time(work(65_536, Dense()), H200)
    assert dense.prefill > 2 * time.prefill
    assert dense.vision_tower == time.vision_tower


def test_a_gpu_that_was_not_measured_has_the_rates_of_one_that_is_named():
    assert rates_for("NVIDIA H200").gpu == "NVIDIA H200"
    assert rates_for("Some other GPU").gpu == "NVIDIA H200"


def test_the_released_preset_takes_what_was_measured_of_a_layer():
    long = work(131_072, ReleasedNSA(), "Enxin/VideoNSA")
    linear = linear_operations(long) / H200.linear
    seconds = (estimate_time(long, H200).prefill - linear) / LAYERS
    assert seconds == pytest.approx(0.137)


def measured_seconds(weights, stage):
    result = json.loads((RESULTS / PREFILL[weights]).read_text())
    (entry,) = (x for x in result["lengths"] if x["frame"] == [224, 224])
    return {x["name"]: x["ms"] / 1e3 for x in entry["stages"]}[stage]


@pytest.mark.parametrize("weights", PREFILL)
def test_tower_and_prefill_take_what_was_measured_of_a_model(weights):
    """`videonsa bench prefill` on an H200, rows that do not agree and rows that do."""
    time = estimate_time(work(131_072, gates=True, weights=weights), H200)
    assert time.vision_tower == pytest.approx(measured_seconds(weights, "vision tower"), rel=0.1)
    for regime in ("random", "coherent"):
        measured = measured_seconds(weights, f"prefill, nsa, {regime}")
        assert time.prefill == pytest.approx(measured, rel=0.1)


def test_weights_in_fp8_make_tower_and_products_faster_and_leave_attention():
    full, fp8 = (estimate_time(work(131_072, weights=weights), H200) for weights in ("full", "fp8"))
    products = linear_operations(work(131_072))
    saved = products / H200.linear - products / H200.linear_fp8
    assert full.prefill - fp8.prefill == pytest.approx(saved)
    assert fp8.vision_tower < full.vision_tower
