"""Fixtures of the tests that have this module in `pytest_plugins`.

No conftest.py: tests of other rooms import from the one in tests/, by that name.
"""

import pytest

import videonsa
from videonsa.rendered.clips import make_scene, scene_seed, write_video


@pytest.fixture(scope="module")
def qa():
    return videonsa.load("embedded", device="cpu")


@pytest.fixture(scope="module")
def tiny_qa(tiny_folder):
    return videonsa.load(tiny_folder, device="cpu")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A rendered clip of eight seconds, in a folder with nothing else."""
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    write_video(make_scene(scene_seed("test", 3), duration=8.0, num_objects=3), path)
    return path
