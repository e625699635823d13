"""What `bench prefill` makes of clips, regimes and errors."""

import pytest
import torch

from videonsa.bench import prefill
from videonsa.bench.prefill import PrefillRequest

REQUEST = PrefillRequest(model="tiny", tokens=(64,), repeats=1, device=torch.device("cpu"))


def test_clip_has_the_tokens_asked_for_in_whole_frames():
    clip = prefill._clip(100, (56, 84), torch.device("cpu"))
    assert clip.grid == (17, 4, 6)
    ids = clip.inputs["input_ids"][0]
    assert (ids == 11).sum() == 17 * 6
    assert ids[13] == 12  # the text ends where the video begins
    assert len(ids) == 64 + 17 * 6


@pytest.mark.parametrize(("regime", "least", "most"), [("random", -0.2, 0.2), ("coherent", 0.9, 1)])
def test_rows_of_a_frame_are_alike_in_the_coherent_regime_alone(regime, least, most):
    clip = prefill._clip(12, (56, 84), torch.device("cpu"))
    rows = prefill._embeddings(clip, 256, regime, like=torch.zeros(1))[0, 14:26].unflatten(
        0, (2, 6)
    )
    likeness = torch.cosine_similarity(rows[:, 0], rows[:, 1], dim=-1)
    assert ((likeness >= least) & (likeness <= most)).all()


def test_a_stage_that_fails_has_its_line_and_no_number():
    def broken():
        raise RuntimeError("no such kernel")

    stage = prefill._stage("tower", broken, REQUEST)
    assert stage["error"] == "RuntimeError: no such kernel"
    assert stage["ms"] is None
    assert stage["times_ms"] == []
