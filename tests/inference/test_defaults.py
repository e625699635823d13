"""How a model samples unless told otherwise."""

import json

import pytest

from videonsa.errors import UsageError
from videonsa.inference.defaults import QWEN_IMAGE_PIXELS, change_sampling, default_sampling
from videonsa.inference.shapes import load_shape
from videonsa.video.sampling import SamplingSpec


def test_a_folder_without_settings_has_the_defaults(tiny_folder):
    assert default_sampling(tiny_folder, load_shape(tiny_folder)) == SamplingSpec(
        image_pixels=QWEN_IMAGE_PIXELS
    )


def test_a_folder_states_its_sampling_in_the_words_of_transformers(tmp_path, tiny_folder):
    size = {"shortest_edge": 12_544, "longest_edge": 12_544}
    settings = {"fps": 2.0, "min_frames": 2, "max_frames": 512, "size": size, "other": 1}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(settings))
    spec = default_sampling(tmp_path, load_shape(tiny_folder))
    assert (spec.fps, spec.min_frames, spec.max_frames) == (2.0, 2, 512)
    assert (spec.min_pixels, spec.max_pixels) == (12_544, 12_544)


def test_none_changes_nothing():
    assert change_sampling(SamplingSpec(fps=1.0), fps=None, max_frames=None) == SamplingSpec(
        fps=1.0
    )


def test_minima_give_way_to_the_users_maxima():
    base = SamplingSpec(min_frames=4, min_pixels=50_176)
    spec = change_sampling(base, max_frames=2, max_pixels=12_544)
    assert (spec.min_frames, spec.max_frames) == (2, 2)
    assert (spec.min_pixels, spec.max_pixels) == (12_544, 12_544)


def test_timestamps_take_the_place_of_the_models_fps():
    spec = change_sampling(SamplingSpec(fps=2.0), timestamps=(0.5, 1.5))
    assert spec.fps is None
    assert spec.timestamps == (0.5, 1.5)


def test_a_value_outside_the_domain_is_refused():
    with pytest.raises(UsageError, match=r"fps=-1"):
        change_sampling(SamplingSpec(), fps=-1.0)
    with pytest.raises(UsageError, match="max_frames=0"):
        change_sampling(SamplingSpec(), max_frames=0)
