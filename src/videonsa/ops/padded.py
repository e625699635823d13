"""The inputs as the published code lays them out: 64 padded heads, blocks of 64 tokens.

Letters: T rows, S tokens, D head dim, C blocks, R rows, J = 4 KV groups of 16 padded heads.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.ops.reference import compute_dtype
from videonsa.ops.spec import NSASpec

NUM_QUERY_HEADS = 28
NUM_KV_HEADS = 4
PADDED_HEADS = 64
PADDED_GROUP = PADDED_HEADS // NUM_KV_HEADS
BLOCK_SIZE = 64


def num_slots(spec: NSASpec) -> int:
    """Selected blocks a row, n: a power of two, as the network of the published code needs it."""
    return 1 << (spec.num_selected_blocks - 1).bit_length()


def pad_heads(q: Tensor) -> Tensor:
    """`[R, 28, D]` -> `[R, J, 16, D]`: the heads, the same heads again, 8 zero heads."""
    zeros = q.new_zeros(len(q), PADDED_HEADS - 2 * NUM_QUERY_HEADS, q.shape[-1])
    padded = torch.cat((q, q, zeros), dim=1)
    return torch.unflatten(padded, 1, (NUM_KV_HEADS, PADDED_GROUP))


def mean_of_copies(o: Tensor) -> Tensor:
    """`[R, 64, D]` -> `[R, 28, D]`."""
    return (o[:, :NUM_QUERY_HEADS] + o[:, NUM_QUERY_HEADS : 2 * NUM_QUERY_HEADS]) / 2


def heads_first(x: Tensor) -> Tensor:
    """`[1, S, J, D]` -> `[J, S, D]` in the compute dtype."""
    return x[0].transpose(0, 1).to(compute_dtype(x))


def pool_all_blocks(x: Tensor) -> Tensor:
    """Mean over the tokens of each block, the partial last one included: `[J, C, D]`.

    Rounded once to the input dtype, in which the published code keeps it.
    """
    tokens = heads_first(x)
    num_tokens = tokens.shape[1]
    padded = F.pad(tokens, (0, 0, 0, -num_tokens % BLOCK_SIZE))
    starts = torch.arange(0, num_tokens, BLOCK_SIZE, device=x.device)
    sizes = (num_tokens - starts).clamp(max=BLOCK_SIZE)
    mean = torch.unflatten(padded, 1, (-1, BLOCK_SIZE)).sum(dim=2) / sizes[:, None]
    return rounded(mean, x.dtype)


def within(selected: Tensor, num_blocks: int) -> Tensor:
    """Block indices with every entry that names no block set to -1."""
    return selected.masked_fill(selected >= num_blocks, -1).clamp(min=-1)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The values as `dtype` can hold them, in the dtype of x."""
    held: Tensor = x.to(dtype)
    return held.to(x.dtype)
