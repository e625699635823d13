"""Record what the Hugging Face Qwen2-VL processors make of fixed clips and images.

    python scripts/make_processing_vectors.py tests/fixtures/processing/huggingface.npz

Needs transformers and torchvision, which videonsa itself never imports. The inputs follow from
their seeds (`make_clip`), so the file holds only a few rows of each output, the mean of every row
and checksums of the inputs. The tests load this file for `CASES` and `make_clip`.
"""

import argparse
import json
import platform
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

NUM_ROWS = 8
"""Rows of a case that are kept whole."""


class Case(NamedTuple):
    """An input and the pixel budget of a frame; an image where num_frames is 0."""

    name: str
    num_frames: int
    height: int
    width: int
    min_pixels: int
    max_pixels: int


CASES = (
    Case("video_of_final_size", 4, 112, 140, 56 * 56, 50176),
    Case("video_16_9_down", 4, 360, 640, 56 * 56, 50176),
    Case("video_4_3_down", 2, 480, 640, 56 * 56, 50176),
    Case("video_portrait_down", 2, 320, 180, 56 * 56, 50176),
    Case("video_odd_size_odd_frames", 5, 121, 203, 56 * 56, 50176),
    Case("video_one_frame", 1, 97, 131, 56 * 56, 50176),
    Case("video_up", 3, 41, 63, 128 * 28 * 28, 768 * 28 * 28),
    Case("video_wide", 2, 30, 401, 56 * 56, 50176),
    Case("image_of_final_size", 0, 84, 112, 56 * 56, 1280 * 28 * 28),
    Case("image_down", 0, 333, 517, 56 * 56, 50176),
    Case("image_up", 0, 19, 33, 56 * 56, 1280 * 28 * 28),
)


def make_clip(case: Case) -> np.ndarray:
    """Draw the frames of a case, uint8 [N, 3, H, W]: flat tiles, hard edges and noise."""
    seed = zlib.crc32(case.name.encode())
    rng = np.random.Generator(np.random.PCG64(seed))
    num_frames = max(case.num_frames, 1)
    shape = (num_frames, 3, case.height, case.width)
    tiles = rng.integers(
        0, 256, size=(num_frames, 3, case.height // 9 + 1, case.width // 9 + 1), dtype=np.uint8
    )
    flat = tiles.repeat(9, axis=2).repeat(9, axis=3)[:, :, : case.height, : case.width]
    noise = rng.integers(0, 256, size=shape, dtype=np.uint8)
    noisy = np.arange(case.width) % 40 < 12
    return np.where(noisy, noise, flat)


def process(case: Case, frames: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Run the processor; gives pixels [P, 1176] float32 and the grid (t, h, w)."""
    import torch
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    size = {"shortest_edge": case.min_pixels, "longest_edge": case.max_pixels}
    tensor = torch.from_numpy(frames)
    if case.num_frames:
        processor = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False)
        batch = processor(videos=[tensor], do_sample_frames=False, return_tensors="pt")
        pixels, grid = batch["pixel_values_videos"], batch["video_grid_thw"]
    else:
        batch = Qwen2VLImageProcessor(size=size)(images=[tensor[0]], return_tensors="pt")
        pixels, grid = batch["pixel_values"], batch["image_grid_thw"]
    return pixels.cpu().float().numpy(), grid[0].tolist()


def kept_rows(num_patches: int) -> np.ndarray:
    """Give the indices of the rows that are kept whole, from the first to the last."""
    return np.unique(np.linspace(0, num_patches - 1, NUM_ROWS).round().astype(np.int64))


def main() -> None:
    """Run every case and write one npz."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    output = parser.parse_args().output

    import torch
    import torchvision
    import transformers

    versions = {
        "numpy": np.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "transformers": transformers.__version__,
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }
    arrays = {"versions": np.array(json.dumps(versions))}
    for case in CASES:
        frames = make_clip(case)
        pixels, grid = process(case, frames)
        arrays[f"{case.name}/input_crc32"] = np.array(zlib.crc32(frames.tobytes()), dtype=np.int64)
        arrays[f"{case.name}/grid"] = np.array(grid, dtype=np.int64)
        arrays[f"{case.name}/rows"] = pixels[kept_rows(len(pixels))]
        arrays[f"{case.name}/row_means"] = pixels.mean(axis=1, dtype=np.float64).astype(np.float32)
        print(f"{case.name}: {tuple(frames.shape)} -> {pixels.shape}, grid {grid}")
    output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(output, **arrays)
    print(f"{versions}\n{output}: {output.stat().st_size} bytes")


if __name__ == "__main__":
    main()
