"""The window branch, and the gated sum of the three branches in the same pass."""

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
    load_group,
    load_head,
    load_rows,
    scores,
    softmax_end,
    softmax_step,
    store_rows,
    tile_rows,
)
from videonsa.ops.triton.index import StreamIndex, Tiles
from videonsa.ops.triton.tuning import Config


@triton.jit
def _window_kernel(
    q,  # heads of [R, HQ, D]
    k,  # heads of [S, H, D]
    v,  # likewise
    poison,  # of `Keys`: [S, H], [1]
    k_tma,  # descriptor of k, or None
    v_tma,
    gates,  # [R, HQ, 3] and its strides
    o_cmp,  # [R, HQ, D], or None
    o_slc,  # [R, HQ, D], or None
    branch,  # o_win [R, HQ, D] and its LSE [R, HQ], written; or None
    output,  # [R, HQ, D]
    tiles,  # runs of `Tiles`
    rows,  # of `StreamIndex`
    block_start,  # [C]
    num_keys,
    window,
    scale_log2,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    TILE: tl.constexpr,
    USE_WIN: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    HQ, H = q[3], k[3]
    row_key, _, row_begin, _ = rows
    gates, stride_gr, stride_gh, stride_gb = gates
    i_tile, i_h = tl.program_id(0) // H, tl.program_id(0) % H
    first_row, num_rows = tile_rows(tiles, i_tile, TILE)
    if num_rows == 0:
        return
    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_t, o_g = o_m // G, o_m % G  # token and head of each row of the tile
    m_row = (o_t < TILE) & (o_t < num_rows)
    base = first_row.to(tl.int64)
    # Of these rows in the branches and the output.
    o_row = base * HQ + i_h * G + (o_t * HQ + o_g)
    b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if USE_WIN or branch is not None:
        key = tl.load(row_key + first_row)  # the keys of a tile's rows are consecutive
        sample = tl.load(block_start + tl.load(row_begin + first_row))
        begin, end = tl.maximum(key - window + 1, sample), key + num_rows
        # Every row sees the keys [all_begin, all_end); only the tiles of keys around need a mask.
        all_begin = tl.maximum(tl.minimum(key + num_rows - window, key + 1), begin)
        num_front = tl.cdiv(all_begin - begin, BLOCK_N)
        num_all = (key + 1 - all_begin) // BLOCK_N
        all_end = all_begin + num_all * BLOCK_N
        b_q = load_group(q, first_row, i_h * G, o_t, o_g, m_row, o_d, D)
        b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
        b_l = tl.zeros([BLOCK_M], tl.float32)
        for i_n in range(num_all):
            start = all_begin + i_n * BLOCK_N
            m_n = o_n < num_keys - start
            b_k = load_head(k, k_tma, start, i_h, o_n, m_n, o_d, D)
            b_v = load_head(v, v_tma, start, i_h, o_n, m_n, o_d, D)
            b_s = scores(b_q, b_k)
            b_sum, b_m, b_l = softmax_step(b_s, b_v, b_sum, b_m, b_l, scale_log2)
        num_border = num_front + tl.cdiv(end - all_end, BLOCK_N)
        num_clean = clean_steps(poison[1], num_border)
        for i_n in range(num_clean):
            # The front tiles end at all_begin: the first may begin before the sample, masked.
            start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
            m_n = (o_n < num_keys - start) & (o_n >= begin - start)
            b_k = load_head(k, k_tma, start, i_h, o_n, m_n, o_d, D)
            b_v = load_head(v, v_tma, start, i_h, o_n, m_n, o_d, D)
            b_behind = (key - start) + o_t[:, None] - o_n[None, :]
            m_s = (b_behind >= 0) & (b_behind < window) & (o_n >= begin - start)[None, :]
            b_s = tl.where(m_s, scores(b_q, b_k), float("-inf"))
            b_sum, b_m, b_l = softmax_step(b_s, b_v, b_sum, b_m, b_l, scale_log2)
        for i_n in tl.range(num_clean, num_border, num_stages=1):
            start = tl.where(i_n < num_front, all_begin, all_end) + (i_n - num_front) * BLOCK_N
            m_n = (o_n < end - start) & (o_n >= begin - start)
            b_k = load_head(k, k_tma, start, i_h, o_n, m_n, o_d, D)
            b_v, b_poison = load_finite_head(v, poison, start, i_h, o_n, m_n, o_d, D)
            b_behind = (key - start) + o_t[:, None] - o_n[None, :]
            m_s = (b_behind >= 0) & (b_behind < window) & (o_n >= begin - start)[None, :]
            b_s = tl.where(m_s, scores(b_q, b_k) + b_poison[None, :], float("-inf"))
            b_sum, b_m, b_l = softmax_step(b_s, b_v, b_sum, b_m, b_l, scale_log2)
        b_sum, b_lse = softmax_end(b_sum, b_m, b_l)
        if branch is not None:
            o_win, lse_win = branch
            store_rows(o_win + o_row[:, None] * D + o_d[None, :], b_sum, m_row, o_d, D)
            tl.store(lse_win + o_row, b_lse, mask=m_row)
    p_gate = gates + base * stride_gr + i_h * G * stride_gh + (o_t * stride_gr + o_g * stride_gh)
    if USE_WIN:
        b_gate = tl.load(p_gate + 2 * stride_gb, mask=m_row, other=0.0)
        b_sum = b_sum * b_gate.to(tl.float32)[:, None]
    else:
        b_sum = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if o_cmp is not None:
        b_o = load_rows(o_cmp + o_row[:, None] * D + o_d[None, :], m_row, o_d, D)
        b_gate = tl.load(p_gate, mask=m_row, other=0.0)
        b_sum += b_o.to(tl.float32) * b_gate.to(tl.float32)[:, None]
    if o_slc is not None:
        b_o = load_rows(o_slc + o_row[:, None] * D + o_d[None, :], m_row, o_d, D)
        b_gate = tl.load(p_gate + stride_gb, mask=m_row, other=0.0)
        b_sum += b_o.to(tl.float32) * b_gate.to(tl.float32)[:, None]
    store_rows(output + o_row[:, None] * D + o_d[None, :], b_sum, m_row, o_d, D)


def window_and_sum(
    q: Tensor,
    keys: Keys,
    gates: Tensor,
    o_cmp: Tensor | None,
    o_slc: Tensor | None,
    tiles: Tiles,
    index: StreamIndex,
    *,
    window_size: int,
    use_window: bool,
    return_branch: bool,
    config: Config,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gated sum `[R, HQ, D]`, and with `return_branch` o_win and its LSE.

    gates `[R, HQ, 3]`; a branch given as None takes no part. The heads of a group
    of the tokens of a tile fill at most `config.block_m` rows.
    """
    num_rows, num_heads, dim = q.shape
    num_kv_heads = keys.k.shape[1]
    output = torch.empty((num_rows, num_heads, dim), dtype=q.dtype, device=q.device)
    branch = None
    if return_branch:
        lse = output.new_empty((num_rows, num_heads), dtype=torch.float32)
        branch = (torch.empty_like(output), lse)
    sources = (keys.k, config.block_n), (keys.v, config.block_n)
    launcher(_window_kernel, q)[(tiles.num * num_kv_heads,)](
        heads(q),
        *keys.arguments,
        *descriptors(*sources, tma=config.tma),
        (gates, *gates.stride()),
        o_cmp,
        o_slc,
        branch,
        output,
        tiles.runs,
        index.rows,
        index.block_start,
        len(keys.k),
        window_size,
        dim**-0.5 * LOG2_E,
        G=num_heads // num_kv_heads,
        D=dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        TILE=tiles.size,
        USE_WIN=use_window,
        **config.launch,
    )
    return output, *(branch or (None, None))
