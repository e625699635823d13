"""Whatever the bytes are: a valid clip or one clear line, no hang and no other exception."""

from datetime import timedelta
from itertools import pairwise

import pytest
import video_files as vf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from videonsa.errors import BudgetError, UsageError, VideoError
from videonsa.video.decode import probe, read_video
from videonsa.video.sampling import SamplingSpec

SUFFIXES = ["mp4", "mkv", "webm", "avi", "gif", "ts", "png", "jpg"]
FUZZ = settings(
    derandomize=True,
    max_examples=150,
    deadline=timedelta(seconds=20),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory):
    """A small valid file of each kind."""
    folder = tmp_path_factory.mktemp("seeds")
    contents = {}
    for suffix in SUFFIXES:
        path = folder / f"clip.{suffix}"
        if suffix in ("png", "jpg"):
            Image.fromarray(vf.picture(5)).save(path)
        else:
            options = {"movflags": "faststart"} if suffix == "mp4" else None
            vf.write_video(path, num_frames=24, gop=6, container_options=options)
        contents[suffix] = path.read_bytes()
    return contents


def check(path, spec):
    try:
        clip = read_video(path, sampling=spec)
    except (VideoError, UsageError, BudgetError) as error:
        assert "\n" not in str(error)
        return
    count = len(clip.frames)
    assert clip.frames.shape == (count, 3, clip.plan.height, clip.plan.width)
    assert count == len(clip.times) == clip.plan.num_frames >= 1
    assert clip.info == probe(path)
    assert all(before <= after for before, after in pairwise(clip.times))
    assert all(-1.0 <= time <= clip.info.duration + 1.0 for time in clip.times)
    assert all("\n" not in line for line in clip.warnings)


specs = st.one_of(
    st.builds(SamplingSpec, fps=st.floats(0.1, 60), max_frames=st.integers(1, 64)),
    st.builds(SamplingSpec, num_frames=st.integers(1, 64)),
    st.builds(
        lambda times: SamplingSpec(timestamps=sorted(times)),
        st.lists(st.floats(0, 0.9), min_size=1),
    ),
)


@FUZZ
@given(content=st.binary(max_size=4096), suffix=st.sampled_from(SUFFIXES), spec=specs)
def test_random_bytes(tmp_path, content, suffix, spec):
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(content)
    check(path, spec)


@FUZZ
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES), spec=specs)
def test_changed_bytes_of_a_valid_file(tmp_path, seeds, data, suffix, spec):
    content = bytearray(seeds[suffix])
    # Headers are where the traps are, so half of the changes go there.
    places = st.integers(0, len(content) - 1) | st.integers(0, min(1024, len(content)) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=24)):
        content[place] = value
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(content)
    check(path, spec)


@FUZZ
@given(data=st.data(), suffix=st.sampled_from(SUFFIXES), spec=specs)
def test_beginnings_of_a_valid_file(tmp_path, seeds, data, suffix, spec):
    content = seeds[suffix]
    path = tmp_path / f"clip.{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    check(path, spec)
