"""Resize and patchify against their definition, and prompts."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.video.processing import build_prompt, patchify, resize_frames

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
SPECIAL_IDS = {
    "<|im_start|>": 1001,
    "<|im_end|>": 1002,
    "<|vision_start|>": 1003,
    "<|vision_end|>": 1004,
    "<|image_pad|>": 1005,
    "<|video_pad|>": 1006,
}


VISION_NAMES = ("vision_start", "vision_end", "video_pad")


class ByteTokenizer:
    """UTF-8 bytes and the special tokens."""

    def encode(self, text: str, **options: bool) -> list[int]:
        return list(text.encode())

    def convert_tokens_to_ids(self, tokens: str) -> int:
        return SPECIAL_IDS[tokens]


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def clip(num_frames: int, height: int, width: int, *, seed: int = 0) -> SimpleNamespace:
    times = tuple(0.5 * i + 0.01 * seed for i in range(num_frames))
    return SimpleNamespace(frames=draw(num_frames, 3, height, width, seed=seed), times=times)


def patchify_by_hand(frames: Tensor, patch: int, merge: int, temporal: int) -> list[list[float]]:
    """One value at a time, from the definition of the order."""
    levels = frames.tolist()
    levels += [levels[-1]] * (-len(levels) % temporal)
    side = patch * merge
    height, width = len(levels[0][0]), len(levels[0][0][0])
    return [
        [
            (levels[t * temporal + f][c][y + i][x + j] / 255 - MEAN[c]) / STD[c]
            for c in range(3)
            for f in range(temporal)
            for i in range(patch)
            for j in range(patch)
        ]
        for t in range(len(levels) // temporal)
        for top in range(0, height, side)
        for left in range(0, width, side)
        for y in range(top, top + side, patch)
        for x in range(left, left + side, patch)
    ]


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "patch", "merge", "temporal"),
    [(4, 56, 84, 14, 2, 2), (3, 28, 56, 14, 2, 2), (1, 12, 6, 3, 2, 2), (5, 8, 12, 2, 1, 3)],
)
def test_patches_stand_in_the_defined_order(
    num_frames: int, height: int, width: int, patch: int, merge: int, temporal: int
) -> None:
    frames = draw(num_frames, 3, height, width)
    patched = patchify(frames, patch_size=patch, merge_size=merge, temporal_patch_size=temporal)
    expected = torch.tensor(patchify_by_hand(frames, patch, merge, temporal))
    torch.testing.assert_close(patched.pixels, expected, atol=1e-6, rtol=1e-5)
    grid = (math.ceil(num_frames / temporal), height // patch, width // patch)
    assert patched.grid == grid
    assert patched.num_tokens == math.prod(grid) // merge**2


def test_patchify_takes_frames_in_any_memory_layout_and_leaves_them_alone() -> None:
    frames = draw(3, 56, 56, 3).permute(0, 3, 1, 2)
    before = frames.clone()
    assert torch.equal(patchify(frames).pixels, patchify(frames.contiguous()).pixels)
    assert torch.equal(frames, before)


@pytest.mark.parametrize("size", [(56, 84), (33, 20), (200, 301), (7, 300), (2, 2)])
def test_resize_equals_pillow_bicubic_but_for_rounding(size: tuple[int, int]) -> None:
    height, width = size
    frames = draw(2, 3, 97, 131)
    resized = resize_frames(frames, height=height, width=width)
    images = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    pillow = [image.resize((width, height), Image.Resampling.BICUBIC) for image in images]
    expected = torch.from_numpy(np.stack(pillow)).permute(0, 3, 1, 2)
    assert resized.shape == (2, 3, height, width)
    assert resized.dtype == torch.uint8
    error = (resized.int() - expected.int()).abs()
    # torch weighs with 16 bits and Pillow with 32, which noise shows most.
    assert error.max() <= 3
    assert (error > 1).float().mean() <= 0.01


def test_resize_is_the_same_in_every_memory_layout() -> None:
    frames = draw(2, 97, 131, 3).permute(0, 3, 1, 2)
    resized = resize_frames(frames, height=28, width=56)
    assert torch.equal(resized, resize_frames(frames.contiguous(), height=28, width=56))


def test_resize_to_the_same_size_copies_nothing() -> None:
    frames = draw(2, 3, 56, 84)
    assert resize_frames(frames, height=56, width=84) is frames


def test_resize_of_many_frames_equals_one_at_a_time() -> None:
    frames = draw(3, 3, 61, 47)
    each = [resize_frames(frame[None], height=28, width=56) for frame in frames]
    assert torch.equal(resize_frames(frames, height=28, width=56), torch.cat(each))


@pytest.mark.parametrize(
    "frames",
    [draw(3, 56, 56), draw(2, 4, 56, 56), draw(2, 3, 56, 56).float(), draw(0, 3, 56, 56)],
    ids=["three dimensions", "four channels", "float", "no frame"],
)
def test_other_tensors_are_refused(frames: Tensor) -> None:
    with pytest.raises(UsageError, match=r"frames came as .*; wanted"):
        resize_frames(frames, height=28, width=28)
    with pytest.raises(UsageError, match=r"frames came as .*; wanted"):
        patchify(frames)


def test_sizes_without_a_whole_patch_are_refused() -> None:
    with pytest.raises(UsageError, match=r"58 x 56 px; wanted multiples of 28"):
        patchify(draw(2, 3, 58, 56))
    with pytest.raises(UsageError, match=r"28 x 1 px"):
        resize_frames(draw(2, 3, 58, 56), height=28, width=1)


def test_resize_elsewhere_than_on_the_cpu_is_refused() -> None:
    with pytest.raises(UsageError, match="frames came on meta"):
        resize_frames(draw(2, 3, 58, 56).to("meta"), height=28, width=28)


def test_prompt_holds_a_placeholder_for_every_merged_token() -> None:
    videos = [clip(5, 56, 84), clip(2, 28, 28, seed=1)]
    prompt = build_prompt(videos, "What?", tokenizer=ByteTokenizer())
    assert prompt.video_grid_thw is not None
    assert prompt.video_grid_thw.tolist() == [[3, 4, 6], [1, 2, 2]]
    assert prompt.input_ids.dtype == prompt.video_grid_thw.dtype == torch.int64
    ids = prompt.input_ids[0].tolist()
    start, pad, end = (
        SPECIAL_IDS[f"<|{name}|>"] for name in ("vision_start", "video_pad", "vision_end")
    )
    first = ids.index(start)
    assert ids[first : first + 23] == [start, *[pad] * 18, end, start, pad, end]
    assert ids.count(pad) == 19
    assert torch.equal(prompt.attention_mask, torch.ones_like(prompt.input_ids))
    assert prompt.labels is None


def test_prompt_joins_the_patches_of_all_videos() -> None:
    videos = [clip(5, 56, 84), clip(2, 28, 28, seed=1)]
    prompt = build_prompt(videos, "What?", tokenizer=ByteTokenizer())
    each = [patchify(video.frames).pixels for video in videos]
    assert torch.equal(prompt.pixel_values_videos, torch.cat(each))


def test_video_times_are_those_of_the_first_frame_of_each_temporal_patch() -> None:
    videos = [clip(5, 28, 28), clip(2, 28, 28, seed=1)]
    prompt = build_prompt(videos, "What?", tokenizer=ByteTokenizer())
    assert prompt.video_times == ((0.0, 1.0, 2.0), (0.01,))


def test_images_stand_before_videos_under_their_own_token() -> None:
    image = draw(3, 56, 28, seed=2)
    prompt = build_prompt([clip(2, 28, 28)], "What?", tokenizer=ByteTokenizer(), images=[image])
    ids = [token for token in prompt.input_ids[0].tolist() if token > 1002]
    assert ids == [1003, 1005, 1005, 1004, 1003, 1006, 1004]
    assert prompt.image_grid_thw is not None
    assert prompt.image_grid_thw.tolist() == [[1, 4, 2]]
    assert torch.equal(prompt.pixel_values, patchify(image[None]).pixels)


def test_prompt_without_vision_has_no_pixels() -> None:
    prompt = build_prompt([], "What?", tokenizer=ByteTokenizer())
    assert prompt.pixel_values_videos is prompt.video_grid_thw is prompt.pixel_values is None
    assert prompt.video_times == ()


def test_answer_makes_a_training_sample() -> None:
    prompt = build_prompt([clip(2, 28, 28)], "What?", tokenizer=ByteTokenizer(), answer="red")
    assert prompt.labels is not None
    assert prompt.labels.shape == prompt.input_ids.shape
    learned = prompt.labels[prompt.labels != -100]
    assert learned.tolist() == [*b"red", SPECIAL_IDS["<|im_end|>"]]


def test_prompt_moves_and_casts_its_pixels_only() -> None:
    prompt = build_prompt([clip(2, 28, 28)], "What?", tokenizer=ByteTokenizer(), answer="red")
    moved = prompt.to("meta", dtype=torch.bfloat16)
    assert moved.pixel_values_videos is not None
    assert moved.pixel_values_videos.dtype == torch.bfloat16
    assert moved.input_ids.dtype == torch.int64
    tensors = (moved.input_ids, moved.attention_mask, moved.video_grid_thw, moved.labels)
    assert all(tensor is not None and tensor.is_meta for tensor in tensors)
    assert moved.video_times == prompt.video_times


def test_clip_with_missing_times_is_refused() -> None:
    video = SimpleNamespace(frames=draw(3, 3, 28, 28), times=(0.0, 0.5))
    with pytest.raises(UsageError, match="3 frames and 2 times"):
        build_prompt([video], "What?", tokenizer=ByteTokenizer())
