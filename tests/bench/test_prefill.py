"""What `bench prefill` gives, stage by stage, and what it makes of errors."""

from dataclasses import replace

import pytest
import torch

from videonsa.bench import prefill
from videonsa.bench.prefill import PrefillRequest, bench_prefill
from videonsa.bench.video_reading import ReadingRequest

REQUEST = PrefillRequest(model="tiny", tokens=(64,), repeats=1, device=torch.device("cpu"))


def test_a_stage_that_fails_has_its_line_and_no_number():
    def broken():
        raise RuntimeError("no such kernel")

    stage = prefill._stage("tower", broken, REQUEST)
    assert stage["error"] == "RuntimeError: no such kernel"
    assert stage["ms"] is None
    assert stage["times_ms"] == []


def test_a_result_is_given_after_every_stage(clip_path):
    reading = ReadingRequest(video=clip_path, workers=1, max_pixels=56 * 56)
    request = replace(REQUEST, tokens=(16,), frames=((56, 56),), baseline=True, reading=reading)
    counts = [
        len(result["lengths"][0]["stages"]) + len((result["video"] or {"stages": []})["stages"])
        for result in bench_prefill(request, progress=lambda _: None)
    ]
    assert counts == list(range(1, len(counts) + 1))
    assert counts[-1] == 9 + 7


def test_weights_in_fp8_are_measured_and_predicted_as_such():
    request = replace(REQUEST, tokens=(16,), frames=((56, 56),))
    full, fp8 = (
        list(bench_prefill(replace(request, weights=kind), progress=lambda _: None))[-1]
        for kind in ("full", "fp8")
    )
    assert (full["weights"], fp8["weights"]) == ("full", "fp8")
    assert fp8["weights_gb"] < 0.7 * full["weights_gb"]
    assert [stage["error"] for stage in fp8["lengths"][0]["stages"]] == [None] * 7


def test_further_methods_are_measured_with_their_share_of_attention():
    methods = ("tri_shape:n_init=8,n_local=16", "visionzip:ratio=0.5")
    request = replace(REQUEST, frames=((112, 112),), regimes=("coherent",), methods=methods)
    *_, result = bench_prefill(request, progress=lambda _: None)
    stages = {stage["name"]: stage for stage in result["lengths"][0]["stages"]}
    assert [stage["error"] for stage in stages.values()] == [None] * len(stages)
    assert list(stages)[-5:] == [
        "prefill, tri_shape:n_init=8,n_local=16, coherent",
        "next token after prefill, tri_shape:n_init=8,n_local=16, coherent",
        "vision tower, visionzip:ratio=0.5",
        "prefill, visionzip:ratio=0.5",
        "next token after prefill, visionzip:ratio=0.5",
    ]
    shares = {name: stage.get("attention_share") for name, stage in stages.items()}
    assert shares["prefill, dense"] == 1 and shares["vision tower"] is None
    assert shares["next token after prefill, visionzip:ratio=0.5"] is None
    pairs = [n * (n + 1) / 2 for n in (64 + 64, 32 + 64)]  # video and text; half of the video
    assert shares["prefill, visionzip:ratio=0.5"] == pytest.approx(pairs[1] / pairs[0])


def test_a_method_that_fails_has_its_line():
    request = replace(REQUEST, frames=((56, 56),), regimes=("random",), methods=("fastv:layer=9",))
    *_, result = bench_prefill(request, progress=lambda _: None)
    *_, last = result["lengths"][0]["stages"]
    assert last["name"] == "prefill, fastv:layer=9" and "layers: want" in last["error"]
