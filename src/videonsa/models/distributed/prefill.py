"""Prefill of one sequence shared by processes, each of which ends with the whole cache.

The rows go through the layers in chunks. Of each chunk a process has its share, early rows with
late ones; the keys of all are gathered layer by layer and kept by every process, which a later row
of any process needs anyway. So each can decode on its own, and no process waits for another then.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.cache import CachedTokens, VideoNSACache
from videonsa.models.call import ModelCall
from videonsa.models.chunks import why_at_once
from videonsa.models.distributed.sharded import ShardedRows, gathering
from videonsa.models.fused import ROWS_PER_CHUNK
from videonsa.models.layers import tokens_of_step
from videonsa.models.methods import AttentionMethod
from videonsa.models.rows import NewRows, frames_begun
from videonsa.models.step import StepPart, StepTokens, build_step
from videonsa.parallel.context import ContextParallelGroup
from videonsa.parallel.shard import Piece, SequenceShard


def check_prefill(call: ModelCall, rows: NewRows, cache: VideoNSACache) -> None:
    """Refuse what a call asks for beside a context-parallel group and a cache.

    Args:
        call: what it asks for.
        rows: the new ones.
        cache: of those before.

    Raises:
        UsageError: naming it.
    """
    came = {
        "labels": call.labels is not None,
        "gradients (want torch.inference_mode or no_grad)": torch.is_grad_enabled(),
        "chosen logits_to_keep (want a number of last rows)": isinstance(
            call.logits_to_keep, Tensor
        ),
        "padding": rows.is_padded or cache.tokens.is_padded,
        f"a batch of {len(rows.vision_mask)}": len(rows.vision_mask) != 1,
    }
    found = [what for what, given in came.items() if given]
    reason = why_at_once(call.method, output_hidden_states=call.output_hidden_states)
    if reason is None and call.recorder is not None:
        reason = "a recorder wants all rows in one process"
    if reason is not None:
        found.append(f"rows that cannot be shared: {reason}")
    if found:
        raise UsageError(
            f"cp_group and a cache with {' and '.join(found)}: processes share the prefill of one "
            "sequence; leave it out, or the cp_group"
        )


def rows_of_a_chunk(wanted: int | None, rows: NewRows, cp_group: ContextParallelGroup) -> int:
    """Rows that all processes together take through the layers at a time.

    Args:
        wanted: of each process; None is `ROWS_PER_CHUNK`, 0 its share of all.
        rows: all of them.
        cp_group: between the processes.

    Raises:
        UsageError: a negative number.
    """
    if wanted is not None and wanted < 0:
        raise UsageError(
            f"rows_per_chunk={wanted}: want a number of rows of each process, or 0 for its share"
        )
    own = ROWS_PER_CHUNK if wanted is None else wanted
    return own * cp_group.world_size or rows.vision_mask.shape[1]


@dataclass(frozen=True, slots=True)
class SharedChunk:
    """A chunk of rows that the processes share."""

    shard: SequenceShard
    sharded: ShardedRows
    cp_group: ContextParallelGroup

    def rows_of_all(self, own: Tensor, kept: slice) -> Tensor:
        """The last rows of the chunk, `[1, n, hidden]`, in order, on every process.

        Args:
            own: rows `[1, t, hidden]` of this process.
            kept: which of the chunk, up to its end.
        """
        first = range(sum(self.shard.counts))[kept].start
        wanted = [
            [row for run in runs for row in range(max(run[0], first), run[1])]
            for runs in self.shard.runs
        ]
        mine = own[0, self.sharded.positions.to(own.device) >= first]
        found = self.cp_group.gather(mine, [len(rows) for rows in wanted])
        order = torch.tensor([row for rows in wanted for row in rows], device=own.device)
        return found[None, order.argsort()]


def share_chunk(
    rows: NewRows, cache: VideoNSACache, method: AttentionMethod, cp_group: ContextParallelGroup
) -> SharedChunk | None:
    """Enter the rows of a chunk into the cache, and share them out.

    Args:
        rows: the same in all processes, B = 1, nothing padded.
        cache: of the rows before, the same in all processes.
        method: how the call attends.
        cp_group: between the processes.

    Returns:
        None, and nothing entered, where there are too few rows to share: then every process has
        all of them.
    """
    num_rows = rows.vision_mask.shape[1]
    if num_rows < 2 * cp_group.world_size:
        return None
    cache.tokens.append(rows)
    device = rows.vision_mask.device
    shard = cp_group.shard([0, num_rows])
    step = build_step(
        method,
        tokens_of_step(rows, cache.tokens),
        gather_keys=gathering(cp_group, shard, torch.arange(num_rows, device=device)),
        parts=[_part(piece, rows, cache.tokens, method) for piece in shard.pieces],
    )
    positions = torch.tensor(shard.rows, device=device)
    return SharedChunk(shard, ShardedRows(positions=positions, step=step), cp_group)


def _part(piece: Piece, rows: NewRows, record: CachedTokens, method: AttentionMethod) -> StepPart:
    """A piece of this process, after which nothing is there."""
    later = rows.vision_mask.shape[1] - piece.end
    vision_mask = record.vision_mask[:, : record.vision_mask.shape[1] - later]

    def frame_sizes() -> list[int]:
        sizes = record.frame_sizes[0]
        return sizes[: frames_begun(sizes, int(vision_mask.sum()))]

    own = slice(piece.first, piece.end)
    tokens = StepTokens(
        num_tokens=piece.num_rows,
        has_vision=bool(rows.vision_mask[:, own].any()),
        vision_mask=vision_mask,
        attention_mask=None,
        position_ids=rows.position_ids[:, :, own],
        frame_sizes=frame_sizes,
    )
    return StepPart(piece.num_rows, build_step(method, tokens))
