"""Frames of rendered videos, drawn in one pass over the bytes that are written.

A program draws a run of pixels of one frame. Products and sums are rounded one by one, never
fused, so that the bytes are those of numpy. Letters: N frames of S x S pixels, M placements of K
stamps.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from videonsa.ops.triton.common import on_device

PIXELS = 1024
"""Of a program."""
NUM_WARPS = 8
"""A thread has four pixels, whose bytes of one colour are stored at once."""


class Canvas(NamedTuple):
    """All that frames show but noise; int32 where it is not float32."""

    shade: Tensor  # float32 [S]
    background: Tensor  # float32 [N, 3]
    noise_of: Tensor  # [N]
    shifts: Tensor  # [N, 2]
    ends: Tensor  # [N + 1]
    places: Tensor  # [M, 3]: stamp, top, left
    table: Tensor  # [K, 4]: of each stamp's mask: where it begins, height, width, pixels a value
    colours: Tensor  # float32 [K, 3]
    masks: Tensor  # float32: keep [h, w], then ink [h, w], of each


@triton.jit
def _byte(b_level):
    """Rounded half to even: floats from 2^23 on have no fraction."""
    b_level = tl.minimum(tl.maximum(b_level, 0.0), 255.0)
    return ((b_level + 8388608.0) - 8388608.0).to(tl.uint8)


@triton.jit
def _draw_kernel(
    frames,  # [N, 3, S, S]
    shade,
    background,
    noise_of,
    shifts,
    ends,
    places,
    table,
    colours,
    masks,
    fields,  # [F, 3, SIDE, SIDE], or None
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    PIXELS: tl.constexpr,
):
    i_frame = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * PIXELS
    o_pixel = first + tl.arange(0, PIXELS)
    m_pixel = o_pixel < SIZE * SIZE
    o_row, o_column = o_pixel // SIZE, o_pixel % SIZE
    b_shade = tl.load(shade + o_row, mask=m_pixel, other=0.0)
    p_background = background + 3 * i_frame
    b_red = tl.load(p_background) * b_shade
    b_green = tl.load(p_background + 1) * b_shade
    b_blue = tl.load(p_background + 2) * b_shade
    first_row, last_row = first // SIZE, (first + PIXELS - 1) // SIZE
    for i_place in range(tl.load(ends + i_frame), tl.load(ends + i_frame + 1)):
        i_stamp = tl.load(places + 3 * i_place)
        top, left = tl.load(places + 3 * i_place + 1), tl.load(places + 3 * i_place + 2)
        height, width = tl.load(table + 4 * i_stamp + 1), tl.load(table + 4 * i_stamp + 2)
        scale = tl.load(table + 4 * i_stamp + 3)
        if (top <= last_row) & (top + height * scale > first_row):
            y, x = o_row - top, o_column - left
            m_stamp = (y >= 0) & (y < height * scale) & (x >= 0) & (x < width * scale) & m_pixel
            p_mask = masks + tl.load(table + 4 * i_stamp) + (y // scale) * width + x // scale
            b_keep = tl.load(p_mask, mask=m_stamp, other=1.0)
            b_ink = tl.load(p_mask + height * width, mask=m_stamp, other=0.0)
            p_colour = colours + 3 * i_stamp
            b_red = b_red * b_keep + tl.load(p_colour) * b_ink
            b_green = b_green * b_keep + tl.load(p_colour + 1) * b_ink
            b_blue = b_blue * b_keep + tl.load(p_colour + 2) * b_ink
    if fields is not None:
        top, left = tl.load(shifts + 2 * i_frame), tl.load(shifts + 2 * i_frame + 1)
        p_field = fields + tl.load(noise_of + i_frame).to(tl.int64) * (3 * SIDE * SIDE)
        p_noise = p_field + (o_row + top) * SIDE + o_column + left
        b_red += tl.load(p_noise, mask=m_pixel, other=0.0)
        b_green += tl.load(p_noise + SIDE * SIDE, mask=m_pixel, other=0.0)
        b_blue += tl.load(p_noise + 2 * SIDE * SIDE, mask=m_pixel, other=0.0)
    p_frame = frames + i_frame * (3 * SIZE * SIZE) + o_pixel
    tl.store(p_frame, _byte(b_red), mask=m_pixel)
    tl.store(p_frame + SIZE * SIZE, _byte(b_green), mask=m_pixel)
    tl.store(p_frame + 2 * SIZE * SIZE, _byte(b_blue), mask=m_pixel)


def draw_into(frames: Tensor, canvas: Canvas, fields: Tensor | None) -> None:
    """Draw frames.

    Args:
        frames: uint8 `[N, 3, S, S]` contiguous, N > 0: what is written.
        canvas: what they show.
        fields: float32 `[F, 3, side, side]` contiguous: of the noise; None: without.
    """
    num_frames, _, size, _ = frames.shape
    grid = (num_frames, triton.cdiv(size * size, PIXELS))
    with on_device(frames):
        _draw_kernel[grid](
            frames,
            *canvas,
            fields,
            SIZE=size,
            SIDE=size if fields is None else fields.shape[-1],
            PIXELS=PIXELS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
