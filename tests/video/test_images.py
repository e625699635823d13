"""Animations, folders of mixed kinds and images that are not alike."""

import numpy as np
import pytest
from PIL import Image, features

from videonsa import SamplingSpec, read_video
from videonsa.errors import VideoError
from videonsa.video import images
from videonsa.video.decode import probe

COLOURS = [(20 * index, 255 - 20 * index, 90) for index in range(10)]
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")


def picture(index, size=(84, 56)):
    return Image.new("RGB", size, COLOURS[index])


def animate(path, *, count=10, **options):
    first, *others = (picture(index) for index in range(count))
    first.save(path, save_all=True, append_images=others, **options)
    return path


def greens_of(clip):
    return clip.frames[:, 1].float().mean((1, 2)).tolist()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.webp", {"lossless": True}),
        ("a.png", {}),
        pytest.param("a.avif", {"quality": 100, "subsampling": "4:4:4"}, marks=needs_avif),
    ],
)
def test_animated_images_are_videos(tmp_path, name, options):
    path = animate(tmp_path / name, duration=250, **options)
    info = probe(path)
    assert (info.duration, info.num_frames, info.fps) == (2.5, 10, 4.0)
    assert (info.width, info.height, info.container) == (84, 56, "animation")
    clip = read_video(path, sampling=SamplingSpec(num_frames=10))
    assert clip.times == tuple(index / 4 for index in range(10))
    assert greens_of(clip) == pytest.approx([255 - 20 * index for index in range(10)], abs=2)
    assert not clip.warnings
    late = read_video(path, sampling=SamplingSpec(num_frames=2, start=1.0, end=2.0))
    assert late.times == (1.0, 1.75)
    assert greens_of(late) == pytest.approx([255 - 20 * 4, 255 - 20 * 7], abs=2)


def test_frames_of_an_animation_last_as_long_as_they_say(tmp_path):
    path = animate(tmp_path / "a.webp", count=4, lossless=True, duration=[100, 300, 500, 1100])
    clip = read_video(path, sampling=SamplingSpec(num_frames=4))
    assert clip.times == (0.0, 0.1, 0.4, 0.9)
    assert clip.info.duration == 2.0
    assert clip.position_times == clip.times


def test_frames_without_a_duration_get_one_and_it_is_said(tmp_path):
    path = animate(tmp_path / "a.webp", count=4, lossless=True, duration=0)
    assert probe(path).duration == pytest.approx(0.4)
    assert probe(path).notes == ("frames that state no duration are taken as 100 ms",)


def test_the_picture_for_viewers_without_animation_is_left_out(tmp_path):
    path = animate(tmp_path / "a.png", count=5, duration=100, default_image=True)
    info = probe(path)
    assert info.num_frames == 4
    assert info.notes == ("its first picture is left out: it is for what shows no animations",)
    clip = read_video(path, sampling=SamplingSpec(num_frames=4))
    assert greens_of(clip) == [255 - 20 * index for index in (1, 2, 3, 4)]


def test_an_animation_that_breaks_off_gives_its_beginning_and_says_so(tmp_path):
    path = animate(tmp_path / "a.png", duration=100)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    info = probe(path)
    assert 1 <= info.num_frames < 10
    assert info.notes == (f"{info.num_frames} frames decode of the 10 stated",)
    clip = read_video(path, sampling=SamplingSpec(num_frames=info.num_frames))
    assert len(clip.frames) == info.num_frames


def test_an_endless_animation_is_refused(tmp_path, monkeypatch):
    path = animate(tmp_path / "a.webp", duration=100)
    monkeypatch.setattr(images, "MOST_ANIMATED_PIXELS", 9 * 84 * 56)
    with pytest.raises(VideoError, match="an animation of 10 frames of 84x56: want at most"):
        probe(path)


@pytest.mark.parametrize("name", ["pages.tif", "views.mpo.jpg"])
def test_of_pages_and_views_the_first_is_taken_and_it_is_said(tmp_path, name):
    animate(tmp_path / name, count=3, format="MPO" if "mpo" in name else None)
    clip = read_video(tmp_path / name)
    assert clip.info.is_image
    assert clip.notes == ("it is of several pictures, up to 3: the first of each is taken",)
    assert greens_of(clip) == pytest.approx([255], abs=2)


@needs_avif
def test_a_folder_of_mixed_kinds_is_taken_whole(tmp_path):
    for index, suffix in enumerate(["jpg", "avif", "png", "webp", "tif", "jfif"]):
        picture(index).save(tmp_path / f"{index}.{suffix}", quality=95)
    clip = read_video(tmp_path)
    assert greens_of(clip) == pytest.approx([255 - 20 * index for index in range(6)], abs=6)
    assert not clip.notes


def test_what_a_folder_holds_beside_images_is_named(tmp_path):
    for index in range(4):
        picture(index).save(tmp_path / f"{index}.png")
    for name in ("5.heic", "notes.txt", "labels.json", "z.bin", ".hidden"):
        (tmp_path / name).write_text("x")
    (tmp_path / "more.png").mkdir()
    clip = read_video(tmp_path)
    assert len(clip.frames) == 4
    assert clip.notes == (
        "passed over in the folder, as no images that are read here: 5.heic, labels.json, "
        "more.png and 2 more",
    )


def test_images_that_this_pillow_cannot_read_are_passed_over(tmp_path, monkeypatch):
    for index, suffix in enumerate(["png", "webp", "png", "png", "png"]):
        picture(index).save(tmp_path / f"{index}.{suffix}")
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    clip = read_video(tmp_path)
    assert len(clip.frames) == 4
    assert "passed over in the folder" in clip.notes[0]
    assert "1.webp" in clip.notes[0]


def test_a_folder_with_a_video_is_refused(tmp_path):
    picture(0).save(tmp_path / "thumbnail.jpg")
    (tmp_path / "clip.mp4").write_bytes(b"x")
    with pytest.raises(VideoError, match=r"holds videos \(clip.mp4\) and 1 images: name the video"):
        probe(tmp_path)


def test_a_video_in_a_list_of_images_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    with pytest.raises(VideoError, match="a video in the place of an image"):
        probe([tmp_path / "a.mp4", tmp_path / "a.mp4"])


def test_images_of_another_size_are_told(tmp_path):
    for index in range(6):
        picture(index, (84, 56) if index < 4 else (56, 112)).save(tmp_path / f"{index}.png")
    clip = read_video(tmp_path)
    assert clip.frames.shape[2:] == (56, 84)
    assert clip.notes == (
        "2 of 6 images have another size than the first's 84x56, such as 56x112: they are resized "
        "to its shape",
    )


def test_of_very_many_images_some_are_looked_at(monkeypatch):
    monkeypatch.setattr(images, "MOST_HEADERS", 4)
    sizes = [(84, 56), (56, 56), (84, 56), (56, 56), (84, 56), (56, 56), (84, 56), (84, 56)]
    frames = [picture(index, size) for index, size in enumerate(sizes)]
    assert probe(frames).notes == (
        "3 of 5 images have another size than the first's 84x56, such as 56x56: they are resized "
        "to its shape (5 of 8 were looked at)",
    )


def test_deep_images_and_animations_in_a_folder_are_told(tmp_path):
    for index in range(2):
        picture(index).save(tmp_path / f"{index}.png")
    Image.fromarray(np.zeros((56, 84), dtype="<u2")).save(tmp_path / "2.png")
    animate(tmp_path / "3.webp")
    assert probe(tmp_path).notes == (
        "levels of more than 8 bits of 1 of 4 images (mode I;16) are scaled to 0 to 255",
        "1 of 4 images are of several pictures, up to 10: the first of each is taken",
    )


def test_a_large_image_is_reduced_and_keeps_its_stated_size(tmp_path, monkeypatch):
    monkeypatch.setattr("videonsa.video.pictures.LARGE_PIXELS", 28**2)
    picture(3, (168, 112)).save(tmp_path / "a.png")
    clip = read_video(tmp_path / "a.png")
    assert (clip.info.width, clip.info.height) == (168, 112)
    assert clip.frames.shape[2:] == (112, 168)
    assert clip.notes == (
        "a picture of 168x112 is reduced while it is read, its sides by 5 or more, for bounded "
        "memory",
    )
