"""VisionZip, against a version with loops over tokens that shares no code with it."""

import pytest
import torch

from videonsa.models.methods.visionzip import VisionZip
from videonsa.models.tower_probe import EncodedFrames


def encoded(frames, rows, columns, seed=0):
    """Frames with features, received attention and keys that have nothing to do with another."""
    generator = torch.Generator().manual_seed(seed)
    count = frames * rows * columns
    features, keys = (torch.randn(count, n, generator=generator) for n in (6, 4))
    received = torch.rand(count, generator=generator)
    return EncodedFrames(features, (frames, rows, columns), (received,), keys)


def by_loops(clip, kept, num_contextual):
    """Places and features, frame by frame and token by token."""
    places, features = [], []
    size = clip.grid[1] * clip.grid[2]
    for frame in range(clip.grid[0]):
        own = list(range(frame * size, (frame + 1) * size))
        received = clip.received[0].tolist()
        dominant = sorted(own, key=lambda token: -received[token])[: kept - num_contextual]
        others = [token for token in own if token not in dominant]
        targets = others[:: max(1, len(others) // num_contextual)][:num_contextual]
        groups = {target: [] for target in targets}
        for token in others:
            if token not in targets:
                likeness = [
                    float(torch.cosine_similarity(clip.keys[token], clip.keys[target], dim=0))
                    for target in targets
                ]
                groups[targets[likeness.index(max(likeness))]].append(clip.features[token])
        for token in sorted([*dominant, *targets]):
            merged = groups.get(token)
            mean = torch.stack(merged).mean(0) if merged else 0
            places.append(token)
            features.append(clip.features[token] + mean)
    return places, torch.stack(features)


@pytest.mark.parametrize(
    ("grid", "ratio", "contextual", "counts"),
    [
        ((3, 4, 6), 0.25, 0.34, (6, 2)),
        ((1, 5, 5), 0.5, 0.5, (12, 6)),
        ((2, 3, 3), 1 / 3, 0.1, (3, 1)),
    ],
    ids=["video", "image", "one contextual token at least"],
)
def test_it_keeps_and_merges_what_the_paper_says(grid, ratio, contextual, counts):
    clip = encoded(*grid)
    method = VisionZip(ratio=ratio, contextual=contextual)
    found = method.compress(clip)
    places, features = by_loops(clip, *counts)
    assert found.places.tolist() == places, "in their order, the targets at their own places"
    torch.testing.assert_close(found.features, features)
    assert len(places) == grid[0] * counts[0] == method.kept_tokens(grid[0], grid[1] * grid[2])
