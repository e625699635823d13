"""Frames of rendered videos, or their patches, drawn in one pass over what is written.

A program draws a run of pixels of one frame, in the order in which they are written. Products and
sums are rounded one by one, never fused, so that the bytes are those of numpy. Letters: N frames of
S x S pixels, M placements of K stamps.
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


class Patches(NamedTuple):
    """How frames are cut into patches, and what becomes of bytes."""

    levels: Tensor  # [3, 256]: of each byte of red, green and blue
    patch_size: int
    merge_size: int
    temporal_patch_size: int


@triton.jit
def _place_in_patches(o_pixel, SIZE: tl.constexpr, PATCH: tl.constexpr, MERGE: tl.constexpr):
    """Row and column of pixels that are numbered patch by patch, merged patches side by side."""
    TOKEN: tl.constexpr = PATCH * MERGE
    o_patch, o_inside = o_pixel // (PATCH * PATCH), o_pixel % (PATCH * PATCH)
    o_token, o_merged = o_patch // (MERGE * MERGE), o_patch % (MERGE * MERGE)
    o_row = o_token // (SIZE // TOKEN) * TOKEN + o_merged // MERGE * PATCH + o_inside // PATCH
    o_column = o_token % (SIZE // TOKEN) * TOKEN + o_merged % MERGE * PATCH + o_inside % PATCH
    return o_row, o_column


@triton.jit
def _store(out, b_level, levels, mask):
    """A colour rounded to bytes, half to even: floats from 2^23 on have no fraction."""
    b_level = (tl.minimum(tl.maximum(b_level, 0.0), 255.0) + 8388608.0) - 8388608.0
    if levels is None:
        tl.store(out, b_level.to(tl.uint8), mask=mask)
    else:
        tl.store(out, tl.load(levels + b_level.to(tl.int32), mask=mask), mask=mask)


@triton.jit
def _draw_kernel(
    out,  # frames [N, 3, S, S], or patches [.., 3, TEMPORAL, PATCH, PATCH]
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
    levels,  # [3, 256], or None: frames are written
    SIZE: tl.constexpr,
    SIDE: tl.constexpr,
    PATCH: tl.constexpr,
    MERGE: tl.constexpr,
    TEMPORAL: tl.constexpr,
    PIXELS: tl.constexpr,
):
    i_frame = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * PIXELS
    o_pixel = first + tl.arange(0, PIXELS)
    m_pixel = o_pixel < SIZE * SIZE
    if levels is None:
        o_row, o_column = o_pixel // SIZE, o_pixel % SIZE
    else:
        o_row, o_column = _place_in_patches(o_pixel, SIZE, PATCH, MERGE)
    # Frames are written row by row, patches by rows of merged ones.
    ROWS: tl.constexpr = 1 if levels is None else PATCH * MERGE
    first_row = first // (SIZE * ROWS) * ROWS
    last_row = (first + PIXELS - 1) // (SIZE * ROWS) * ROWS + ROWS - 1
    b_shade = tl.load(shade + o_row, mask=m_pixel, other=0.0)
    p_background = background + 3 * i_frame
    b_red = tl.load(p_background) * b_shade
    b_green = tl.load(p_background + 1) * b_shade
    b_blue = tl.load(p_background + 2) * b_shade
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
    if levels is None:
        COLOUR: tl.constexpr = SIZE * SIZE  # from one to the next
        p_out = out + i_frame * (3 * COLOUR) + o_pixel
        _store(p_out, b_red, None, m_pixel)
        _store(p_out + COLOUR, b_green, None, m_pixel)
        _store(p_out + 2 * COLOUR, b_blue, None, m_pixel)
    else:
        AREA: tl.constexpr = PATCH * PATCH
        STEP: tl.constexpr = TEMPORAL * AREA  # from a colour of a patch to the next
        p_out = out + i_frame // TEMPORAL * (3 * TEMPORAL * SIZE * SIZE)
        p_out += i_frame % TEMPORAL * AREA + o_pixel // AREA * (3 * STEP) + o_pixel % AREA
        _store(p_out, b_red, levels, m_pixel)
        _store(p_out + STEP, b_green, levels + 256, m_pixel)
        _store(p_out + 2 * STEP, b_blue, levels + 512, m_pixel)


def draw_into(
    out: Tensor, canvas: Canvas, fields: Tensor | None, patches: Patches | None = None
) -> None:
    """Draw frames, or their patches.

    Args:
        out: contiguous, what is written: uint8 `[N, 3, S, S]`, N > 0; or, for patches, their
            values in the dtype of the levels, N a multiple of `temporal_patch_size`.
        canvas: what the frames show.
        fields: float32 `[F, 3, side, side]` contiguous: of the noise; None: without.
        patches: None: frames are written.
    """
    num_frames, size = len(canvas.background), len(canvas.shade)
    grid = (num_frames, triton.cdiv(size * size, PIXELS))
    levels, patch, merge, temporal = patches or (None, 1, 1, 1)
    with on_device(out):
        _draw_kernel[grid](
            out,
            *canvas,
            fields,
            levels,
            SIZE=size,
            SIDE=size if fields is None else fields.shape[-1],
            PATCH=patch,
            MERGE=merge,
            TEMPORAL=temporal,
            PIXELS=PIXELS,
            num_warps=NUM_WARPS,
            enable_fp_fusion=False,
        )
