"""Resize and patchify against the Hugging Face processors.

`huggingface.npz` is what the torchvision processors gave (`scripts/make_processing_vectors.py`).
torch and torchvision share one bicubic kernel for 8-bit levels, whose vector units round
differently: so resized levels may differ by one between builds, and unresized ones not at all.
"""

import importlib.util
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from videonsa.video.processing import PatchedVideo, patchify, resize_frames
from videonsa.video.sampling import smart_resize

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests/fixtures/processing/huggingface.npz"
LEVEL = 1 / 255 / 0.26130258
"""One of 255 levels after normalisation, in the channel where it is largest."""
EXACT = 1e-6
MOST_LEVELS_OFF = 0.01
"""Share of values that may be a level off."""


def load_script() -> ModuleType:
    path = ROOT / "scripts/make_processing_vectors.py"
    spec = importlib.util.spec_from_file_location("make_processing_vectors", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = load_script()


def process(case: Any, frames: np.ndarray) -> PatchedVideo:
    height, width = smart_resize(
        case.height,
        case.width,
        factor=28,
        min_pixels=case.min_pixels,
        max_pixels=case.max_pixels,
    )
    return patchify(resize_frames(torch.from_numpy(frames), height=height, width=width))


def assert_within_a_level(actual: np.ndarray, expected: np.ndarray, *, resized: bool) -> None:
    error = np.abs(actual - expected)
    assert error.max() <= (LEVEL + EXACT if resized else EXACT)
    assert (error > EXACT).mean() <= MOST_LEVELS_OFF


@pytest.mark.parametrize("case", SCRIPT.CASES, ids=lambda case: case.name)
def test_patches_equal_those_of_the_torchvision_processors(case: Any) -> None:
    frames = SCRIPT.make_clip(case)
    with np.load(VECTORS) as stored:
        vectors = {name: stored[f"{case.name}/{name}"] for name in ("grid", "rows", "row_means")}
        assert zlib.crc32(frames.tobytes()) == stored[f"{case.name}/input_crc32"]
    patched = process(case, frames)
    pixels = patched.pixels.numpy()
    resized = not case.name.endswith("of_final_size")
    assert patched.grid == tuple(vectors["grid"])
    assert_within_a_level(pixels[SCRIPT.kept_rows(len(pixels))], vectors["rows"], resized=resized)
    tolerance = MOST_LEVELS_OFF * LEVEL if resized else EXACT
    np.testing.assert_allclose(pixels.mean(axis=1), vectors["row_means"], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    "case", [case for case in SCRIPT.CASES if not case.num_frames], ids=lambda case: case.name
)
def test_image_patches_equal_those_of_the_pillow_processor(case: Any) -> None:
    frames = SCRIPT.make_clip(case)
    processor = Qwen2VLImageProcessorPil(
        size={"shortest_edge": case.min_pixels, "longest_edge": case.max_pixels}
    )
    batch = processor(images=[frames[0].transpose(1, 2, 0)], return_tensors="np")
    patched = process(case, frames)
    assert patched.grid == tuple(batch["image_grid_thw"][0])
    error = np.abs(patched.pixels.numpy() - batch["pixel_values"])
    # Pillow weighs with more bits than torch: see test_processing.py.
    assert error.max() <= 3 * LEVEL + EXACT
    assert (error > LEVEL + EXACT).mean() <= MOST_LEVELS_OFF
