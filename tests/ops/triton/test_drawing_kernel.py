"""Frames that the kernel draws have the bytes of those that numpy draws."""

import numpy as np
import pytest
import torch

from videonsa.ops.drawing import (
    SHARED_FIELDS,
    Drawing,
    Mask,
    Noise,
    Stamp,
    by_kernel,
    draw_frames,
    draw_patches,
    join_drawings,
)
from videonsa.rendered.suite import DIFFICULTIES, SuiteSpec, drawing_of, make_script, suite_seed
from videonsa.video.processing import normalised_levels, patchify


def random_drawing(num_frames, *, size=112, seed=0, noise=True):
    """Stamps over one another, over the edges and out of sight; levels that end in a half."""
    rng = np.random.default_rng(seed)
    stamps = []
    for index in range(5):
        height, width = rng.integers(1, 20, 2)
        keep, ink = rng.random((2, height, width)).astype(np.float32)
        mask = Mask(name=(seed, index), keep=keep, ink=ink, scale=int(rng.integers(1, 4)))
        stamps += [Stamp(mask, tuple(rng.integers(-99, 400, 3) / 2.0)) for _ in range(2)]
    counts = rng.integers(0, 7, num_frames)
    num_places = int(counts.sum())
    lies = rng.integers(-70, size + 10, (num_places, 2))
    places = np.column_stack([rng.integers(0, len(stamps), num_places), lies])
    fields = (Noise(seed=seed % SHARED_FIELDS, size=size), Noise.of_one_video(99 + seed, size=size))
    return Drawing(
        size=size,
        background=rng.integers(0, 256, (num_frames, 3)).astype(np.float32) / 2,
        noise=fields if noise else (),
        noise_of=rng.integers(0, 2, num_frames, dtype=np.int32) * noise,
        shifts=rng.integers(0, 32, (num_frames, 2), dtype=np.int32),
        stamps=tuple(stamps),
        places=places.astype(np.int32),
        ends=np.concatenate([[0], counts.cumsum()]).astype(np.int32),
    )


def assert_same(drawing, device):
    wanted = draw_frames(drawing)
    found = by_kernel(drawing, device)
    assert found.dtype == torch.uint8 and found.shape == wanted.shape == drawing.shape
    assert torch.equal(found.cpu(), wanted)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_a_scripts_frames_are_the_same(difficulty, device):
    spec = SuiteSpec(num_frames=400, difficulty=difficulty)
    script = make_script(suite_seed("test", 1), spec=spec)
    shown = script.evidence
    seen = (shown.boxes[0], shown.flashes[0], shown.numbers[0], shown.objects[0])
    firsts = [int(2 * thing.start) for thing in seen]
    assert_same(join_drawings([drawing_of(script, i, i + 1) for i in firsts]), device)


def test_stamps_over_one_another_and_over_the_edges_are_the_same(device):
    assert_same(random_drawing(4), device)


def test_frames_without_noise_or_stamps_are_the_same(device):
    drawing = random_drawing(2, size=140, noise=False)
    assert_same(drawing, device)
    assert_same(join_drawings([drawing, random_drawing(1, size=140, seed=1, noise=False)]), device)
    bare = {"stamps": (), "places": np.zeros((0, 3), np.int32), "ends": np.zeros(3, np.int32)}
    assert_same(Drawing(**{name: getattr(drawing, name) for name in FIELDS} | bare), device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_patches_are_those_of_the_frames(dtype, device):
    drawing = random_drawing(4)
    levels = normalised_levels(device).to(dtype)
    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
    wanted = patchify(draw_frames(drawing), **sizes).pixels.to(dtype)
    assert torch.equal(draw_patches(drawing, levels, **sizes).cpu(), wanted)


FIELDS = ("size", "background", "noise", "noise_of", "shifts")


def test_joined_drawings_are_drawn_as_each_alone():
    drawings = [random_drawing(3, seed=seed) for seed in (1, 2, 1)]
    joined = join_drawings(drawings)
    assert len(joined.noise) == 4, "fields occur once"
    assert torch.equal(draw_frames(joined), torch.cat([draw_frames(x) for x in drawings]))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [112, 448])
def test_whole_videos_on_the_gpu_have_the_bytes_of_the_cpu(size, device):
    spec = SuiteSpec(num_frames=256 if size == 112 else 128, frame_size=size, difficulty="hard")
    scripts = [make_script(suite_seed("test", i), spec=spec) for i in range(3)]
    assert_same(join_drawings([drawing_of(x, 0, x.num_frames) for x in scripts]), device)
    assert_same(random_drawing(64, size=size), device)
