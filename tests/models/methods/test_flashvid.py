"""FlashVID, against a version with loops over tokens, written from the paper."""

import math
from itertools import pairwise

import pytest
import torch
from allocations import allocations
from leaving_by_hand import LAYERS
from tiny_models import VIDEO, tiny

from videonsa.errors import UsageError
from videonsa.inference.context import Context, EncodedVision
from videonsa.models.methods.compression import compress_clip
from videonsa.models.methods.fastv import FastV
from videonsa.models.methods.flashvid import FlashVID
from videonsa.models.tower_probe import EncodedFrames
from videonsa.ops import spatiotemporal


def clip(frames, rows, columns, seed=0, noise=0.5):
    """Frames that change little, but for a cut in the middle."""
    generator = torch.Generator().manual_seed(seed)
    size = rows * columns
    scenes = 1 + torch.randn(2, size, 8, generator=generator)
    features = scenes[torch.arange(frames) * 2 // max(frames, 2)]
    features = features + noise * torch.randn(frames, size, 8, generator=generator)
    received = torch.rand(frames * size, generator=generator)
    return EncodedFrames(features.flatten(0, 1), (frames, rows, columns), (received,))


def cosine(x, y):
    return float(torch.cosine_similarity(x, y, dim=0))


def segments(features, threshold, least):
    means = [frame.mean(0) for frame in features]
    alike = [cosine(*pair) for pair in pairwise(means)]
    cuts = {place for place, value in enumerate(alike) if value < threshold}
    for place in sorted(range(len(alike)), key=lambda place: alike[place]):
        if len(cuts) + 1 < least:
            cuts.add(place)
    edges = [0, *(cut + 1 for cut in sorted(cuts)), len(features)]
    return list(pairwise(edges))


def chosen_by_loops(frame, received, event, count):
    """Max-min diversity: distances are weighed by attention and by how a token fits the event."""
    size = range(len(frame))
    weight = [float(received[i]) * float(frame[i] @ event) for i in size]
    far = [[1 - cosine(frame[i], frame[j]) for j in size] for i in size]
    taken = []
    while len(taken) < count:
        left = [j for j in size if j not in taken]
        others = taken or list(size)
        taken.append(max(left, key=lambda j: weight[j] * min(far[i][j] for i in others if i != j)))
    return sorted(taken)


def trees_by_loops(frames, free, threshold, most):
    """Members of the tree of each root (frame, token)."""
    links = []
    for f in range(1, len(frames)):
        for i in free[f]:
            if free[f - 1]:
                best = max(free[f - 1], key=lambda j: cosine(frames[f][i], frames[f - 1][j]))
                links.append((cosine(frames[f][i], frames[f - 1][best]), (f, i), (f - 1, best)))
    links = sorted((link for link in links if link[0] > threshold), reverse=True)[:most]
    parent = {child: above for _, child, above in links}
    members = {}
    for f, tokens in enumerate(free):
        for i in tokens:
            root = (f, i)
            while root in parent:
                root = parent[root]
            members.setdefault(root, []).append(frames[f][i])
    return members


def clusters_by_loops(tokens, count):
    size = range(len(tokens))
    far = [[float((tokens[i] - tokens[j]).norm()) / math.sqrt(8) for j in size] for i in size]
    near = [sorted(row)[: min(count, 7)] for row in far]
    density = [math.exp(-sum(d * d for d in row) / len(row)) for row in near]
    largest = max(map(max, far))
    delta = [
        min([far[i][j] for j in size if density[j] > density[i]], default=largest) for i in size
    ]
    centres = sorted(size, key=lambda i: -density[i] * delta[i])[:count]
    groups = {centre: [] for centre in centres}
    for i in size:
        groups[i if i in groups else min(centres, key=lambda c: far[i][c])].append(tokens[i])
    return groups


def by_loops(clip, method, budget, num_chosen):
    size = clip.grid[1] * clip.grid[2]
    features, received = clip.features.unflatten(0, (-1, size)), clip.received[0].view(-1, size)
    kept = {}
    for start, stop in segments(features, method.segment_threshold, method.min_segments):
        frames = features[start:stop]
        event = frames.flatten(0, 1).mean(0)
        free = []
        for f, frame in enumerate(frames):
            chosen = chosen_by_loops(frame, received[start + f], event, num_chosen)
            kept |= {((start + f) * size + i): frame[i] for i in chosen}
            free.append([i for i in range(size) if i not in chosen])
        most = len(frames) * (size - budget)
        members = trees_by_loops(frames, free, method.merge_threshold, most)
        means = {root: torch.stack(tokens).mean(0) for root, tokens in members.items()}
        share = len(frames) * (budget - num_chosen) / len(means)
        for f in range(len(frames)):
            roots = sorted(i for at, i in means if at == f)
            tokens = [means[f, i] for i in roots]
            count = math.ceil(len(roots) * share - 1e-9)
            groups = {i: [token] for i, token in enumerate(tokens)}
            if count < len(tokens):
                groups = clusters_by_loops(tokens, count)
            for i, group in groups.items():
                kept[(start + f) * size + roots[i]] = torch.stack(group).mean(0)
    return sorted(kept), torch.stack([kept[place] for place in sorted(kept)])


@pytest.mark.parametrize(
    ("grid", "options", "counts"),
    [
        ((6, 4, 4), {"ratio": 0.25, "min_segments": 2}, (5, 4)),
        (
            (5, 3, 4),
            {"ratio": 0.4, "alpha": 0.3, "min_segments": 1, "merge_threshold": 0.6},
            (6, 2),
        ),
        ((3, 3, 3), {"ratio": 0.5, "alpha": 0.5}, (6, 3)),
        ((1, 4, 5), {"ratio": 0.3, "alpha": 0.5}, (8, 4)),
    ],
    ids=["few are merged", "bounded by the budget", "a segment a frame", "image"],
)
def test_it_chooses_and_merges_what_the_paper_says(grid, options, counts):
    encoded, method = clip(*grid), FlashVID(**options)
    found = method.compress(encoded)
    places, features = by_loops(encoded, method, *counts)
    assert found.places.tolist() == places
    torch.testing.assert_close(found.features, features, atol=1e-5, rtol=1e-4)
    assert len(places) <= method.kept_tokens(grid[0], grid[1] * grid[2])
    assert len(places) >= grid[0] * counts[1]


def test_a_tree_over_several_frames_is_the_mean_of_all_its_tokens(monkeypatch):
    """Not of sums of which only the last joined are counted; and nothing else is moved."""
    torch.manual_seed(0)
    still = torch.randn(1, 3, 8).expand(4, 3, 8) + 0.01 * torch.randn(4, 3, 8)
    free = torch.tensor([[True, True, False]]).expand(4, 3)
    trees = spatiotemporal.merge_trees(still, free, threshold=0.8, most=100)
    torch.testing.assert_close(trees.means[0, :2], still[:, :2].mean(0))
    assert torch.equal(trees.means[0, 2], still[0, 2])
    assert trees.is_root.tolist() == [[True] * 3, *[[False, False, True]] * 3]
    few = spatiotemporal.merge_trees(still, free, threshold=0.8, most=2)
    assert int((~few.is_root).sum()) == 2, "never below the budget"
    monkeypatch.setattr(spatiotemporal, "PAIRS_AT_ONCE", 1)
    again = spatiotemporal.merge_trees(still, free, threshold=0.8, most=100)
    torch.testing.assert_close(again, trees)


def test_tokens_are_chosen_once_also_where_their_weight_is_negative():
    features, weights = torch.randn(2, 6, 4, generator=torch.manual_seed(1)), -torch.ones(2, 6)
    found = spatiotemporal.diverse_tokens(features, weights, 6)
    assert found.tolist() == [[*range(6)]] * 2
    alone = spatiotemporal.diverse_tokens(features[:, :1], weights[:, :1] * 0, 1)
    assert alone.tolist() == [[0], [0]]


@pytest.mark.parametrize("pairs", [2**26, 2**12], ids=["all frames", "a frame at once"])
def test_its_memory_is_bounded_as_predicted(monkeypatch, pairs):
    monkeypatch.setattr(spatiotemporal, "PAIRS_AT_ONCE", pairs)
    features = 1 + 0.2 * torch.randn(40 * 64, 256, generator=torch.manual_seed(0))
    method, received = FlashVID(min_segments=1), (torch.rand(40 * 64),)
    with torch.no_grad(), allocations(torch.Tensor) as counted:
        kept = method.compress(EncodedFrames(features, (40, 8, 8), received))
    predicted = method.compression_bytes(40, 64, 256) + kept.features.nbytes
    assert 0.4 * predicted < counted.peak <= predicted


def test_at_ratio_1_all_tokens_stay_as_they_are():
    encoded = clip(5, 3, 3, noise=0.01)
    found = FlashVID(ratio=1.0).compress(encoded)
    assert torch.equal(found.features, encoded.features)
    assert found.places.tolist() == [*range(45)]


def test_inside_the_layers_it_is_fastv_on_the_tokens_that_were_read():
    model = tiny(attention="dense", **LAYERS)
    method = FlashVID(ratio=0.5, layer=2, layer_ratio=0.4)
    encoded = clip(4, 2, 3)
    encoded = encoded._replace(features=encoded.features.repeat(1, 8))
    kept = compress_clip(method, [encoded])
    seconds = tuple(map(float, range(4)))
    ids = [20, 12, *[VIDEO] * len(kept.features), 13, 30, 31]
    logits, records = [], []
    for one in (method, FastV(layer=2, ratio=0.4)):
        context = Context(model, method=one)
        video = EncodedVision("video", kept.features, (4, 4, 6), seconds, kept.places)
        logits.append(context.read(context.passage(ids, [video])))
        records.append(context.cache.records)
    assert torch.equal(*logits)
    assert [len(one) for one in records] == [2, 2]
    assert records[0][1].places == records[1][1].places


def test_a_model_of_another_depth_is_told_and_values_outside_their_domain_are_refused():
    assert FlashVID().of_depth(28).layer == 20
    assert FlashVID().of_depth(28).notes(28, 28) == ()
    (note,) = FlashVID().of_depth(4).notes(4, 4)
    assert note == "flashvid: tokens leave again after layer 2 of 4; published is 20 of 28"
    with pytest.raises(UsageError, match="layer=99 on a model of 4 layers: want 3 at most"):
        FlashVID(layer=99).of_depth(4)
    for wrong in ({"ratio": 0.0}, {"expansion": 0.5}, {"alpha": 1.2}, {"min_segments": 0}):
        ((name, value),) = wrong.items()
        with pytest.raises(UsageError, match=f"^{name}={value}: want "):
            FlashVID(**wrong)
