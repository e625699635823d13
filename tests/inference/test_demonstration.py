"""The embedded model says what it is where it is shown what it was not trained for."""

import av
import numpy as np
import pytest
import torch
from PIL import Image

import videonsa
from videonsa.inference.demonstration import DEMONSTRATION, OF_WHAT_COMES
from videonsa.rendered.clips import make_scene, render_scene, scene_seed, write_video
from videonsa.rendered.suite import SuiteSpec, make_script
from videonsa.rendered.suite.suite_frames import write_suite_video


@pytest.fixture(scope="module")
def qa():
    return videonsa.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A clip as `videonsa demo` writes it."""
    path = tmp_path_factory.mktemp("rendered") / "clip.mp4"
    write_video(make_scene(scene_seed("test", 3), duration=24.0, num_objects=3), path)
    return path


def notes_on(qa, video, **options):
    return qa.ask(video, "What flashed?", max_new_tokens=1, **options).usage.notes


def encoded_again(source, target, codec, *, size=112, pixels="yuv420p", rate=8):
    """The frames of a file, in another container, by another encoder, perhaps larger."""
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = write.add_stream(codec, rate=rate)
        stream.width = stream.height = size
        stream.pix_fmt = pixels
        for frame in read.decode(video=0):
            picture = frame.to_ndarray(format="rgb24", width=size, height=size)
            write.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        write.mux(stream.encode())
    return target


def test_a_clip_of_the_demo_is_what_it_knows(qa, clip):
    assert notes_on(qa, clip) == ()
    assert notes_on(qa, clip, start=4.0, end=16.0) == ()
    assert notes_on(qa, videonsa.read_video(clip, sampling=qa.sampling)) == ()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip.avi", {"codec": "mpeg4"}),
        ("motion.avi", {"codec": "mjpeg", "pixels": "yuvj420p"}),
        ("clip.mkv", {"codec": "ffv1"}),
        ("large.mp4", {"codec": "mpeg4", "size": 336}),
    ],
)
def test_so_is_one_in_another_container_and_size(qa, clip, tmp_path, name, options):
    assert notes_on(qa, encoded_again(clip, tmp_path / name, **options)) == ()


def test_so_is_a_folder_of_its_frames(qa, tmp_path):
    scene = make_scene(scene_seed("test", 5), duration=8.0)
    for index, frame in enumerate(render_scene(scene, [i / 2 for i in range(16)])):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(tmp_path / f"{index:02}.png")
    assert notes_on(qa, tmp_path) == ()


def test_a_clip_sampled_in_another_way_than_in_training_is_not(qa, clip):
    assert notes_on(qa, clip, fps=4.0) == (DEMONSTRATION,)
    assert notes_on(qa, clip, max_pixels=84 * 84) == (DEMONSTRATION,)


@pytest.mark.parametrize("seconds", [24, 64])
def test_a_video_of_the_suite_is_not(qa, tmp_path, seconds):
    spec = SuiteSpec(num_frames=2 * seconds, kinds=("needle",))
    path = tmp_path / "suite.mp4"
    write_suite_video(make_script(scene_seed("test", 108), spec=spec), path, fps=2)
    assert notes_on(qa, path) == (DEMONSTRATION,)


def test_a_video_of_something_else_is_not(qa, clip_path):
    assert notes_on(qa, clip_path) == (DEMONSTRATION,)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(16, 3, 14, 14, generator=generator).repeat_interleave(8, 2)
    grain = torch.rand(16, 3, 112, 112, generator=generator)
    frames = (200 * coarse.repeat_interleave(8, 3) + 50 * grain).to(torch.uint8)
    assert notes_on(qa, videonsa.FrameList(frames, fps=2.0)) == (DEMONSTRATION,)


def test_an_image_is_not_even_one_of_a_clip(qa):
    scene = make_scene(scene_seed("test", 5), duration=8.0)
    frame = render_scene(scene, [4.0])[0].permute(1, 2, 0).numpy()
    for image in (Image.fromarray(frame), Image.fromarray(np.zeros_like(frame))):
        assert notes_on(qa, image) == (DEMONSTRATION,)


def test_a_conversation_says_it_once_and_from_where_it_holds(qa, clip, clip_path):
    session = qa.open(clip)
    options = {"max_new_tokens": 1}
    assert session.ask("What flashed?", **options).usage.notes == ()
    for _ in range(2):
        session.join(clip_path)
        assert session.ask("What moves?", **options).usage.notes == (DEMONSTRATION,)


def test_of_frames_to_come_it_does_not_know(qa):
    session = qa.open_live()
    scene = make_scene(scene_seed("test", 5), duration=8.0)
    frames = render_scene(scene, [0.0, 0.5]).permute(0, 2, 3, 1).numpy()
    session.extend(list(frames), [0.0, 0.5])
    assert session.ask("What flashed?", max_new_tokens=1).usage.notes == (OF_WHAT_COMES,)


def test_no_other_model_says_so(tiny_folder, clip_path):
    assert notes_on(videonsa.load(tiny_folder, device="cpu"), clip_path) == ()
