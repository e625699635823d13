"""The index rules of NSA as pure functions: who sees which block, which are forced, which win.

Rows, keys and blocks are counted in the vision stream of one sample. Every function broadcasts:
N is the batch, or 1 where all samples share the same blocks.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal(rows: Tensor, keys: Tensor) -> Tensor:
    """Row t sees keys up to itself: rows `[..., T]`, keys `[..., S]` -> bool `[..., T, S]`."""
    return keys[..., None, :] <= rows[..., :, None]


def windowed(rows: Tensor, keys: Tensor, window_size: int) -> Tensor:
    """The last `window_size` keys up to and including the row's own: bool `[..., T, S]`."""
    return causal(rows, keys) & (keys[..., None, :] > rows[..., :, None] - window_size)


def visible(offsets: Tensor, rows: Tensor) -> Tensor:
    """Complete blocks whose last position is <= t.

    offsets `[N, C + 1]` (block c is [offsets[c], offsets[c + 1])), rows `[T]` -> bool `[N, T, C]`.
    """
    return offsets[:, None, 1:] <= rows[:, None] + 1


def block_of(offsets: Tensor, positions: Tensor) -> Tensor:
    """The block that holds each position: offsets `[N, C + 1]`, positions `[P]` -> `[N, P]`."""
    positions = positions.expand(offsets.shape[0], -1).contiguous()
    return torch.searchsorted(offsets, positions, right=True) - 1


def forced(current: Tensor, num_blocks: int, *, num_init: int, num_local: int) -> Tensor:
    """Blocks that are selected whatever their importance: current `[N, T]` -> bool `[N, T, C]`.

    The current block; the first `num_init` and the `num_local` just before the current, as far as
    they lie before it (and so are complete).
    """
    block = torch.arange(num_blocks, device=current.device)
    behind = current[..., None] - block  # [N, T, C], 0 for the current block
    first = (block < num_init) & (behind > 0)
    return (behind == 0) | first | ((behind > 0) & (behind <= num_local))


def top_blocks(importance: Tensor, candidates: Tensor, taken: Tensor, num_selected: int) -> Tensor:
    """All `taken` blocks, then the candidates of highest importance; ties to the lower index.

    Args:
        importance: `[..., C]` float.
        candidates: bool, broadcasts to `[..., C]`.
        taken: bool, broadcasts to `[..., C]`; at most `num_selected` in a row.
        num_selected: n.

    Returns:
        `[..., n]` int32 block indices, best first, padded with -1.
    """
    score = importance.masked_fill(~candidates, -torch.inf).masked_fill(taken, torch.inf)
    best, block = score.sort(dim=-1, descending=True, stable=True)
    best, block = best[..., :num_selected], block[..., :num_selected]
    block = block.masked_fill(best == -torch.inf, -1).int()
    return F.pad(block, (0, num_selected - block.shape[-1]), value=-1)


def ascending(selected: Tensor) -> Tensor:
    """Block indices `[..., n]` in ascending order, each once, then -1; int32."""
    none = torch.iinfo(torch.int32).max
    block = selected.clamp(min=-1).int()
    block = block.masked_fill(block < 0, none).sort(dim=-1).values
    repeated = F.pad(block[..., 1:] == block[..., :-1], (1, 0), value=False)
    block = block.masked_fill(repeated, none).sort(dim=-1).values
    return block.masked_fill(block == none, -1)


def membership(selected: Tensor, num_blocks: int) -> Tensor:
    """Block indices `[..., n]` in any order, negative for none -> bool `[..., C]`."""
    slot = selected.long()
    slot = torch.where(slot < 0, num_blocks, slot)
    member = torch.zeros(*slot.shape[:-1], num_blocks + 1, dtype=torch.bool, device=slot.device)
    return member.scatter_(-1, slot, True)[..., :num_blocks]
