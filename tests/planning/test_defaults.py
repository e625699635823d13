"""How a model samples unless told otherwise."""

import json

import pytest

from videonsa.errors import UsageError
from videonsa.models.shape import load_shape
from videonsa.planning.defaults import QWEN_IMAGE_PIXELS, change_sampling, default_sampling
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


def write_settings(folder, name, settings):
    (folder / name).write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"min_pixels": 6272, "max_pixels": 1_003_520},
        {"size": {"shortest_edge": 6272, "longest_edge": 1_003_520}},
    ],
)
def test_the_pixels_of_an_image_are_those_of_its_settings(tmp_path, tiny_folder, settings):
    write_settings(tmp_path, "preprocessor_config.json", settings)
    write_settings(tmp_path, "video_preprocessor_config.json", {"size": {"longest_edge": 12_544}})
    spec = default_sampling(tmp_path, load_shape(tiny_folder))
    assert (spec.image_pixels, spec.max_pixels) == ((6272, 1_003_520), 12_544)


def test_a_model_that_states_frames_alone_has_images_like_them(tmp_path, tiny_folder):
    write_settings(tmp_path, "video_preprocessor_config.json", {"size": {"longest_edge": 12_544}})
    assert default_sampling(tmp_path, load_shape(tiny_folder)).image_pixels is None
    assert default_sampling("embedded", load_shape("embedded")).image_pixels is None


def test_image_settings_without_pixels_are_passed_over(tmp_path, tiny_folder):
    settings = {"size": {"height": 224}, "max_pixels": None}
    write_settings(tmp_path, "preprocessor_config.json", settings)
    spec = default_sampling(tmp_path, load_shape(tiny_folder))
    assert spec.image_pixels == QWEN_IMAGE_PIXELS


def test_pixels_that_the_user_gives_hold_for_an_image_too():
    base = SamplingSpec(image_pixels=QWEN_IMAGE_PIXELS)
    assert change_sampling(base, max_pixels=50_176).image_pixels is None
    assert change_sampling(base, max_tokens=100, fps=1.0).image_pixels == QWEN_IMAGE_PIXELS
