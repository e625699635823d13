"""Pieces that the kernels share: tiles loaded with padding, one step of the online softmax."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

LOG2_E = 1.4426950408889634


class Keys(NamedTuple):
    """Keys and values of a stream, or the means of its blocks, and which of them are not finite."""

    k: Tensor  # [S, H, D]
    v: Tensor  # [S, H, D]
    poison: Tensor | None  # [S, H] float32: NaN where k or v is not finite, else 0
    """None, as `poisoned`, where all rows of a tile may see the same."""
    poisoned: Tensor | None  # [1] int32: not 0 where any key is poisoned

    @property
    def arguments(self) -> tuple[Any, Any, Any]:
        """Three arguments of a kernel: `heads` of k and of v, and (poison, poisoned) or None."""
        poison = None if self.poison is None else (self.poison, self.poisoned)
        return heads(self.k), heads(self.v), poison


def heads(x: Tensor) -> tuple[Tensor, int, int, int]:
    """`[N, H, D]` as one argument of a kernel: x, its strides along N and H, and H.

    Kernels take plain tuples and unpack them: a launch binds one sooner than its values one by one,
    and a NamedTuple later. Integers are specialised as outside. Outside stay what changes from
    launch to launch, for `do_not_specialize`, and tensor descriptors, which the launcher does not
    find in a tuple. No tuple lies in another: Triton 3.6 forgets the constants of the inner one
    behind a `return`.
    """
    stride_n, stride_h, _ = x.stride()
    return x, stride_n, stride_h, x.shape[1]


@dataclass(frozen=True)
class _Compiler:
    """Stands for a kernel whose launches compile it, and run nothing."""

    kernel: Any

    def __getitem__(self, grid: Any) -> Callable[..., Any]:
        return partial(self.kernel.warmup, grid=grid)


def launcher(kernel: Any, x: Tensor) -> Any:
    """What launches a kernel on tensors like x: `launcher(kernel, x)[grid](...)`.

    Tensors without values (of the meta device) have it compiled for the current GPU, as for
    tensors there of the same shapes, and not launched.
    """
    return _Compiler(kernel) if x.is_meta else kernel


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be that of the tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


@triton.jit
def tile_rows(tiles, i_tile, SIZE: tl.constexpr):
    """First row and number of rows of a tile: from the table, or where samples are equally long.

    tiles is `Tiles.runs`.
    """
    table, rows_of_sample = tiles
    if table is None:
        per_sample = tl.cdiv(rows_of_sample, SIZE)
        i_sample = i_tile // per_sample
        in_sample = (i_tile - i_sample * per_sample) * SIZE
        first_row = i_sample * rows_of_sample + in_sample
        num_rows = tl.minimum(rows_of_sample - in_sample, SIZE)
    else:
        first_row, num_rows = tl.load(table + 2 * i_tile), tl.load(table + 2 * i_tile + 1)
    return first_row, num_rows


@triton.jit
def load_rows(p_x, m_row, o_d, D: tl.constexpr):
    """`[rows, len(o_d)]` from pointers; zeros in masked rows and beyond D."""
    if o_d.shape[0] == D:
        return tl.load(p_x, mask=m_row[:, None], other=0.0)
    return tl.load(p_x, mask=m_row[:, None] & (o_d[None, :] < D), other=0.0)


@triton.jit
def store_rows(p_x, b_x, m_row, o_d, D: tl.constexpr):
    """The counterpart of `load_rows`; rounds to the dtype of the memory."""
    if o_d.shape[0] == D:
        tl.store(p_x, b_x.to(p_x.dtype.element_ty), mask=m_row[:, None])
    else:
        m_x = m_row[:, None] & (o_d[None, :] < D)
        tl.store(p_x, b_x.to(p_x.dtype.element_ty), mask=m_x)


@triton.jit
def load_head(x, tma, start, i_h, o_n, m_n, o_d, D: tl.constexpr):
    """[N, D] of one head from `start` on; x of `heads`, tma a descriptor of such tiles or None.

    A descriptor reads the whole tile, also what the mask leaves out, and 0 beyond the end.
    """
    p_x, stride_n, stride_h, _ = x
    if tma is None:
        p_x = p_x + start.to(tl.int64) * stride_n + i_h * stride_h
        b_x = load_rows(p_x + (o_n[:, None] * stride_n + o_d[None, :]), m_n, o_d, D)
    else:
        b_x = tma.load([start, i_h * D])
    return b_x


@triton.jit
def load_group(x, first_row, first_head, o_t, o_g, m_row, o_d, D: tl.constexpr):
    """[M, D]: rows `first_row` + o_t [M] of the heads `first_head` + o_g [M]; x of `heads`."""
    p_x, stride_n, stride_h, _ = x
    p_x = p_x + first_row.to(tl.int64) * stride_n + first_head * stride_h
    o_x = o_t * stride_n + o_g * stride_h
    return load_rows(p_x + (o_x[:, None] + o_d[None, :]), m_row, o_d, D)


@triton.jit
def scores(b_q, b_k):
    """[M, D] @ [N, D]^T -> [M, N] float32."""
    return tl.dot(b_q, tl.trans(b_k), input_precision="ieee")


@triton.jit
def poison_of(b_x):
    """NaN for each row of b_x [N, D] float32 that is not finite, else 0: [N]."""
    return tl.sum(b_x * 0.0, 1)


@triton.jit
def is_any(b_m):
    """Whether one of the bits is set."""
    return tl.max(b_m.to(tl.int32), 0) != 0


@triton.jit
def clean_steps(poisoned, num_steps):
    """How many of the steps at a border may read all keys of their tile: all, or none."""
    return tl.where(tl.load(poisoned) == 0, num_steps, 0)


@triton.jit
def load_finite_head(x, poison, start, i_h, o_n, m_n, o_d, D: tl.constexpr):
    """As `load_head`, 0 where a key is not finite; and the poison [N] of the keys.

    For tiles that not every row sees, where something is poisoned: 0 times NaN is NaN, so a weight
    of 0 would not keep a value out of a sum. Rows that do see the key get its poison instead. Where
    poison is None, one row sees all keys of m_n.
    """
    p_x, stride_n, stride_h, H = x
    # Pointers of 64 bits are made anew for each tile: offsets would be kept through other loops.
    o_key = (start + o_n).to(tl.int64)
    if poison is None:
        b_poison = tl.zeros(o_n.shape, tl.float32)
    else:
        b_poison = tl.load(poison[0] + o_key * H + i_h, mask=m_n, other=0.0)
        m_n = m_n & (b_poison == 0.0)
    p_x = p_x + o_key[:, None] * stride_n + i_h * stride_h + o_d[None, :]
    return load_rows(p_x, m_n, o_d, D), b_poison


@triton.jit
def softmax_step(b_s, b_v, b_acc, b_m, b_l, scale_log2):
    """Online softmax in base 2 over one more tile of keys; masked scores are -inf.

    b_s [M, N], b_v [N, D], b_acc [M, D], b_m and b_l [M]; all but b_v float32.
    """
    b_new = tl.maximum(b_m, tl.max(b_s, 1) * scale_log2)
    b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.exp2(b_s * scale_log2 - b_safe[:, None])
    b_alpha = tl.exp2(b_m - b_safe)
    b_l = b_l * b_alpha + tl.sum(b_p, 1)
    b_acc = b_acc * b_alpha[:, None]
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
    return b_acc, b_new, b_l


@triton.jit
def softmax_step_of_rows(b_s, b_v, b_acc, b_m, b_l, m_row, scale_log2):
    """`softmax_step` for the rows of m_row [M] alone: a mask that costs nothing per score."""
    b_new = tl.maximum(b_m, tl.where(m_row, tl.max(b_s, 1) * scale_log2, float("-inf")))
    b_safe = tl.where(b_new == float("-inf"), 0.0, b_new)
    b_p = tl.exp2(b_s * scale_log2 - tl.where(m_row, b_safe, float("inf"))[:, None])
    b_alpha = tl.exp2(b_m - b_safe)
    b_l = b_l * b_alpha + tl.sum(b_p, 1)
    b_acc = b_acc * b_alpha[:, None]
    b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc, input_precision="ieee")
    return b_acc, b_new, b_l


@triton.jit
def softmax_end(b_acc, b_m, b_l):
    """Output [M, D] and natural-log LSE [M]; 0 and -inf for a row without keys."""
    b_some = tl.where(b_l == 0, 1.0, b_l)  # NaN stays NaN, in the LSE too
    b_lse = tl.where(b_l == 0, float("-inf"), (b_m + tl.log2(b_some)) * 0.6931471805599453)
    return b_acc * (1.0 / b_some)[:, None], b_lse


def descriptors(*sources: tuple[Tensor, int], tma: bool) -> list[TensorDescriptor | None]:
    """For `load_head`: of `[block_n, D]` tiles of each (`[S, H, D]`, block_n), or None for all.

    None where `tma` is off, or where one of the tensors cannot be read that way.
    """
    if not tma or not all(fits_tma(x) for x, _ in sources):
        return [None] * len(sources)
    return [_descriptor(x, block_n) for x, block_n in sources]


def _descriptor(x: Tensor, block_n: int) -> TensorDescriptor:
    num_keys, num_heads, dim = x.shape
    return TensorDescriptor(x, [num_keys, num_heads * dim], [x.stride(0), 1], [block_n, dim])


def fits_tma(x: Tensor) -> bool:
    """Whether `[S, H, D]` can be read by TMA: heads side by side, rows of whole 16 bytes."""
    dim = x.shape[2]
    aligned = x.stride(0) * x.element_size() % 16 == 0 and x.data_ptr() % 16 == 0
    return dim == triton.next_power_of_2(dim) and x.stride()[1:] == (dim, 1) and aligned


def needs_wide_offsets(x: Tensor) -> bool:
    """Whether offsets into x `[R, ...]` outgrow 32 bits, which cost fewer registers than 64."""
    return len(x) * x.stride(0) >= 2**31
