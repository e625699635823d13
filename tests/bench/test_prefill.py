"""What `bench prefill` makes of errors."""

import torch

from videonsa.bench import prefill
from videonsa.bench.prefill import PrefillRequest

REQUEST = PrefillRequest(model="tiny", tokens=(64,), repeats=1, device=torch.device("cpu"))


def test_a_stage_that_fails_has_its_line_and_no_number():
    def broken():
        raise RuntimeError("no such kernel")

    stage = prefill._stage("tower", broken, REQUEST)
    assert stage["error"] == "RuntimeError: no such kernel"
    assert stage["ms"] is None
    assert stage["times_ms"] == []
