"""VisionZip, against a version with loops over tokens that shares no code with it."""

import pytest
import torch
from tiny_models import tiny

from videonsa.errors import UsageError
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


def test_published_settings_of_the_original_are_kept_to_the_token():
    """54 + 10, 108 + 20 and 162 + 30 of 576 tokens."""
    for ratio, wanted in ((VisionZip().ratio, 64), (2 / 9, 128), (1 / 3, 192)):
        method = VisionZip(ratio=ratio)
        assert method.kept_tokens(3, 576) == 3 * wanted
        assert method._num_contextual(wanted) == wanted * 10 // 64


def test_the_quota_is_each_frames_whatever_others_receive():
    """A frame that receives ten times the attention keeps no more."""
    clip = encoded(4, 3, 4)
    received = clip.received[0] * torch.tensor([10.0, 1, 1, 1]).repeat_interleave(12)
    found = VisionZip(ratio=0.5).compress(clip._replace(received=(received,)))
    assert (found.places // 12).bincount().tolist() == [6] * 4


def test_no_token_stands_for_the_class():
    """The first token is one like others: it leaves where it receives little."""
    clip = encoded(1, 4, 4)
    received = clip.received[0].clone()
    received[0] = 0.0
    found = VisionZip(ratio=0.5, contextual=0).compress(clip._replace(received=(received,)))
    assert 0 not in found.places
    assert torch.equal(found.features, clip.features[found.places]), "without contextual tokens"


def test_similar_are_those_with_similar_keys_and_their_mean_is_added():
    """One dominant token; two targets, of which the first has the keys of all others."""
    keys = torch.tensor([[0.0, 1], [1, 0], [3, 0.1], [0, 1], [2, 0]])
    features = torch.arange(10.0).view(5, 2)
    received = torch.tensor([9.0, 1, 1, 1, 1])
    clip = EncodedFrames(features, (1, 1, 5), (received,), keys)
    found = VisionZip(ratio=0.6, contextual=0.7).compress(clip)
    assert found.places.tolist() == [0, 1, 3]
    wanted = [features[0], features[1] + (features[2] + features[4]) / 2, features[3]]
    assert torch.equal(found.features, torch.stack(wanted))


def test_it_compresses_what_the_merger_gave_by_the_last_block_alone():
    model, frames = tiny(), torch.randint(256, (4, 3, 84, 140), dtype=torch.uint8)
    with torch.no_grad():
        whole = model.encode_frames([frames])
        found = model.encode_kept([frames], method=VisionZip(ratio=0.4, contextual=0))
    assert found.features.shape == (2 * 6, 64), "merged tokens of the language model's width"
    torch.testing.assert_close(found.features, whole[found.places])
    assert VisionZip.tower_probe.received == (-1,)
    assert VisionZip.tower_probe.keys == -1


@pytest.mark.parametrize("sizes", [[2, 6], [4, 2, 2]])
def test_where_parts_of_a_video_end_changes_nothing(sizes):
    model = tiny()
    frames = torch.randint(256, (8, 3, 84, 140), dtype=torch.uint8)
    with torch.no_grad():
        whole = model.encode_kept([frames], method=VisionZip(ratio=0.4))
        parts = model.encode_kept(frames.split(sizes), method=VisionZip(ratio=0.4))
    assert torch.equal(parts.places, whole.places)
    torch.testing.assert_close(parts.features, whole.features, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("wrong", [{"ratio": 0.0}, {"ratio": 1.5}, {"contextual": 1.0}])
def test_shares_outside_their_domain_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UsageError, match=f"^{name}={value}: want a share"):
        VisionZip(**wrong)
