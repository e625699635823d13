"""What `bench prefill` gives, stage by stage, and what it makes of errors."""

from dataclasses import replace

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
