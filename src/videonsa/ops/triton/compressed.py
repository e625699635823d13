"""The compressed branch: dense attention over the means of the blocks that a row sees."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    Keys,
    clean_steps,
    descriptors,
    heads,
    launcher,
    load_finite_head,
    load_head,
    scores,
    softmax_end,
    softmax_step,
    store_rows,
    tile_rows,
)
from videonsa.ops.triton.index import Tiles
from videonsa.ops.triton.tuning import Config


@triton.jit
def _compressed_kernel(
    q,  # heads of [R, HQ, D]
    k_cmp,  # heads of [C, H, D] contiguous
    v_cmp,  # likewise
    poison,  # of `Keys`: [C, H], [1]; or None
    k_tma,  # descriptor of k_cmp, or None
    v_tma,
    o_cmp,  # [R, HQ, D]
    lse_cmp,  # [R, HQ]
    tiles,  # runs of `Tiles`
    seen,  # [R] first block, [R] one past the last
    num_blocks,
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    HQ, H = q[3], k_cmp[3]
    row_begin, row_end = seen
    # Both are contiguous: strides that are partly known cost fewer registers.
    k_cmp, v_cmp = (k_cmp[0], H * D, D, H), (v_cmp[0], H * D, D, H)
    # Late rows see the most blocks: they start first.
    i_tile = tl.num_programs(0) // HQ - 1 - tl.program_id(0) // HQ
    i_hq = tl.program_id(0) % HQ
    i_h = i_hq // G
    first_row, num_rows = tile_rows(tiles, i_tile, BLOCK_M)
    if num_rows == 0:
        return
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    m_row = o_m < num_rows
    b_begin = tl.load(row_begin + first_row + o_m, mask=m_row, other=0)
    b_end = tl.load(row_end + first_row + o_m, mask=m_row, other=0)
    begin = tl.load(row_begin + first_row)
    end = tl.load(row_end + first_row + num_rows - 1)
    # Every row of the tile sees [all_begin, all_end); only the tiles of keys around it need a mask.
    num_front = tl.cdiv(tl.load(row_begin + first_row + num_rows - 1) - begin, BLOCK_N)
    all_begin = begin + num_front * BLOCK_N
    num_all = tl.maximum(tl.load(row_end + first_row) - all_begin, 0) // BLOCK_N
    all_end = all_begin + num_all * BLOCK_N

    base = first_row.to(tl.int64)
    b_q = load_head(q, None, first_row, i_hq, o_m, m_row, o_d, D)
    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for i_n in range(num_all):
        start = all_begin + i_n * BLOCK_N
        m_n = o_n < num_blocks - start
        b_k = load_head(k_cmp, k_tma, start, i_h, o_n, m_n, o_d, D)
        b_v = load_head(v_cmp, v_tma, start, i_h, o_n, m_n, o_d, D)
        b_s = scores(b_q, b_k)
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    num_border = num_front + tl.cdiv(tl.maximum(end - all_end, 0), BLOCK_N)
    num_clean = 0
    if poison is not None:
        num_clean = clean_steps(poison[1], num_border)
    for i_n in range(num_clean):
        start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
        m_n = o_n < num_blocks - start
        b_k = load_head(k_cmp, k_tma, start, i_h, o_n, m_n, o_d, D)
        b_v = load_head(v_cmp, v_tma, start, i_h, o_n, m_n, o_d, D)
        o_c = start + o_n
        m_s = (o_c[None, :] >= b_begin[:, None]) & (o_c[None, :] < b_end[:, None])
        b_s = tl.where(m_s, scores(b_q, b_k), float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    for i_n in tl.range(num_clean, num_border, num_stages=1):
        start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
        m_n = o_n < num_blocks - start
        b_k = load_head(k_cmp, k_tma, start, i_h, o_n, m_n, o_d, D)
        o_c = start + o_n
        b_v, b_poison = load_finite_head(v_cmp, poison, start, i_h, o_n, o_c < end, o_d, D)
        m_s = (o_c[None, :] >= b_begin[:, None]) & (o_c[None, :] < b_end[:, None])
        b_s = tl.where(m_s, scores(b_q, b_k) + b_poison[None, :], float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    b_o, b_lse = softmax_end(b_acc, b_m, b_l)
    o_row = (base + o_m)[:, None] * HQ + i_hq
    store_rows(o_cmp + o_row * D + o_d[None, :], b_o, m_row, o_d, D)
    tl.store(lse_cmp + (base + o_m) * HQ + i_hq, b_lse, mask=m_row)


def compressed(
    q: Tensor, means: Keys, seen: tuple[Tensor, Tensor], tiles: Tiles, *, config: Config
) -> tuple[Tensor, Tensor]:
    """o_cmp `[R, HQ, D]` and its LSE `[R, HQ]`: row r sees the blocks [seen[0][r], seen[1][r]).

    `tiles` are of `config.block_m` rows; both bounds never fall along the rows of a tile. `means`
    `[C, H, D]` are contiguous. They need no poison where a tile has one row, or where a row may see
    what the other rows of its tile see.
    """
    num_rows, num_heads, dim = q.shape
    num_blocks, num_kv_heads, _ = means.k.shape
    o_cmp = torch.empty((num_rows, num_heads, dim), dtype=q.dtype, device=q.device)
    lse_cmp = torch.empty((num_rows, num_heads), dtype=torch.float32, device=q.device)
    sources = (means.k, config.block_n), (means.v, config.block_n)
    launcher(_compressed_kernel, q)[(tiles.num * num_heads,)](
        heads(q),
        *means.arguments,
        *descriptors(*sources, tma=config.tma),
        o_cmp,
        lse_cmp,
        tiles.runs,
        seen,
        num_blocks,
        dim**-0.5 * LOG2_E,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        **config.launch,
    )
    return o_cmp, lse_cmp
