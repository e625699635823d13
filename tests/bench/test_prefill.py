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
