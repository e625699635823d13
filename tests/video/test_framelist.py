"""`FrameList`: what can be the frames of a video, and what is refused in one line."""

import numpy as np
import pytest
import torch
from PIL import Image

from videonsa import FrameList, SamplingSpec, read_video
from videonsa.errors import UsageError

FRAMES = np.random.default_rng(0).integers(0, 256, (6, 56, 84, 3), dtype=np.uint8)
ALL = SamplingSpec(num_frames=len(FRAMES))


def forms():
    """The same frames in every way that they can be passed."""
    tensor = torch.from_numpy(FRAMES)
    return {
        "array": FRAMES,
        "array, channels first": np.ascontiguousarray(FRAMES.transpose(0, 3, 1, 2)),
        "tensor": tensor,
        "tensor, channels first": tensor.permute(0, 3, 1, 2),
        "floats": FRAMES / 255,
        "float32 tensor": tensor.float() / 255,
        "list of arrays": list(FRAMES),
        "tuple of tensors": tuple(tensor.permute(0, 3, 1, 2)),
        "images": [Image.fromarray(frame) for frame in FRAMES],
    }


@pytest.mark.parametrize("form", forms())
def test_frames_in_memory_are_a_video(form):
    frames = forms()[form]
    clip = read_video(FrameList(frames, fps=4.0), sampling=ALL)
    assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), FRAMES)
    assert clip.times == (0.0, 0.25, 0.5, 0.75, 1.0, 1.25)
    assert (clip.info.duration, clip.info.fps, clip.info.container) == (1.5, 4.0, "list")
    assert torch.equal(read_video(frames, sampling=ALL).frames, clip.frames)
    assert read_video(frames, sampling=ALL).info.fps == 2.0


def test_bfloat16_and_float16_are_floats():
    for dtype in (torch.bfloat16, torch.float16):
        clip = read_video(torch.zeros(2, 3, 56, 84, dtype=dtype))
        assert clip.frames.max() == 0


def test_frames_with_times_of_their_own_are_each_taken_once():
    times = (100.0, 101.0, 105.0, 105.5, 109.0, 110.0)
    clip = read_video(FrameList(FRAMES, times=times))
    assert clip.times == times
    assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), FRAMES)
    assert clip.position_times == times
    assert read_video(FrameList(FRAMES, times=times), sampling=SamplingSpec(start=105.0)).times == (
        105.0,
        105.5,
        109.0,
        110.0,
    )


def test_times_that_follow_a_rate_are_that_rate():
    given = read_video(FrameList(FRAMES, times=[0, 0.5, 1.0, 1.5, 2.0, 2.5]))
    rate = read_video(FrameList(FRAMES, fps=2.0))
    assert (given.times, given.position_times, given.info) == (
        rate.times,
        rate.position_times,
        rate.info,
    )


def test_a_folder_has_the_rate_that_is_given(tmp_path):
    for index, frame in enumerate(FRAMES):
        Image.fromarray(frame).save(tmp_path / f"{index}.png")
    clip = read_video(FrameList(str(tmp_path), fps=25.0), sampling=ALL)
    assert clip.times == tuple(index / 25 for index in range(6))
    assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), FRAMES)
    with pytest.raises(UsageError, match="a file with a frame rate: want a folder"):
        read_video(FrameList(tmp_path / "0.png", fps=25.0))


def test_images_of_a_list_that_sampling_leaves_out_are_told():
    assert read_video(FRAMES[:5]).notes[0] == (
        "4 of 5 images are taken, as sampling says: ask for num_frames=5"
    )
    assert not read_video(FRAMES[:4]).notes


@pytest.mark.parametrize(
    ("frames", "what"),
    [
        ([], "a list of no frames"),
        (None, "frames came as NoneType"),
        ({"a": 1}, "frames came as dict"),
        ((frame for frame in FRAMES), "frames came as generator"),
        ([None], "a frame came as NoneType"),
        ([[FRAMES[0]]], "a frame came as list"),
        ([b"png"], "a frame came as bytes"),
        (FRAMES[0], r"uint8 \[56, 84, 3\]: want \[N, H, W, 3\]"),
        (FRAMES[..., :2], r"\[6, 56, 84, 2\]: want"),
        (FRAMES[:, :0], "want"),
        ([FRAMES[0, ..., 0]], r"\[56, 84\]: want \[H, W, 3\]"),
        (FRAMES.astype(np.int64), "came as int64: want uint8"),
        (FRAMES.astype(np.float32), "float32 from 0 to 255: want floats from 0 to 1"),
        (np.full((1, 8, 8, 3), np.nan), "from nan to nan"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.bool), "torch.bool: want uint8"),
    ],
)
def test_what_are_no_frames_is_refused(frames, what):
    with pytest.raises(UsageError, match=what) as caught:
        FrameList(frames)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"fps": 0.0}, "fps=0.0: want a number above 0"),
        ({"fps": True}, "fps=True"),
        ({"fps": "2"}, "fps='2'"),
        ({"times": (0.0, 1.0)}, "2 times of 6 frames"),
        ({"times": (0, 1, 2, 4, 3, 5)}, "times 4, 3 of frames: want them ascending"),
        ({"times": (0, 1, 2, 3, 4, -5)}, "time -5 of a frame"),
        ({"times": "012345"}, "times came as str"),
        ({"times": range(6), "fps": 4.0}, "give one of them"),
    ],
)
def test_rates_and_times_that_are_none_are_refused(options, what):
    with pytest.raises(UsageError, match=what):
        FrameList(FRAMES, **options)


def test_times_of_a_folder_are_refused(tmp_path):
    with pytest.raises(UsageError, match="times of a folder"):
        FrameList(tmp_path, times=[0.0])


def test_an_image_of_an_interpreted_format_is_refused(tmp_path):
    path = tmp_path / "a.eps"
    Image.fromarray(FRAMES[0]).save(path)
    with Image.open(path) as image, pytest.raises(UsageError, match="a EPS image: want"):
        FrameList([image])


def test_lists_of_the_same_files_are_equal_and_pictures_are_themselves():
    assert FrameList(["a.png", "b.png"]) == FrameList(("a.png", "b.png"))
    assert hash(FrameList(["a.png"], fps=4.0)) == hash(FrameList(["a.png"], fps=4.0))
    assert FrameList(["a.png"], fps=4.0) != FrameList(["a.png"])
    assert FrameList(FRAMES) != FrameList(FRAMES)
