"""Merging into the nearest token, against loops over tokens."""

import pytest
import torch

from videonsa.ops import token_merging
from videonsa.ops.token_merging import merge_into_nearest


def by_loops(features, kept):
    frames = []
    for tokens, places in zip(features.tolist(), kept.tolist(), strict=True):
        tokens = [torch.tensor(token) for token in tokens]
        groups = {place: [tokens[place]] for place in places}
        for place, token in enumerate(tokens):
            if place not in groups:
                likeness = [torch.cosine_similarity(token, tokens[one], dim=0) for one in places]
                groups[places[int(torch.stack(likeness).argmax())]].append(token)
        frames.append(torch.stack([sum(group) / len(group) for group in groups.values()]))
    return torch.stack(frames)


@pytest.mark.parametrize("at_once", [2**24, 40, 1], ids=["all", "some frames", "row by row"])
def test_tokens_that_leave_are_averaged_into_the_most_similar_one(monkeypatch, at_once):
    monkeypatch.setattr(token_merging, "SIMILARITIES_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(3, 9, 5, generator=generator)
    kept = torch.stack([torch.randperm(9, generator=generator)[:3].sort().values for _ in range(3)])
    found = merge_into_nearest(features, kept)
    torch.testing.assert_close(found, by_loops(features, kept))


def test_no_more_similarities_are_there_than_allowed(monkeypatch):
    largest = 0
    equal = torch.Tensor.argmax

    def seen(x, *args):
        nonlocal largest
        largest = max(largest, x.numel())
        return equal(x, *args)

    monkeypatch.setattr(token_merging, "SIMILARITIES_AT_ONCE", 64)
    monkeypatch.setattr(torch.Tensor, "argmax", seen)
    merge_into_nearest(torch.randn(6, 40, 4), torch.arange(8).expand(6, 8))
    assert 0 < largest <= 64


def test_a_frame_that_keeps_all_its_tokens_stays_as_it_is():
    features = torch.randn(2, 4, 3, dtype=torch.bfloat16)
    assert torch.equal(merge_into_nearest(features, torch.arange(4).expand(2, 4)), features)
