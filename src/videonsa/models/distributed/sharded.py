"""One sequence over several processes: the rows of this one, its attention, and the one loss."""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.rope import Grid
from videonsa.models.rows import NewRows, frames_begun
from videonsa.models.step import AttentionStep, StepTokens, build_step
from videonsa.parallel.context import ContextParallelGroup
from videonsa.parallel.shard import SequenceShard
from videonsa.video.chat import IGNORED_LABEL


class ShardedRows(NamedTuple):
    """What a process has of a sequence of T rows."""

    positions: Tensor
    """int64 `[t]`: positions of its rows."""
    step: AttentionStep


def shard_rows(
    rows: NewRows,
    method: AttentionMethod,
    cp_group: ContextParallelGroup,
    recorder: Recorder | None = None,
) -> ShardedRows:
    """The rows of this process, and what its attention needs to know.

    Args:
        rows: all T rows, B = 1.
        method: how the call attends.
        cp_group: of the processes.
        recorder: told of this process's own rows.

    Raises:
        UsageError: more than one row of ids.
    """
    if len(rows.vision_mask) != 1:
        raise UsageError(
            f"cp_group with a batch of {len(rows.vision_mask)}: processes share one sequence; "
            "pack the samples into one row (cu_seqlens)"
        )
    device = rows.vision_mask.device
    shard = cp_group.shard([0, *accumulate(rows.lengths or [rows.vision_mask.shape[1]])])
    keys = torch.tensor(shard.keys, device=device)
    positions = torch.tensor(shard.rows, device=device)
    tokens = StepTokens(
        num_tokens=shard.counts[shard.rank],
        has_vision=rows.has_vision,
        vision_mask=rows.vision_mask[:, keys],
        attention_mask=None,
        position_ids=rows.position_ids[:, :, positions],
        frame_sizes=lambda: list(_frames_of_pieces(rows, shard)),
        # Each piece is a packed sample whose rows are the last of its keys.
        segments=[(piece.num_rows, piece.num_keys) for piece in shard.pieces],
    )
    gather = gathering(cp_group, shard, keys)
    step = build_step(method, tokens, gather_keys=gather, recorder=recorder)
    return ShardedRows(positions=positions, step=step)


def gathering(
    cp_group: ContextParallelGroup, shard: SequenceShard, keys: Tensor
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What turns a layer's own k and v, `[1, t, H, D]`, into those of `keys`.

    Args:
        cp_group: between the processes.
        shard: who has which rows.
        keys: int64 `[S]`, positions among the rows of all processes.
    """
    places = torch.tensor(shard.places, device=keys.device)[keys]

    def gather(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        own = torch.stack([k[0], v[0]], dim=1)  # [t, 2, H, D]: one gather for both
        found = cp_group.gather(own, shard.counts).index_select(0, places)
        return found[None, :, 0], found[None, :, 1]

    return gather


def _frames_of_pieces(rows: NewRows, shard: SequenceShard) -> Iterator[int]:
    """Sizes of the frames that have begun among the keys of each piece."""
    sizes = rows.frame_sizes[0]
    seen = F.pad(rows.vision_mask[0].cumsum(0), (1, 0)).cpu()
    for piece in shard.pieces:
        first, last = (frames_begun(sizes, int(seen[place])) for place in (piece.begin, piece.end))
        yield from sizes[first:last]


def share_encoding(
    encode: Callable[[Tensor, Sequence[Grid]], Tensor],
    pixels: Tensor,
    grids: Sequence[Grid],
    cp_group: ContextParallelGroup,
    *,
    merge_size: int,
) -> Tensor:
    """Features `[M, hidden]` of images or videos, each process encoding about as many frames.

    Where there are fewer frames than processes, each encodes all of them: none may be left out of
    what the tower does together.

    Args:
        encode: patches and grids to features.
        pixels: `[P, ...]` patches of all of them.
        grids: (t, h, w) of each, in patches.
        cp_group: between the processes.
        merge_size: patches merged along each side.
    """
    frames: list[Grid] = [(1, h, w) for t, h, w in grids for _ in range(t)]
    num_frames, world_size = len(frames), cp_group.world_size
    if num_frames < world_size:
        return encode(pixels, grids)
    cuts = [num_frames * i // world_size for i in range(world_size + 1)]
    shares = [frames[first:last] for first, last in pairwise(cuts)]
    patches = [sum(h * w for _, h, w in share) for share in shares]
    own = encode(pixels.split(patches)[cp_group.rank], shares[cp_group.rank])
    return cp_group.gather(own, [count // merge_size**2 for count in patches])


def sharded_loss(
    logits: Tensor,
    labels: Tensor,
    sharded: ShardedRows,
    cp_group: ContextParallelGroup,
    num_items: Tensor | int | None,
) -> Tensor:
    """The loss of the whole sequence, equal on all processes.

    Its gradients on each process are that process's share: the sum over all is the gradient.

    Args:
        logits: `[1, t, V]` of this process's rows.
        labels: int64 `[1, T]` of all rows; -100 where there is no loss.
        sharded: the rows of this process.
        cp_group: between the processes.
        num_items: what the sum of losses is divided by; None is the number of labels.
    """
    targets = F.pad(labels[0, 1:], (0, 1), value=IGNORED_LABEL)  # a row predicts the next one
    count = (targets != IGNORED_LABEL).sum() if num_items is None else num_items
    own = targets[sharded.positions].to(logits.device)
    total = F.cross_entropy(logits[0].float(), own, ignore_index=IGNORED_LABEL, reduction="sum")
    return cp_group.sum(total / count)
