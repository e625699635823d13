import os
import signal
from base64 import b64decode
from contextlib import closing
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from videonsa.errors import UsageError, VideoError
from videonsa.server.decoding import IsolatedReader
from videonsa.server.frames import ReadHere
from videonsa.video.sampling import SamplingSpec

pytest_plugins = ["server_fixtures"]


@pytest.fixture(scope="module")
def reader():
    found = IsolatedReader(processes=1)
    yield found
    found.close()


def frames(reader, path, **changes):
    stream = reader.open(path, SamplingSpec(**changes))
    with closing(stream.frames):
        return stream, list(stream.frames)


def test_frames_are_those_that_are_decoded_here(reader, clip):
    assert reader.describe(clip) == ReadHere().describe(clip)
    (there, found), (here, wanted) = frames(reader, clip), frames(ReadHere(), clip)
    assert there.plan == here.plan and there.notes == here.notes
    assert [one._replace(pixels=0) for one in found] == [one._replace(pixels=0) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_errors_are_those_that_are_raised_here(reader, clip, tmp_path):
    with pytest.raises(UsageError, match="duration"):
        reader.open(clip, SamplingSpec(timestamps=(99.0,)))
    (tmp_path / "x.mp4").write_bytes(b"PK\3\4" + bytes(100))
    with pytest.raises(VideoError, match="a ZIP archive"):
        reader.describe(tmp_path / "x.mp4")


def test_thumbnails_are_as_many_as_asked_for(reader, clip):
    found = reader.thumbnails(clip, (0.0, 4.0, 7.5), longest=48)
    sizes = [Image.open(BytesIO(b64decode(one))).size for one in found]
    assert [max(size) for size in sizes] == [48, 48, 48]


def test_a_stream_that_nobody_takes_frees_its_process(reader, clip):
    for _ in range(3):
        reader.open(clip, SamplingSpec())
    assert len(frames(reader, clip, num_frames=4)[1]) == 4


def test_a_process_that_is_killed_ends_one_stream_and_the_next_is_read(reader, clip):
    stream = reader.open(clip, SamplingSpec(num_frames=64))  # more than its pipe takes
    os.kill(reader._callers[0]._running._process.pid, signal.SIGKILL)
    with pytest.raises(VideoError, match=r"clip.mp4: the process that decodes it ended .*signal 9"):
        list(stream.frames)
    assert len(frames(reader, clip, num_frames=4)[1]) == 4
