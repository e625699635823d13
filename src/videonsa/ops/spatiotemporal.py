"""Tokens of frames chosen by diversity, merged along time in trees, and within frames in clusters.

The parts of FlashVID (arXiv 2602.08024), in float32. Nothing depends on chance, and nothing is
larger than the pairs of tokens of a frame.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS_AT_ONCE = 2**26
"""Of tokens, whose distances are there together; 256 MB in float32."""
VALUES_AT_ONCE = 2**26
"""Of features that are compared together."""
NEIGHBOURS = 7
"""Tokens by which density is told, the token itself among them."""


class Trees(NamedTuple):
    """Tokens merged into tokens of the frame before, which may be merged in turn."""

    means: Tensor
    """Float32 `[F, N, hidden]`: at a root, the mean of its tree."""
    is_root: Tensor
    """bool `[F, N]`."""


def frames_at_once(num_tokens: int, width: int) -> int:
    """Of so many tokens, of so many values each, that are compared together."""
    return max(1, min(PAIRS_AT_ONCE // num_tokens**2, VALUES_AT_ONCE // (num_tokens * width)))


def segment_starts(means: Tensor, *, threshold: float, min_segments: int) -> list[int]:
    """The first frames of segments whose neighbouring frames are alike.

    A video is cut where the cosine is below the threshold, and where it is lowest until there are
    enough segments.

    Args:
        means: float32 `[F, hidden]`, of the tokens of each frame.
        threshold: of the cosine.
        min_segments: where there are as many frames.
    """
    alike = F.cosine_similarity(means[1:], means[:-1], dim=-1)
    num_cuts = max(int((alike < threshold).sum()), min(min_segments, len(means)) - 1)
    return [0, *(alike.argsort(stable=True)[:num_cuts].sort().values + 1).tolist()]


def diverse_tokens(features: Tensor, weights: Tensor, count: int) -> Tensor:
    """Tokens of each frame that are unlike one another and weigh much: max-min diversity.

    One after the other, the token is taken whose distance to the nearest of those taken, times its
    weight, is largest; first, the one whose distance to the nearest of all is.

    Args:
        features: `[F, N, hidden]`; a distance is 1 less the cosine.
        weights: float32 `[F, N]`.
        count: how many, N at most.

    Returns:
        int64 `[F, count]`, ascending.
    """
    at_once = frames_at_once(*features.shape[1:])
    pairs = zip(features.split(at_once), weights.split(at_once), strict=True)
    return torch.cat([_diverse(*pair, count) for pair in pairs])


def _diverse(features: Tensor, weights: Tensor, count: int) -> Tensor:
    directions = F.normalize(features.float(), dim=-1)
    distances = 1 - directions @ directions.transpose(1, 2)
    distances.diagonal(dim1=1, dim2=2).fill_(float("inf"))  # of others than itself
    own = torch.arange(len(features), device=features.device)
    nearest = distances.amin(1)
    # A token without others has no distance, and a weight of 0 would make that nan.
    scores = nearest.nan_to_num(posinf=1.0) * weights
    nearest = torch.full_like(nearest, float("inf"))
    taken = []
    for _ in range(count):
        token = scores.argmax(1)
        taken.append(token)
        nearest = nearest.minimum(distances[own, token])
        scores = nearest * weights
        scores[own[:, None], torch.stack(taken, 1)] = -float("inf")
    return torch.stack(taken, dim=1).sort(dim=1).values


def relevance(features: Tensor) -> Tensor:
    """How much tokens fit what their frames show: products with the mean of all, float32 `[F, N]`.

    Args:
        features: `[F, N, hidden]`.
    """
    mean = features.mean((0, 1), dtype=torch.float32)
    parts = features.split(frames_at_once(*features.shape[1:]))
    return torch.cat([part.float() @ mean for part in parts])


def merge_trees(features: Tensor, free: Tensor, *, threshold: float, most: int) -> Trees:
    """Merge free tokens into the most similar free token of the frame before.

    Args:
        features: `[F, N, hidden]`, of frames that follow one another.
        free: bool `[F, N]`: the others are neither merged nor merged into.
        threshold: of the cosine, which has to be above it.
        most: how many tokens may be merged, those of the highest cosine.
    """
    alike, parents = _most_similar(features, free)
    merges = free & (alike > threshold)
    if int(merges.sum()) > most:
        ranked = alike.masked_fill(~merges, -float("inf")).flatten()
        merges = torch.zeros_like(merges.flatten())
        merges[ranked.argsort(descending=True, stable=True)[:most]] = True
        merges = merges.view_as(free)
    sums = features.to(torch.float32, copy=True)
    counts = torch.ones_like(alike)
    numbers = torch.arange(features.shape[1], device=features.device)
    for frame in range(len(features) - 1, 0, -1):
        # A product, not index_add: its sums are the same each time on a GPU too.
        moved = ((parents[frame] == numbers[:, None]) & merges[frame]).float()
        sums[frame - 1] += moved @ sums[frame]
        counts[frame - 1] += moved @ counts[frame]
    return Trees(sums.div_(counts[..., None]), ~merges)


def _most_similar(features: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine to the most similar free token of the frame before, -1 without one; its place."""
    alike = torch.full(free.shape, -1.0, device=features.device)
    parents = torch.zeros(free.shape, dtype=torch.int64, device=features.device)
    at_once = frames_at_once(*features.shape[1:])
    for first in range(1, len(features), at_once):
        now = slice(first, first + at_once)
        before = slice(first - 1, min(first + at_once, len(features)) - 1)
        directions = (F.normalize(features[own].float(), dim=-1) for own in (now, before))
        rows, columns = directions
        cosines = rows @ columns.transpose(1, 2)
        cosines.masked_fill_(~free[before][:, None], -1.0)
        alike[now], parents[now] = cosines.max(-1)
    return alike, parents


def density_clusters(tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Cluster tokens around those that are dense and far from denser ones: DPC-kNN.

    Args:
        tokens: float32 `[n, hidden]`.
        count: of clusters, n at most.

    Returns:
        The cluster of each token, int64 `[n]`, and the token at each centre, int64 `[count]`. Of
        equally dense tokens the earlier counts as denser.
    """
    distances = torch.cdist(tokens, tokens) / math.sqrt(tokens.shape[1])
    nearest = distances.topk(min(count, NEIGHBOURS), dim=-1, largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    rank = torch.empty(len(tokens), dtype=torch.int64, device=tokens.device)
    order = density.argsort(descending=True, stable=True)
    rank[order] = torch.arange(len(tokens), device=tokens.device)
    denser = rank < rank[:, None]
    to_denser = distances.masked_fill(~denser, float(distances.max())).amin(-1)
    centres = (to_denser * density).argsort(descending=True, stable=True)[:count]
    cluster = distances[:, centres].argmin(-1)
    cluster[centres] = torch.arange(count, device=tokens.device)
    return cluster, centres
