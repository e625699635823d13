"""Videos as rows: whole frames, and what the regimes make of them."""

import pytest
import torch

from videonsa.bench.clip_rows import clip_embeddings, clip_of_tokens


def test_clip_has_the_tokens_asked_for_in_whole_frames():
    clip = clip_of_tokens(100, (56, 84), torch.device("cpu"))
    assert clip.grid == (17, 4, 6)
    ids = clip.inputs["input_ids"][0]
    assert (ids == 11).sum() == 17 * 6
    assert ids[13] == 12  # the text ends where the video begins
    assert len(ids) == 64 + 17 * 6


@pytest.mark.parametrize(("regime", "least", "most"), [("random", -0.2, 0.2), ("coherent", 0.9, 1)])
def test_rows_of_a_frame_are_alike_in_the_coherent_regime_alone(regime, least, most):
    clip = clip_of_tokens(12, (56, 84), torch.device("cpu"))
    rows = clip_embeddings(clip, 256, regime, like=torch.zeros(1))[0, 14:26].unflatten(0, (2, 6))
    likeness = torch.cosine_similarity(rows[:, 0], rows[:, 1], dim=-1)
    assert ((likeness >= least) & (likeness <= most)).all()
