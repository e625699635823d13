"""Dense attention of a few rows over long keys: splits of the keys side by side, then their sum.

A few rows keep few multiprocessors busy, so the keys of a stretch are shared out among as many
programs as the whole GPU runs at a time. Their number depends on shapes alone; which keys each
takes, on a length that only the device knows. So the launches of one step serve every length, and
a CUDA graph can hold them.
"""

from typing import Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import (
    LOG2_E,
    descriptors,
    heads,
    load_head,
    load_rows,
    on_device,
    poison_of,
    scores,
    softmax_end,
    softmax_step,
    store_rows,
)
from videonsa.ops.triton.decode_tuning import CachedTuning, cached_tuning, major_capability
from videonsa.ops.triton.forward import num_multiprocessors
from videonsa.ops.triton.tuning import Config

Tunings: TypeAlias = tuple[CachedTuning, CachedTuning]
"""Of the keys of each sample, and of those that all share."""


class _Stretch(NamedTuple):
    """Keys that some rows read together: a stretch for each sample, or one for the rows of all."""

    k: Tensor  # [N, M, H, D]; N = 1 where all samples share them
    v: Tensor  # [N, M, H, D]
    lengths: Tensor  # [N] int32: keys that all rows see
    num_rows: int
    """Tokens that read each of the N."""
    num_new: int
    """Keys behind `lengths`, of which row t sees the first t + 1: `num_rows` or 0."""
    config: Config

    def num_tiles(self, group: int) -> int:
        """Tiles of rows over the same keys."""
        return int(triton.cdiv(self.num_rows * group, self.config.block_m))

    def num_splits(self, group: int) -> int:
        """As many as the GPU runs at a time, if each may get a tile of keys."""
        num, size, num_kv_heads, _ = self.k.shape
        programs = self.config.programs * num_multiprocessors(self.k.device)
        wanted = programs // (num * num_kv_heads * self.num_tiles(group))
        return max(1, min(wanted, int(triton.cdiv(size, self.config.block_n))))


@triton.jit(do_not_specialize=["num_splits", "num_rows", "num_new"])
def _split_kernel(
    q,  # heads of [R, HQ, D]
    k,  # heads of the first sample, [M, H, D]
    v,
    k_tma,  # descriptor of k, or None
    v_tma,
    samples,  # keys from sample to sample, of k and of v
    outputs,  # [splits, R, HQ, D] float32
    lses,  # [splits, R, HQ] float32
    lengths,  # [N]
    num_new,
    num_rows,
    num_splits,
    scale_log2,
    IS_CAUSAL: tl.constexpr,
    G: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    BLOCK_D: tl.constexpr = triton.next_power_of_2(D)
    HQ, H = q[3], k[3]
    # Tiles of rows that read the same keys lie side by side; the keys then come from L2.
    num_tiles = tl.cdiv(num_rows * G, BLOCK_M)
    i_tile, i_rest = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    i_h, i_split = i_rest % H, i_rest // H
    i_sample = tl.program_id(1)

    o_m, o_n, o_d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D)
    o_line = i_tile * BLOCK_M + o_m
    o_t, o_hq = o_line // G, i_h * G + o_line % G
    m_row = o_t < num_rows
    o_row = i_sample * num_rows + o_t
    num_all_rows = tl.num_programs(1) * num_rows
    o_out = (i_split.to(tl.int64) * num_all_rows + o_row) * HQ + o_hq

    p_q = q[0] + o_row[:, None].to(tl.int64) * q[1] + o_hq[:, None] * q[2] + o_d[None, :]
    b_q = load_rows(p_q, m_row, o_d, D)

    # Whole tiles of keys are shared out, so only the last split has some that not every row sees;
    # it has never more tiles than others.
    length = tl.load(lengths + i_sample)
    num_keys = length + num_new
    num_steps = tl.cdiv(num_keys, BLOCK_N)
    begin = tl.cdiv(i_split * num_steps, num_splits)
    end = tl.cdiv((i_split + 1) * num_steps, num_splits)
    if begin >= end:
        tl.store(lses + o_out, tl.full([BLOCK_M], float("-inf"), tl.float32), mask=m_row)
        return
    border = tl.maximum(tl.minimum(length // BLOCK_N, end), begin)

    b_m = tl.full([BLOCK_M], float("-inf"), tl.float32)
    b_l = tl.zeros([BLOCK_M], tl.float32)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    m_all = o_n >= 0
    start_k, start_v = i_sample * samples[0], i_sample * samples[1]
    for i_n in range(border - begin):
        start = (begin + i_n) * BLOCK_N
        b_k = load_head(k, k_tma, start_k + start, i_h, o_n, m_all, o_d, D)
        b_v = load_head(v, v_tma, start_v + start, i_h, o_n, m_all, o_d, D)
        b_acc, b_m, b_l = softmax_step(scores(b_q, b_k), b_v, b_acc, b_m, b_l, scale_log2)
    for i_n in tl.range(end - border, num_stages=1):
        # What lies behind the keys is anything: a weight of 0 would not keep NaN out of a sum.
        start = (border + i_n) * BLOCK_N
        o_key = start + o_n
        m_n = o_key < num_keys
        b_k = load_head(k, None, start_k + start, i_h, o_n, m_n, o_d, D)
        b_v = load_head(v, None, start_v + start, i_h, o_n, m_n, o_d, D)
        b_poison = poison_of(b_k.to(tl.float32)) + poison_of(b_v.to(tl.float32))
        b_v = tl.where((b_poison == 0.0)[:, None], b_v, 0.0)
        m_s = m_n[None, :]
        if IS_CAUSAL:
            m_s = m_s & (o_key[None, :] <= length + o_t[:, None])
        b_s = tl.where(m_s, scores(b_q, b_k) + b_poison[None, :], float("-inf"))
        b_acc, b_m, b_l = softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2)
    b_o, b_lse = softmax_end(b_acc, b_m, b_l)
    store_rows(outputs + o_out[:, None] * D + o_d[None, :], b_o, m_row, o_d, D)
    tl.store(lses + o_out, b_lse, mask=m_row)


@triton.jit(do_not_specialize=["num_lines", "num_splits"])
def _split_sum_kernel(
    outputs,  # [splits, R * HQ, D] float32
    lses,  # [splits, R * HQ] float32
    out,  # [R * HQ, D]
    num_lines,
    num_splits,
    D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    i_line = tl.program_id(0)
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    o_s = tl.arange(0, BLOCK_S)
    m_d = o_d < D
    b_max = float("-inf")
    b_sum = 0.0
    b_acc = tl.zeros([BLOCK_D], tl.float32)
    for start in range(0, num_splits, BLOCK_S):
        o_split = start + o_s
        m_s = o_split < num_splits
        o_out = o_split.to(tl.int64) * num_lines + i_line
        b_lse = tl.load(lses + o_out, mask=m_s, other=float("-inf"))
        p_o = outputs + o_out[:, None] * D + o_d[None, :]
        b_o = tl.load(p_o, mask=m_s[:, None] & m_d[None, :], other=0.0)
        # A split without keys has written nothing but its LSE.
        b_o = tl.where((b_lse == float("-inf"))[:, None], 0.0, b_o)
        b_new = tl.maximum(b_max, tl.max(b_lse, 0))
        b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_w = tl.exp2((b_lse - b_safe) * 1.4426950408889634)
        b_alpha = tl.exp2((b_max - b_safe) * 1.4426950408889634)
        b_acc = b_acc * b_alpha + tl.sum(b_w[:, None] * b_o, 0)
        b_sum = b_sum * b_alpha + tl.sum(b_w, 0)
        b_max = b_new
    b_out = b_acc / b_sum
    tl.store(out + i_line * D + o_d, b_out.to(out.dtype.element_ty), mask=m_d)


def cached_attention_triton(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    shared: tuple[Tensor, Tensor, Tensor] | None,
    *,
    tunings: Tunings | None = None,
) -> Tensor:
    """As `cached_attention`, which has checked the arguments.

    Args:
        q: `[N, T, HQ, D]`.
        k: `[N, M, H, D]`.
        v: `[N, M, H, D]`.
        starts: `[N]`.
        shared: k and v `[1, P, H, D]` and their length `[1]`.
        tunings: for the own and for the shared keys. Default: as measured for the device.
    """
    num_samples, num_rows, num_heads, dim = q.shape
    group = num_heads // k.shape[2]
    own, common = tunings or (
        _tuning(q, num_rows * group),
        _tuning(q, num_samples * num_rows * group),
    )
    stretches = [_stretch(k, v, starts, num_rows, num_rows, own.splits)]
    if shared is not None:
        stretches.append(_stretch(*shared, num_samples * num_rows, 0, common.splits))
    num_lines = num_samples * num_rows * num_heads
    num_splits = sum(stretch.num_splits(group) for stretch in stretches)
    outputs = torch.empty((num_splits, num_lines, dim), dtype=torch.float32, device=q.device)
    lses = torch.empty((num_splits, num_lines), dtype=torch.float32, device=q.device)
    flat = q.contiguous().flatten(0, 1)
    with on_device(q):
        first = 0
        for stretch in stretches:
            last = first + stretch.num_splits(group)
            _attend(flat, stretch, outputs[first:last], lses[first:last])
            first = last
        out = _summed(outputs, lses, q.dtype, own if shared is None else common)
    return out.view(q.shape)


def _tuning(q: Tensor, num_rows: int) -> CachedTuning:
    width = q.shape[3] * q.element_size()
    return cached_tuning(num_rows, width, capability=major_capability(q.device))


def _stretch(k: Tensor, v: Tensor, *rest: Any) -> _Stretch:
    return _Stretch(_in_keys(k), _in_keys(v), *rest)


def _in_keys(x: Tensor) -> Tensor:
    """Memory as the kernel reads it: only memory that no cache here has is copied."""
    stride_n, stride_m, _, stride_d = x.stride()
    return x if stride_d == 1 and (len(x) == 1 or stride_n % stride_m == 0) else x.contiguous()


def _attend(q: Tensor, stretch: _Stretch, outputs: Tensor, lses: Tensor) -> None:
    """Of q `[R, HQ, D]`, the results of each split: outputs `[splits, R * HQ, D]` and LSEs."""
    k, v, lengths, num_rows, num_new, config = stretch
    num_kv_heads, dim = k.shape[2:]
    group = q.shape[1] // num_kv_heads
    programs = stretch.num_tiles(group) * num_kv_heads * len(outputs)
    flat = [_in_one(x) for x in (k, v)]
    _split_kernel[(programs, len(k))](
        heads(q),
        *map(heads, flat),
        *descriptors(*((x, config.block_n) for x in flat), tma=config.tma),
        (k.stride(0) // k.stride(1), v.stride(0) // v.stride(1)),
        outputs,
        lses,
        lengths,
        num_new,
        num_rows,
        len(outputs),
        dim**-0.5 * LOG2_E,
        IS_CAUSAL=num_new > 0,
        G=group,
        D=dim,
        BLOCK_M=config.block_m,
        BLOCK_N=config.block_n,
        **config.launch,
    )


def _in_one(x: Tensor) -> Tensor:
    """Memory `[N, M, H, D]` of whole keys from sample to sample as one tensor `[R, H, D]`."""
    num, size = x.shape[:2]
    rows = (num - 1) * (x.stride(0) // x.stride(1)) + size
    return x.as_strided((rows, *x.shape[2:]), x.stride()[1:])


def _summed(outputs: Tensor, lses: Tensor, dtype: torch.dtype, tuning: CachedTuning) -> Tensor:
    """The outputs of the splits `[splits, L, D]`, weighted by their LSEs: `[L, D]`."""
    num_splits, num_lines, dim = outputs.shape
    out = torch.empty((num_lines, dim), dtype=dtype, device=outputs.device)
    block_s = min(tuning.sum_splits, triton.next_power_of_2(num_splits))
    block_d = min(tuning.sum_dims, triton.next_power_of_2(dim))
    _split_sum_kernel[(num_lines, triton.cdiv(dim, block_d))](
        outputs,
        lses,
        out,
        num_lines,
        num_splits,
        D=dim,
        BLOCK_S=block_s,
        BLOCK_D=block_d,
        num_warps=tuning.sum_warps,
    )
    return out
