"""Frames to the tensors that the model reads: resize and patchify.

Numerically the Qwen2-VL video processor of Hugging Face, with torch alone.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.errors import UsageError

# The CLIP statistics that Qwen2-VL normalises with, for RGB in 0..1.
_RGB_MEAN = (0.48145466, 0.4578275, 0.40821073)
_RGB_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_LEVEL = 255


@dataclass(frozen=True, slots=True)
class PatchedVideo:
    """The patches of one video or image.

    `pixels` is float32 [t * h * w, 3 * temporal_patch_size * patch_size**2], the merge_size x
    merge_size patches of a merged token standing together; `grid` is (t, h, w) in patches.
    """

    pixels: Tensor
    grid: tuple[int, int, int]


def _check_frames(frames: Tensor) -> None:
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.dtype != torch.uint8:
        raise UsageError(
            f"frames came as {frames.dtype} {tuple(frames.shape)}; "
            "wanted torch.uint8 [N, 3, H, W]; convert them to 8-bit RGB, channels first"
        )
    if 0 in frames.shape:
        raise UsageError(
            f"frames came as {tuple(frames.shape)}; wanted at least one frame of one pixel; "
            "check the video"
        )


def resize_frames(frames: Tensor, *, height: int, width: int) -> Tensor:
    """Resize frames as the Hugging Face processor does: bicubic, antialiased, on 8-bit levels.

    Args:
        frames: uint8 [N, 3, H, W], RGB.
        height: wanted height, pixels.
        width: wanted width, pixels.

    Returns:
        uint8 [N, 3, height, width]; `frames` itself where it has that size already.

    Raises:
        UsageError: frames of another type or shape, or a size under one pixel.

    """
    _check_frames(frames)
    if height < 1 or width < 1:
        raise UsageError(f"size came as {height} x {width} px; wanted at least 1 x 1; raise it")
    if frames.shape[-2:] == (height, width):
        return frames
    # Only the CPU kernel takes 8-bit levels; elsewhere round as it does.
    levels = frames if frames.device.type == "cpu" else frames.float()
    resized = F.interpolate(levels, size=(height, width), mode="bicubic", antialias=True)
    if resized.dtype != torch.uint8:
        resized = resized.round_().clamp_(0, _MAX_LEVEL).to(torch.uint8)
    return resized


def patchify(
    frames: Tensor, *, patch_size: int = 14, merge_size: int = 2, temporal_patch_size: int = 2
) -> PatchedVideo:
    """Normalise frames and cut them into patches, in the order of the Qwen2-VL processor.

    Patches run over time, then over merged tokens row by row, then over the patches of a merged
    token. Missing frames of the last temporal patch repeat the last frame, so an image is a video
    of one frame.

    Args:
        frames: uint8 [N, 3, H, W], RGB; H and W multiples of patch_size * merge_size.
        patch_size: height and width of a patch, pixels.
        merge_size: patches that a merged token spans along each side.
        temporal_patch_size: frames of a patch.

    Returns:
        The patches, on the device of `frames`.

    Raises:
        UsageError: frames of another type, shape or size.

    """
    _check_frames(frames)
    height, width = frames.shape[-2:]
    factor = patch_size * merge_size
    if height % factor or width % factor:
        raise UsageError(
            f"frames came as {height} x {width} px; wanted multiples of {factor}; "
            "resize them to the size of the sampling plan first"
        )
    if missing := -len(frames) % temporal_patch_size:
        frames = torch.cat([frames, frames[-1:].expand(missing, -1, -1, -1)])
    grid = (len(frames) // temporal_patch_size, height // patch_size, width // patch_size)
    cut = frames.reshape(
        grid[0],
        temporal_patch_size,
        3,
        height // factor,
        merge_size,
        patch_size,
        width // factor,
        merge_size,
        patch_size,
    )
    # [t, rows, columns, merged row, merged column, channel, frame, patch row, patch column]
    patches = cut.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(grid[0] * grid[1] * grid[2], 3, -1)
    mean = patches.new_tensor(_RGB_MEAN, dtype=torch.float32).mul_(_MAX_LEVEL)[:, None]
    std = patches.new_tensor(_RGB_STD, dtype=torch.float32).mul_(_MAX_LEVEL)[:, None]
    pixels = patches.float().sub_(mean).div_(std)
    return PatchedVideo(pixels=pixels.flatten(1), grid=grid)
