"""FlexPrefill (arXiv 2502.20766): each head's blocks of keys, chosen by its last block of queries.

The attention of the last B queries, the *probes*, tells what a head does. Its sums over columns are
the *vertical* mass of each key, its sums over diagonals the *slash* mass of each offset. Where the
columns are what means of blocks predict (a Jensen-Shannon distance below tau), the head is
*query-aware*: attention between means of blocks chooses blocks anywhere in the map. Any other head
attends to the same columns and the same diagonals of blocks in all rows. Both keep a share gamma.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from videonsa.ops.block_lists import BlockLists, from_mask
from videonsa.ops.estimators.pooling import (
    CHUNK_BYTES,
    block_means,
    block_sums,
    causal_blocks,
    num_blocks,
    share,
    until_reached,
)
from videonsa.ops.estimators.vertical_slash import line_scores


@torch.no_grad()
def flexprefill_lists(
    q: Tensor,
    k: Tensor,
    *,
    gamma: float = 0.9,
    tau: float = 0.1,
    min_budget: int = 1024,
    max_budget: int | None = None,
    block_size: int = 128,
) -> BlockLists:
    """The blocks of keys that each block of queries attends to, per query head.

    Nothing waits for the device. Beside the map of blocks `[HQ, R, R]`, R = T / B, memory is linear
    in T: heads go through in chunks.

    Args:
        q: `[T, HQ, D]` of one sample, rotated.
        k: `[T, H, D]`.
        gamma: share of the attention to keep, above 0; from 1 on everything is kept.
        tau: distance below which a head is query-aware; with 0 none is.
        min_budget: keys that a head has at least in its columns, and in its diagonals. Up to that
            many tokens, and up to two blocks, attention is dense.
        max_budget: keys that it has at most in each, no fewer than min_budget; None: no limit.
        block_size: B, tokens of a block: 64 or 128.
    """
    options = _Options(gamma, tau, min_budget, max_budget, block_size)
    return from_mask(_block_map(q, k, options), block_size)


def is_dense(num_tokens: int, min_budget: int, block_size: int) -> bool:
    """Whether so many tokens are too few to leave any out."""
    return num_tokens <= max(2, num_blocks(min_budget, block_size)) * block_size


@dataclass(frozen=True)
class _Options:
    """Of `flexprefill_lists`, budgets in keys."""

    gamma: float
    tau: float
    min_budget: int
    max_budget: int | None
    block_size: int

    @property
    def fewest(self) -> int:
        """`min_budget` in blocks."""
        return num_blocks(self.min_budget, self.block_size)

    def most(self, blocks: int) -> int:
        """`max_budget` in blocks, of so many."""
        if self.max_budget is None:
            return blocks
        return min(num_blocks(self.max_budget, self.block_size), blocks)


def _block_map(q: Tensor, k: Tensor, options: _Options) -> Tensor:
    """Bool `[HQ, R, R]`, causal."""
    num_tokens, num_heads, _ = q.shape
    size = options.block_size
    blocks = num_blocks(num_tokens, size)
    causal = causal_blocks(range(blocks), blocks, device=q.device)
    if is_dense(num_tokens, options.min_budget, size):
        return causal.expand(num_heads, -1, -1)
    mask = torch.empty((num_heads, blocks, blocks), dtype=torch.bool, device=q.device)
    kv_heads = torch.arange(num_heads, device=q.device) // (num_heads // k.shape[1])
    # Two tensors of the probes' scores and a copy of the keys, and the ranking of all blocks.
    bytes_per_head = 4 * num_tokens * (2 * size + q.shape[2]) + 24 * blocks**2
    heads_at_once = max(1, CHUNK_BYTES // bytes_per_head)
    for first in range(0, num_heads, heads_at_once):
        heads = slice(first, first + heads_at_once)
        mask[heads] = _map_of_heads(q[:, heads], k[:, kv_heads[heads]], options) & causal
    return mask


def _map_of_heads(q: Tensor, k: Tensor, options: _Options) -> Tensor:
    """Bool `[n, R, R]`, perhaps with blocks of the future, of n heads.

    Args:
        q: `[T, n, D]`.
        k: `[T, n, D]`, what each of them reads.
        options: of all heads.
    """
    size = options.block_size
    probes, mean_k = q[-size:], block_means(k, size)
    vertical, slash = (mass / size for mass in line_scores(probes, k))
    aware = _distance_of_means(probes, mean_k, block_sums(vertical, size)) < options.tau
    columns = _highest_blocks(vertical, aware, options, always=0)
    # A diagonal counts in the block where it meets the last row.
    diagonals = _highest_blocks(slash.flip(1), aware, options, always=-1)
    mask = columns[:, None] | _along_diagonals(diagonals)
    anywhere = _query_aware_blocks(block_means(q, size), mean_k, options.gamma)
    return mask | anywhere & aware[:, None, None]


def _distance_of_means(probes: Tensor, mean_k: Tensor, mass: Tensor) -> Tensor:
    """How far attention of the mean probe to means of blocks is from the probes' own: `[n]`.

    The square root of the Jensen-Shannon divergence, in nats: 0 to 0.83.

    Args:
        probes: `[B, n, D]`.
        mean_k: `[n, R, D]`.
        mass: `[n, R]`, of the probes in each block.
    """
    mean_q = probes.mean(0, dtype=torch.float32)
    scores = torch.einsum("nd,nrd->nr", mean_q, mean_k) * probes.shape[-1] ** -0.5
    return jensen_shannon(scores.softmax(-1), mass).sqrt()


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Divergence of two distributions `[..., N]` in nats, with 0 log 0 = 0.

    Far from its maximum softmax is 0 in float32. The plain formula is NaN there, and NaN is never
    below tau: no such head would be query-aware.
    """
    both = p + q
    terms = torch.xlogy(p, 2 * p) + torch.xlogy(q, 2 * q) - torch.xlogy(both, both)
    return (terms.sum(-1) / 2).clamp(min=0)


def _highest_blocks(mass: Tensor, aware: Tensor, options: _Options, *, always: int) -> Tensor:
    """The blocks of highest mass, that of index `always` in any case: bool `[n, R]` of `[n, T]`.

    As many as hold the keys that reach gamma, within the budgets; the smallest budget where a head
    is `aware` [n].
    """
    size = options.block_size
    of_block = block_sums(mass, size)
    blocks = of_block.shape[-1]
    descending = mass.sort(-1, descending=True).values
    num_keys = until_reached(descending, share(options.gamma)).sum(-1, keepdim=True)
    count = (num_keys // size + 1).clamp(options.fewest, options.most(blocks))
    count = count.masked_fill(aware[:, None], options.fewest)
    of_block[:, always] = torch.inf
    order = of_block.sort(dim=-1, descending=True, stable=True).indices
    ranked = torch.arange(blocks, device=mass.device) < count
    return torch.zeros_like(ranked).scatter_(-1, order, ranked)


def _along_diagonals(last_row: Tensor) -> Tensor:
    """A map `[n, R, R]` with the same diagonals as its last row `[n, R]`, on and below the main."""
    row = torch.arange(last_row.shape[-1], device=last_row.device)
    return last_row.flip(1)[:, (row[:, None] - row).clamp(min=0)]


def _query_aware_blocks(mean_q: Tensor, mean_k: Tensor, gamma: float) -> Tensor:
    """The fewest blocks of the whole map that reach gamma of its mass: bool `[n, R, R]`.

    Every row has the same mass, and they are ranked together, so rows may get very different
    numbers of blocks.

    Args:
        mean_q: `[n, R, D]`.
        mean_k: `[n, R, D]`.
        gamma: share to keep.
    """
    blocks, dim = mean_q.shape[1:]
    row, column = torch.tril_indices(blocks, blocks, device=mean_q.device)
    future = ~causal_blocks(range(blocks), blocks, device=mean_q.device)
    scores = (mean_q @ mean_k.transpose(1, 2) * dim**-0.5).masked_fill_(future, -torch.inf)
    mass = scores.softmax(-1)[:, row, column]
    descending, order = mass.sort(dim=-1, descending=True, stable=True)
    needed = until_reached(descending, share(gamma) * blocks)
    mask = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
    mask[:, row, column] = torch.zeros_like(needed).scatter_(1, order, needed)
    return mask
