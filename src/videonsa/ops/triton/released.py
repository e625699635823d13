"""The `released` preset by kernels: what the published code computes, in bounded memory.

Every group of 16 padded heads has one KV head, so the four groups go through one after the other,
each as an attention of its own: the compressed and the window branch and the dense text rows by
the kernel of the compressed branch (a row sees a range of keys), importance, order and selected
branch by the kernels below. The importance of a chunk of rows lies in a buffer of fixed size.

Rounding is that of `videonsa.ops.released`, to which docs/semantics.md binds it, in every place.
What differs is what a GPU cannot keep: the order of float32 sums, and the running maximum that the
softmax weights are taken against when they are rounded.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops import bitonic
from videonsa.ops.masks import ascending
from videonsa.ops.padded import (
    BLOCK_SIZE,
    NUM_KV_HEADS,
    NUM_QUERY_HEADS,
    PADDED_GROUP,
    PADDED_HEADS,
    mean_of_copies,
    num_slots,
    pad_heads,
    pool_all_blocks,
    within,
)
from videonsa.ops.spec import BRANCHES, NSAResult, NSASpec
from videonsa.ops.triton.common import (
    Keys,
    fits_tma,
    launcher,
    load_rows,
    scores,
    softmax_end,
    softmax_step,
    store_rows,
)
from videonsa.ops.triton.compressed import compressed
from videonsa.ops.triton.index import Tiles
from videonsa.ops.triton.tuning import Tuning, tuning_for

BLOCK = tl.constexpr(BLOCK_SIZE)
CHUNK_SLOTS = tl.constexpr(bitonic.CHUNK_SLOTS)
NUM_KEPT = tl.constexpr(bitonic.NUM_KEPT)
# They compile without spills; other shapes were not tried on a GPU.
SELECTED_WARPS, SELECTED_STAGES = 4, 2
ORDER_ROWS, ORDER_WARPS = 32, 4


@triton.jit
def _importance_kernel(
    q,  # [T, G, D], scaled and rounded
    k_cmp,  # [C, D]
    lse,  # [T, HP] float32, this group's columns: the misread LSE
    importance,  # [rows of the chunk, whole chunks of slots] float32
    first_row,
    num_rows,
    num_blocks,
    stride_lse,
    stride_out,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Sums over the heads of exp(score - LSE), for the blocks up to the last row's own."""
    i_n, i_m = tl.program_id(0), tl.program_id(1)
    last_row = tl.minimum(first_row + i_m * BLOCK_M + BLOCK_M, num_rows) - 1
    if i_n * CHUNK_SLOTS > last_row // BLOCK:
        return
    o_m, o_n = tl.arange(0, BLOCK_M), tl.arange(0, CHUNK_SLOTS)
    o_d = tl.arange(0, triton.next_power_of_2(D))
    o_row = (first_row + i_m * BLOCK_M + o_m).to(tl.int64)
    o_c = i_n * CHUNK_SLOTS + o_n
    m_row = o_row < num_rows
    p_k = k_cmp + o_c[:, None] * D + o_d[None, :]
    b_k = load_rows(p_k, o_c < num_blocks, o_d, D)
    b_sum = tl.zeros([BLOCK_M, CHUNK_SLOTS], tl.float32)
    # One head after the other: text rows tie exactly, so every column must sum in one order.
    for i_g in range(G):
        p_q = q + (o_row[:, None] * G + i_g) * D + o_d[None, :]
        b_q = load_rows(p_q, m_row, o_d, D)
        b_lse = tl.load(lse + o_row * stride_lse + i_g, mask=m_row, other=0.0)
        b_lse = tl.where(b_lse == float("-inf"), 0.0, b_lse) * 1.4426950408889634
        b_s = scores(b_q, b_k) * 1.4426950408889634
        b_sum += tl.exp2(b_s - b_lse[:, None])
    p_out = importance + (o_row - first_row)[:, None] * stride_out + o_c[None, :]
    tl.store(p_out, b_sum, mask=m_row[:, None])


@triton.jit
def _compare_exchange(b_x, m_flip, DISTANCE: tl.constexpr):
    """Orders slots i and i + DISTANCE by importance; equal pairs swap where m_flip is set.

    b_x [ROWS, 64] int64: the bits of the importance, which rank as it does, above block + 1.
    """
    b_pairs = tl.reshape(b_x, [b_x.shape[0], CHUNK_SLOTS // (2 * DISTANCE), 2, DISTANCE])
    b_other = tl.reshape(tl.sum(b_pairs, 2, keep_dims=True) - b_pairs, b_x.shape)
    m_right = ((tl.arange(0, CHUNK_SLOTS) // DISTANCE) % 2 == 1)[None, :]
    b_own_high, b_other_high = b_x >> 32, b_other >> 32
    m_greater = tl.where(m_right, b_other_high > b_own_high, b_own_high > b_other_high)
    return tl.where(m_greater != m_flip, b_other, b_x)


@triton.jit
def _stage(b_x, m_flip, STAGE: tl.constexpr):
    """Compare-exchanges at distances 2^(STAGE - 1) to 1."""
    for i_step in tl.static_range(STAGE):
        b_x = _compare_exchange(b_x, m_flip, 2 ** (STAGE - 1 - i_step))
    return b_x


@triton.jit
def _sort_slots(b_x, DESCENDING: tl.constexpr):
    """Stages 1 to 5 in alternating directions, stage 6 in one direction."""
    o_s = tl.arange(0, CHUNK_SLOTS)[None, :]
    for stage in tl.static_range(1, 6):
        b_x = _stage(b_x, (o_s >> stage) % 2 == 1, stage)
    return _stage(b_x, (o_s >= 0) == DESCENDING, 6)


@triton.jit
def _load_slots(p_row, m_row, current, i_chunk, FULL: tl.constexpr):
    """The slots of one chunk of blocks, [ROWS, 64] int64; empty ones beyond the current block."""
    o_c = i_chunk * CHUNK_SLOTS + tl.arange(0, CHUNK_SLOTS)[None, :]
    b_value = tl.load(p_row + o_c, mask=m_row[:, None] & (o_c < current), other=0.0)
    b_value = tl.where(o_c == current, FULL, b_value)
    b_index = tl.where(o_c <= current, o_c + 1, 0)
    return (b_value.to(tl.int32, bitcast=True).to(tl.int64) << 32) | b_index.to(tl.int64)


@triton.jit
def _order_kernel(
    importance,  # [rows of the chunk, whole chunks of slots] float32
    selected,  # [T, H, N] int32, this group's rows
    first_row,
    num_rows,
    stride_in,
    stride_out,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    FULL: tl.constexpr,
):
    """The first N blocks of each row as the network orders them; -1 in an empty slot.

    ROWS divides the block size, and chunks begin with a block: the rows of a program share one
    current block, and stop at its chunk of slots together.
    """
    o_local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    o_row = (first_row + o_local).to(tl.int64)
    m_row = o_row < num_rows
    current = (first_row + tl.program_id(0) * ROWS) // BLOCK
    p_row = importance + o_local.to(tl.int64)[:, None] * stride_in
    o_s = tl.arange(0, CHUNK_SLOTS)[None, :]
    b_best = _sort_slots(_load_slots(p_row, m_row, current, 0, FULL), DESCENDING=True)
    for i_chunk in range(1, current // CHUNK_SLOTS + 1):
        b_later = _sort_slots(_load_slots(p_row, m_row, current, i_chunk, FULL), DESCENDING=False)
        # Descending, then ascending: again a bitonic sequence, so one last stage sorts it.
        b_best = _stage(tl.where(o_s < NUM_KEPT, b_best, b_later), o_s >= 0, 6)
    b_block = (b_best & 0x7FFFFFFF).to(tl.int32) - 1
    p_out = selected + o_row[:, None] * stride_out + o_s
    tl.store(p_out, b_block, mask=m_row[:, None] & (o_s < N))


@triton.jit
def _selected_kernel(
    q,  # [T, G, D], scaled and rounded
    k,  # [T, D]
    v,  # [T, D]
    selected,  # [T, H, N] int32, this group's rows
    output,  # [T, G, D]
    lse,  # [T, G]
    stride_selected,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    N: tl.constexpr,
):
    """One row with all heads of the group walks its own blocks, up to itself."""
    row = tl.num_programs(0) - 1 - tl.program_id(0)
    o_g, o_n, o_d = tl.arange(0, G), tl.arange(0, BLOCK_N), tl.arange(0, triton.next_power_of_2(D))
    m_g = o_g < G
    o_q = row.to(tl.int64) * G * D + o_g[:, None] * D + o_d[None, :]
    b_q = load_rows(q + o_q, m_g, o_d, D)
    b_m = tl.full([G], float("-inf"), tl.float32)
    b_l = tl.zeros([G], tl.float32)
    b_acc = tl.zeros(b_q.shape, tl.float32)
    p_selected = selected + row.to(tl.int64) * stride_selected
    for i in range(N):
        block = tl.load(p_selected + i)
        o_key = block.to(tl.int64) * BLOCK_N + o_n
        m_n = (block >= 0) & (o_key <= row)
        b_k = load_rows(k + o_key[:, None] * D + o_d[None, :], m_n, o_d, D)
        b_v = load_rows(v + o_key[:, None] * D + o_d[None, :], m_n, o_d, D)
        b_s = tl.where(m_n[None, :], scores(b_q, b_k), float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, 1.4426950408889634)
    b_o, b_lse = softmax_end(b_acc, b_m, b_l)
    store_rows(output + o_q, b_o, m_g, o_d, D)
    tl.store(lse + row.to(tl.int64) * G + o_g, b_lse)


class _Sum:
    """The gated sum of the padded heads, and where asked for every branch that went into it."""

    def __init__(self, q: Tensor, gates: Tensor, branches: tuple[str, ...], *, keep: bool) -> None:
        num_rows, _, dim = q.shape
        padded = (num_rows, PADDED_HEADS, dim)
        self._gates = pad_heads(gates.to(q.dtype))  # [T, J, 16, 3]
        self._listed = [name in branches for name in BRANCHES]
        self._kept = [q.new_empty(padded) for _ in BRANCHES] if keep else []
        self.lse = q.new_empty((3, PADDED_HEADS, num_rows), dtype=torch.float32)
        self.total = q.new_zeros(padded)

    def wants(self, branch: int) -> bool:
        """Whether anybody needs the output of a branch."""
        return self._listed[branch] or bool(self._kept)

    def add(self, branch: int, group: int, output: Tensor, lse: Tensor) -> None:
        """Takes output `[T, 16, D]`, which is overwritten, and LSE `[T, 16]` of one group.

        The product with the gate and each sum are rounded, as the published code rounds them.
        """
        heads = slice(group * PADDED_GROUP, (group + 1) * PADDED_GROUP)
        self.lse[branch, heads] = lse.T
        if self._kept:
            self._kept[branch][:, heads] = output
        if self._listed[branch]:
            self.total[:, heads].add_(output.mul_(self._gates[:, group, :, branch, None]))

    def result(self, selected: Tensor) -> Tensor | NSAResult:
        """The mean over the copies of the heads `[T, 28, D]`, or all fields."""
        output = mean_of_copies(self.total)
        if not self._kept:
            return output
        lses = self.lse.transpose(1, 2)
        return NSAResult._make((output, *self._kept, *lses, ascending(selected)))


def released_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: Tensor,
    selected_blocks: Tensor | None,
    *,
    spec: NSASpec,
    return_branches: bool,
    tuning: Tuning | None = None,
) -> Tensor | NSAResult:
    """The gated NSA sum of the published code for all rows of a sequence.

    Beside inputs and results it holds the sum of the 64 padded heads, about three tensors of 16
    heads, the pooled keys and values, and `tuning.score_bytes` of importance.

    Args:
        q: `[T, 28, D]`, bfloat16 or float16 on a GPU.
        k: `[T, 4, D]`, likewise.
        v: `[T, 4, D]`, likewise.
        gates: `[T, 28, 3]` after the sigmoid, any floating dtype.
        selected_blocks: `[T, 4, n]` int, overrides the selection; entries that are negative or
            name no block are ignored, duplicates count once.
        spec: `NSASpec.released(...)`.
        return_branches: compute and return every branch, listed or not.
        tuning: default: that of the device.

    Returns:
        `[T, 28, D]` in the dtype of `q`, or an `NSAResult` without batch dimension.
    """
    tuning = tuning or tuning_for(BLOCK_SIZE, device=q.device)
    k_cmp, v_cmp = (pool_all_blocks(x[None]).to(x.dtype) for x in (k, v))  # [J, C, D]
    num_blocks = k_cmp.shape[1]
    total = _Sum(q, gates, spec.branches, keep=return_branches)
    selecting = selected_blocks is None and total.wants(1)
    if total.wants(0) or selecting:
        bounds = compressed_bounds(len(q), num_blocks, spec=spec, device=q.device)
        for group in range(NUM_KV_HEADS):  # the LSE of every group, before the first importance
            queries = _group_queries(q, group)
            o_cmp, lse = _over_ranges(queries, k_cmp[group], v_cmp[group], *bounds, tuning=tuning)
            total.add(0, group, o_cmp, lse)
    if selected_blocks is None:
        shape = (len(q), NUM_KV_HEADS, num_slots(spec))
        selected = torch.empty(shape, dtype=torch.int32, device=q.device)
    else:
        selected = ascending(within(selected_blocks, num_blocks)).contiguous()
    position = torch.arange(len(q), dtype=torch.int32, device=q.device)
    window = (position - (spec.window_size - 1)).clamp(min=0), position + 1
    for group in range(NUM_KV_HEADS):
        queries = _group_queries(q, group)
        keys, values = (x[:, group].contiguous() for x in (k, v))
        of_window = None
        if total.wants(2):
            of_window = _over_ranges(queries, keys, values, *window, tuning=tuning)
        if total.wants(1):
            queries *= q.shape[-1] ** -0.5  # in place: the window has read them unscaled
            if selecting:
                misread = total.lse[0].view(len(q), PADDED_HEADS)[:, group * PADDED_GROUP :]
                select_group(queries, k_cmp[group], misread, selected[:, group], tuning=tuning)
            total.add(1, group, *_selected(queries, keys, values, selected[:, group]))
        if of_window:  # last, as the published code adds it
            total.add(2, group, *of_window)
    return total.result(selected)


def dense_rows(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, *, tuning: Tuning | None = None
) -> Tensor:
    """Dense causal attention `[R, HQ, D]` of single rows over the keys up to their positions.

    q `[R, HQ, D]`, k and v `[S, H, D]`, positions `[R]` ascending.
    """
    tuning = tuning or tuning_for(BLOCK_SIZE, device=q.device)
    end = (positions + 1).int()
    q, k, v = (x.contiguous() for x in (q, k, v))
    return _over_ranges(q, k, v, torch.zeros_like(end), end, tuning=tuning)[0]


def select_group(
    q: Tensor, k_cmp: Tensor, misread_lse: Tensor, selected: Tensor, *, tuning: Tuning
) -> None:
    """Writes the blocks that one group of heads selects, in the order of the network.

    Args:
        q: `[T, G, D]` contiguous, scaled by 1 / sqrt(D) and rounded.
        k_cmp: `[C, D]` contiguous.
        misread_lse: `[T, >= G]` float32, natural logarithm; -inf counts as 0.
        selected: `[T, n]` int32, written; -1 in a slot that stayed empty.
        tuning: its `importance` and `score_bytes`.
    """
    num_rows, num_heads, dim = q.shape
    config = tuning.importance
    width = triton.cdiv(len(k_cmp), bitonic.CHUNK_SLOTS) * bitonic.CHUNK_SLOTS
    unit = max(config.block_m, BLOCK_SIZE)  # a chunk begins with a block
    chunk = max(1, tuning.score_bytes // (4 * width * unit)) * unit
    chunk = min(chunk, triton.cdiv(num_rows, unit) * unit)
    importance = torch.empty((chunk, width), dtype=torch.float32, device=q.device)
    for first in range(0, num_rows, chunk):
        rows = min(chunk, num_rows - first)
        grid = (width // bitonic.CHUNK_SLOTS, triton.cdiv(rows, config.block_m))
        launcher(_importance_kernel, q)[grid](
            q,
            k_cmp,
            misread_lse,
            importance,
            first,
            num_rows,
            len(k_cmp),
            misread_lse.stride(0),
            width,
            G=num_heads,
            D=dim,
            BLOCK_M=config.block_m,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
        order_blocks(importance, selected, first_row=first, full=float(num_heads))


def order_blocks(importance: Tensor, selected: Tensor, *, first_row: int, full: float) -> None:
    """Writes `bitonic_top` of the rows from `first_row` on, as many as fit in both.

    Args:
        importance: `[R, W]` float32 contiguous, not negative; W a multiple of 64. Its first row is
            that of `first_row`, which begins a block of 64 rows.
        selected: `[T, n]` int32; row t lies in block t // 64, and no later block is a candidate.
        first_row: a multiple of 64.
        full: importance of a row's own block.
    """
    num_rows = min(len(importance), len(selected) - first_row)
    launcher(_order_kernel, importance)[(triton.cdiv(num_rows, ORDER_ROWS),)](
        importance,
        selected,
        first_row,
        first_row + num_rows,
        importance.stride(0),
        selected.stride(0),
        N=selected.shape[1],
        ROWS=ORDER_ROWS,
        FULL=full,
        num_warps=ORDER_WARPS,
    )


def _selected(q: Tensor, k: Tensor, v: Tensor, selected: Tensor) -> tuple[Tensor, Tensor]:
    """Output `[T, G, D]` and LSE `[T, G]` of rows over the tokens of their blocks up to them.

    q `[T, G, D]` scaled, k and v `[T, D]`, all contiguous; selected `[T, n]` int32.
    """
    num_rows, num_heads, dim = q.shape
    output = torch.empty_like(q)
    lse = torch.empty((num_rows, num_heads), dtype=torch.float32, device=q.device)
    launcher(_selected_kernel, q)[(num_rows,)](
        q,
        k,
        v,
        selected,
        output,
        lse,
        selected.stride(0),
        G=num_heads,
        D=dim,
        BLOCK_N=BLOCK_SIZE,
        N=selected.shape[1],
        num_warps=SELECTED_WARPS,
        num_stages=SELECTED_STAGES,
    )
    return output, lse


def _over_ranges(
    q: Tensor, k: Tensor, v: Tensor, begin: Tensor, end: Tensor, *, tuning: Tuning
) -> tuple[Tensor, Tensor]:
    """Output `[R, HQ, D]` and LSE `[R, HQ]` of rows over the keys [begin, end) of each.

    q `[R, HQ, D]`, k and v `[S, H, D]` or, for one head, `[S, D]`; all contiguous. The bounds `[R]`
    int32 never fall.
    """
    config = tuning.compressed
    k, v = (x if x.dim() == 3 else x[:, None] for x in (k, v))
    tma = config.tma and fits_tma(k) and fits_tma(v)
    tiles = Tiles(None, triton.cdiv(len(q), config.block_m), config.block_m, len(q))
    return compressed(
        q, Keys(k, v, None, None), (begin, end), tiles, config=config._replace(tma=tma)
    )


def compressed_bounds(
    num_rows: int, num_blocks: int, *, spec: NSASpec, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The first block that each row sees and one past the last, int32 `[T]`."""
    row = torch.arange(num_rows, dtype=torch.int32, device=device)
    current, first = row // BLOCK_SIZE, torch.zeros_like(row)
    if spec.compressed_mask == "past_complete":
        return first, (row + 1) // BLOCK_SIZE
    if spec.compressed_mask == "past_and_current":
        return first, current + 1
    return current, torch.full_like(row, num_blocks)


def _group_queries(q: Tensor, group: int) -> Tensor:
    """The 16 padded heads of a group `[T, 16, D]`, of q `[T, 28, D]`."""
    first, real = group * PADDED_GROUP, 2 * NUM_QUERY_HEADS
    padded = torch.arange(first, min(first + PADDED_GROUP, real), device=q.device)
    heads = q.index_select(1, padded % NUM_QUERY_HEADS)
    missing = PADDED_GROUP - len(padded)
    return F.pad(heads, (0, 0, 0, missing)) if missing else heads
