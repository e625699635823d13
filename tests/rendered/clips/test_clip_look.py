"""What the embedded model was trained on is told from all else by its look."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch.nn.functional import interpolate

from videonsa.cli.demo import CLIP_SECONDS
from videonsa.rendered.clips import make_scene, make_still, render_scene, scene_seed
from videonsa.rendered.clips.clip_look import LONGEST_SECONDS, ClipLook
from videonsa.rendered.suite import SuiteSpec, make_script, render_frames


def is_clip(frames, times=None, *, part=48):
    """What is said of frames that come in parts of some length, two a second."""
    look = ClipLook()
    parts = list(look.watch(frames.split(part)))
    assert torch.equal(torch.cat(parts), frames)
    return look.is_clip([i / 2 for i in range(len(frames))] if times is None else times)


def clip(seed=0, *, seconds=24.0, noise=True):
    scene = make_scene(scene_seed("test", seed), duration=seconds)
    return render_scene(scene, [i / 2 for i in range(int(2 * seconds))], noise=noise)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [True, False])
def test_a_clip_of_the_training_set_is_one(seed, noise):
    assert is_clip(clip(seed, seconds=(8.0, 16.0, 24.0)[seed % 3], noise=noise))


@pytest.mark.parametrize("shade", [2, 10, 40, 78])
def test_every_ground_of_a_clip_is_known(shade):
    scene = replace(make_scene(scene_seed("test", 1), duration=24.0), background=(shade,) * 3)
    assert is_clip(render_scene(scene, [i / 2 for i in range(48)]))


def test_it_does_not_matter_how_the_frames_come():
    frames = clip()
    assert is_clip(frames, part=1) and is_clip(frames, part=7)
    assert is_clip(frames[:20]), "a stretch of a clip"


@pytest.mark.parametrize(
    "times",
    [
        [i / 4 for i in range(48)],
        [float(i) for i in range(48)],
        [0.0] * 48,
    ],
)
def test_frames_at_another_pace_are_none(times):
    assert not is_clip(clip(), times)


def test_the_times_of_a_file_may_be_off_a_little():
    assert is_clip(clip(), [round(i * 12.5) / 25 for i in range(48)])


def test_what_is_longer_or_larger_or_no_video_is_none():
    scene = make_scene(scene_seed("test", 1), duration=30.0)
    assert not is_clip(render_scene(scene, [i / 2 for i in range(60)]))
    assert not is_clip(interpolate(clip(), size=(140, 140)))
    assert not is_clip(interpolate(clip(), size=(84, 112)))
    assert not is_clip(clip()[:1])
    assert not ClipLook().is_clip([])
    assert LONGEST_SECONDS == CLIP_SECONDS


def test_an_empty_ground_is_no_clip():
    still = replace(make_still(3), objects=())
    assert not is_clip(render_scene(still, [0.0, 0.5]))


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
@pytest.mark.parametrize("kind", ["needle", "number", "direction", "distance"])
def test_a_video_of_the_suite_is_none(difficulty, kind):
    spec = SuiteSpec(num_frames=48, difficulty=difficulty, kinds=(kind,))
    for seed in (100, 106):
        assert not is_clip(render_frames(make_script(scene_seed("test", seed), spec=spec), 0, 48))


def noise(generator):
    return torch.randint(0, 256, (16, 3, 112, 112), generator=generator, dtype=torch.uint8)


def photos(generator, *, most=255):
    """Smooth fields of colour with grain."""
    fields = torch.rand(16, 3, 9, 9, generator=generator)
    fields = most * interpolate(fields, size=(112, 112), mode="bicubic")
    grain = 6 * torch.randn(16, 3, 112, 112, generator=generator)
    return (fields + grain).clamp(0, 255).to(torch.uint8)


def writing(_):
    """White on black, as at the end of a film."""
    frames = []
    for index in range(16):
        picture = Image.new("RGB", (112, 112))
        ImageDraw.Draw(picture).text((8, 40 - index), "A film by\nsomebody\nelse", fill="white")
        frames.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    return torch.stack(frames)


def bright(_):
    """The shapes of a clip on a light ground."""
    scene = replace(make_scene(scene_seed("test", 1), duration=24.0), background=(150, 150, 150))
    return render_scene(scene, [i / 2 for i in range(48)])


@pytest.mark.parametrize(
    "picture",
    [
        noise,
        photos,
        lambda generator: photos(generator, most=80),
        writing,
        bright,
        lambda _: torch.zeros(16, 3, 112, 112, dtype=torch.uint8),
        lambda _: torch.full((16, 3, 112, 112), 40, dtype=torch.uint8),
    ],
)
def test_what_shows_something_else_is_none(picture):
    assert not is_clip(picture(torch.Generator().manual_seed(0)))
