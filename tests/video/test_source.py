"""What can be passed as a video, and what is refused in one line that names it."""

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image

from videonsa import read_video
from videonsa.errors import UsageError, VideoError
from videonsa.video.decode import probe

PICTURE = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)


class Named(os.PathLike):
    """A path of another library."""

    def __init__(self, path):
        self._path = path

    def __fspath__(self):
        return str(self._path)


@pytest.fixture
def image_path(tmp_path):
    Image.fromarray(PICTURE).save(tmp_path / "an image.png")
    return tmp_path / "an image.png"


def test_a_picture_in_memory_is_an_image(image_path):
    tensor = torch.from_numpy(PICTURE)
    wanted = read_video(image_path).frames
    for given in (
        Image.open(image_path),
        PICTURE,
        PICTURE / 255,
        tensor,
        tensor.permute(2, 0, 1),
        tensor.permute(2, 0, 1).double() / 255,
    ):
        clip = read_video(given)
        assert torch.equal(clip.frames, wanted)
        assert clip.info.is_image
        assert (clip.info.duration, clip.times) == (0.0, (0.0,))


def test_paths_come_in_several_ways(image_path):
    wanted = probe(image_path)
    for given in (str(image_path), Named(image_path), image_path.as_uri()):
        assert probe(given) == wanted
    assert probe(image_path.as_uri().replace("///", "//localhost/")) == wanted


def test_an_image_without_a_suffix_is_known_by_its_content(image_path):
    bare = image_path.rename(image_path.with_suffix(""))
    assert probe(bare).is_image


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (None, "a video came as NoneType: want a path"),
        (5, "came as int"),
        ({"video": "a.mp4"}, "came as dict"),
        ({"a.mp4"}, "came as set"),
        (b"\x89PNG", "came as bytes: .* write its bytes to a file first"),
        (io.BytesIO(b"\x89PNG"), "came as BytesIO: .* write its bytes to a file first"),
        ((frame for frame in [PICTURE]), "came as generator: .* make a list of what it gives"),
        (PICTURE[..., 0], r"came as uint8 \[56, 84\]"),
        (PICTURE.astype(np.float64), "from 0 to 255: want floats from 0 to 1"),
        ("", "an empty path"),
    ],
)
def test_what_is_no_video_is_refused(given, what):
    with pytest.raises(UsageError, match=what) as caught:
        read_video(given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given", ["https://e/a.mp4", "http://e/a.png", "s3://b/c.mkv", "rtsp://c", "file://host/a.mp4"]
)
def test_an_address_is_to_be_downloaded_first(given):
    with pytest.raises(VideoError, match=f"{given}: an address, .* download it first"):
        probe(given)


def test_an_address_in_a_path_is_shown_as_it_was():
    with pytest.raises(VideoError, match=r"https://e/a\.mp4: an address"):
        probe(Named("https:/e/a.mp4"))
