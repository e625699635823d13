"""Frames and a question to the tensors that the model reads: resize, patchify, prompt.

Numerically the Qwen2-VL processors of Hugging Face, with torch alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.video.chat import DEFAULT_SYSTEM, ChatTokenizer, VisionSlot, chat_tokens

# The CLIP statistics that Qwen2-VL normalises with, for RGB in 0..1.
RGB_MEAN = (0.48145466, 0.4578275, 0.40821073)
RGB_STD = (0.26862954, 0.26130258, 0.27577711)
_MAX_LEVEL = 255


Grid = tuple[int, int, int]
"""Temporal patches, rows and columns of patches."""


@dataclass(frozen=True, slots=True)
class PatchedVideo:
    """The patches of one video or image.

    `pixels` is float32 [t * h * w, 3 * temporal_patch_size * patch_size**2], the merge_size x
    merge_size patches of a merged token standing together; `grid` is (t, h, w) in patches;
    `num_tokens` counts merged tokens.
    """

    pixels: Tensor
    grid: Grid
    num_tokens: int


class Clip(Protocol):
    """What a prompt needs of a video: `VideoClip` has it.

    Its `position_times`, where it has some, stand for its times in the position ids.
    """

    @property
    def frames(self) -> Tensor:
        """Frames at their final size: uint8 [N, 3, H, W], RGB."""

    @property
    def times(self) -> Sequence[float]:
        """The true time of each frame, in seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoPrompt:
    """What the model reads for one chat; L tokens, P patches of V videos, Q of I images.

    Pixels and grids are None where the chat has no video, or no image; pixels also where the prompt
    is made of grids (`prompt_of_grids`).
    """

    input_ids: Tensor
    """int64 [1, L]."""
    attention_mask: Tensor
    """int64 [1, L], all 1."""
    pixel_values_videos: Tensor | None
    """float32 [P, 3 * temporal_patch_size * patch_size**2]."""
    video_grid_thw: Tensor | None
    """int64 [V, 3], in patches."""
    video_times: tuple[tuple[float, ...], ...]
    """Per video, the seconds of the first frame of each temporal patch, as position ids count."""
    pixel_values: Tensor | None = None
    """float32 [Q, 3 * temporal_patch_size * patch_size**2]."""
    image_grid_thw: Tensor | None = None
    """int64 [I, 3], in patches."""
    labels: Tensor | None = None
    """int64 [1, L] where an answer was given; -100 where the loss does not count."""

    def to(self, device: torch.device | str, *, dtype: torch.dtype | None = None) -> "VideoPrompt":
        """Move every tensor to a device, and cast the pixels where a dtype is given."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            pixel_values_videos=_move(self.pixel_values_videos, device, dtype),
            video_grid_thw=_move(self.video_grid_thw, device),
            pixel_values=_move(self.pixel_values, device, dtype),
            image_grid_thw=_move(self.image_grid_thw, device),
            labels=_move(self.labels, device),
        )


def _move(
    tensor: Tensor | None, device: torch.device | str, dtype: torch.dtype | None = None
) -> Tensor | None:
    return None if tensor is None else tensor.to(device=device, dtype=dtype)


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

    Both passes round to 8 bits, so the result differs from a resize in float at hard edges.

    Args:
        frames: uint8 [N, 3, H, W], RGB, on the CPU; of any memory layout.
        height: wanted height, pixels.
        width: wanted width, pixels.

    Returns:
        uint8 [N, 3, height, width]; `frames` itself where it has that size already.

    Raises:
        UsageError: frames of another type, shape or device, or a size under two pixels.

    """
    _check_frames(frames)
    if height < 2 or width < 2:
        # One pixel is where torch's 8-bit kernel mistakes the memory layout.
        raise UsageError(f"size came as {height} x {width} px; wanted at least 2 x 2; raise it")
    if frames.shape[-2:] == (height, width):
        return frames
    if frames.device.type != "cpu":
        raise UsageError(
            f"frames came on {frames.device}; wanted the CPU, where 8-bit levels are resized; "
            "resize them before they move"
        )
    return F.interpolate(frames, size=(height, width), mode="bicubic", antialias=True)


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
    frames = whole_patches(frames, temporal_patch_size)
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
    mean, std = (_levels(values, patches) for values in (RGB_MEAN, RGB_STD))
    pixels = patches.float().sub_(mean).div_(std)
    num_tokens = len(patches) // merge_size**2
    return PatchedVideo(pixels=pixels.flatten(1), grid=grid, num_tokens=num_tokens)


def normalised_levels(device: torch.device | str = "cpu") -> Tensor:
    """What `patchify` makes of each byte of red, green and blue: float32 [3, 256]."""
    levels = torch.arange(_MAX_LEVEL + 1.0, device=device).expand(3, -1)
    mean, std = (_levels(values, levels) for values in (RGB_MEAN, RGB_STD))
    return levels.sub(mean).div_(std)


def _levels(values: Sequence[float], like: Tensor) -> Tensor:
    """A value in 0..1 of each channel as levels, float32 `[3, 1]`; nothing comes from the host."""
    channels = [torch.full((1, 1), value, device=like.device) for value in values]
    return torch.cat(channels).mul_(_MAX_LEVEL)


def whole_patches(frames: Tensor, temporal_patch_size: int) -> Tensor:
    """Repeat the last of the frames `[..., N, 3, H, W]` until all temporal patches are full."""
    missing = -frames.shape[-4] % temporal_patch_size
    return (
        torch.cat([frames, *[frames[..., -1:, :, :, :]] * missing], dim=-4) if missing else frames
    )


def build_prompt(
    videos: Sequence[Clip],
    question: str,
    *,
    tokenizer: ChatTokenizer,
    system: str = DEFAULT_SYSTEM,
    history: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
    images: Sequence[Tensor] = (),
    patch_size: int = 14,
    merge_size: int = 2,
    temporal_patch_size: int = 2,
) -> VideoPrompt:
    """Put videos and a question into the Qwen2.5-VL chat format.

    Images, then videos, stand before the text of the first user turn.

    Args:
        videos: clips whose frames have the size of their plan already.
        question: what the user asks now; special tokens in it are plain text.
        tokenizer: a Hugging Face tokenizer with the tokens of the format.
        system: the system message.
        history: earlier turns, as pairs of question and answer.
        answer: given, the prompt is a training sample: it ends with the answer, and has labels.
        images: each uint8 [3, H, W], RGB, multiples of patch_size * merge_size.
        patch_size: height and width of a patch, pixels.
        merge_size: patches that a merged token spans along each side.
        temporal_patch_size: frames of a patch.

    Raises:
        UsageError: an empty question, frames of a wrong size, or not one time a frame.
        ModelError: a tokenizer of another format.

    """
    cut = partial(
        patchify,
        patch_size=patch_size,
        merge_size=merge_size,
        temporal_patch_size=temporal_patch_size,
    )
    for video in videos:
        check_times(video)
    cut_images = [cut(image[None]) for image in images]
    cut_videos = [cut(video.frames) for video in videos]
    prompt = prompt_of_grids(
        [video.grid for video in cut_videos],
        question,
        video_times=[
            getattr(video, "position_times", video.times)[::temporal_patch_size] for video in videos
        ],
        tokenizer=tokenizer,
        system=system,
        history=history,
        answer=answer,
        image_grids=[image.grid for image in cut_images],
        merge_size=merge_size,
    )
    return replace(
        prompt, pixel_values=_pixels(cut_images), pixel_values_videos=_pixels(cut_videos)
    )


def prompt_of_grids(
    video_grids: Sequence[Grid],
    question: str,
    *,
    video_times: Sequence[Sequence[float]],
    tokenizer: ChatTokenizer,
    system: str = DEFAULT_SYSTEM,
    history: Sequence[tuple[str, str]] = (),
    answer: str | None = None,
    image_grids: Sequence[Grid] = (),
    merge_size: int = 2,
) -> VideoPrompt:
    """The prompt that `build_prompt` makes, without pixels: for frames that are encoded elsewhere.

    Args:
        video_grids: (t, h, w) of each video, in patches.
        question: as for `build_prompt`.
        video_times: of each video, the seconds of the first frame of each temporal patch, as
            position ids count them.
        tokenizer: as for `build_prompt`.
        system: as for `build_prompt`.
        history: as for `build_prompt`.
        answer: as for `build_prompt`.
        image_grids: (1, h, w) of each image, in patches.
        merge_size: patches that a merged token spans along each side.

    Raises:
        UsageError: an empty question.
        ModelError: a tokenizer of another format.

    """
    area = merge_size**2
    vision = [VisionSlot("image", t * h * w // area) for t, h, w in image_grids]
    vision += [VisionSlot("video", t * h * w // area) for t, h, w in video_grids]
    tokens = chat_tokens(
        question, tokenizer=tokenizer, vision=vision, system=system, history=history, answer=answer
    )
    input_ids = torch.tensor([tokens.ids])
    return VideoPrompt(
        input_ids=input_ids,
        attention_mask=torch.ones_like(input_ids),
        pixel_values_videos=None,
        video_grid_thw=torch.tensor(video_grids) if video_grids else None,
        video_times=tuple(map(tuple, video_times)),
        image_grid_thw=torch.tensor(image_grids) if image_grids else None,
        labels=None if answer is None else torch.tensor([tokens.labels]),
    )


def check_times(video: Clip) -> None:
    """Refuse a clip that has not one time for each frame: UsageError."""
    if len(video.times) != len(video.frames):
        raise UsageError(
            f"video came with {len(video.frames)} frames and {len(video.times)} times; "
            "wanted one time a frame; give the seconds of every frame"
        )


def _pixels(parts: Sequence[PatchedVideo]) -> Tensor | None:
    if not parts:
        return None
    return parts[0].pixels if len(parts) == 1 else torch.cat([part.pixels for part in parts])
