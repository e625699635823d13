"""EVS, against a version with loops that shares no code with it."""

import pytest
import torch

from videonsa.errors import UsageError
from videonsa.models.methods import evs
from videonsa.models.methods.evs import EVS
from videonsa.models.tower_probe import EncodedFrames


def clip(frames, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(frames * rows * columns, 6, generator=generator)
    return EncodedFrames(features, (frames, rows, columns))


def by_loops(clip, rate):
    frames, rows, columns = clip.grid
    size = rows * columns
    kept = max(size, int(frames * size * (1 - rate)))
    changes = []
    for token, feature in enumerate(clip.features):
        before = clip.features[token - size]
        alike = -1e9 if token < size else float(torch.cosine_similarity(feature, before, dim=0))
        changes.append((alike, token))
    return sorted(token for _, token in sorted(changes)[:kept])


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("at_once", [2**26, 60, 1])
def test_it_keeps_the_tokens_that_changed_most(rate, at_once, monkeypatch):
    monkeypatch.setattr(evs, "VALUES_AT_ONCE", at_once)
    encoded, method = clip(7, 2, 5), EVS(pruning_rate=rate)
    found = method.compress(encoded)
    assert found.places.tolist() == by_loops(encoded, rate)
    assert torch.equal(found.features, encoded.features[found.places])
    assert len(found.places) == method.kept_tokens(7, 10)


def test_the_first_frame_is_whole_and_a_still_one_may_lose_all():
    """The budget is the video's, not a frame's; a cut keeps its frame, scaling changes nothing."""
    encoded = clip(2, 2, 3)
    first, cut = encoded.features.view(2, 6, -1)
    features = torch.cat([first, 2 * first, cut, cut, cut])
    found = EVS(pruning_rate=0.6).compress(EncodedFrames(features, (5, 2, 3)))
    assert found.places.tolist() == [*range(6), *range(12, 18)]
    most = EVS(pruning_rate=0.99).compress(EncodedFrames(features, (5, 2, 3)))
    assert most.places.tolist() == [*range(6)], "a frame's tokens at least"


def test_an_image_stays_whole_and_counts_are_those_of_vllm():
    assert len(EVS(pruning_rate=0.9).compress(clip(1, 3, 4)).places) == 12
    assert EVS(pruning_rate=0.9).kept_tokens(10, 10) == 10
    assert EVS(pruning_rate=0.9).kept_tokens(100, 10) == int(1000 * (1 - 0.9)) == 99


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_rate_outside_its_domain_is_refused(rate):
    with pytest.raises(UsageError, match=f"^pruning_rate={rate}: want 0 or more, and below 1$"):
        EVS(pruning_rate=rate)
