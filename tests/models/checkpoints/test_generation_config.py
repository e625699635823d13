"""generation_config.json: what is applied, what is left out and said; nonsense is one line."""

import json

import pytest
from tiny_models import tiny

from videonsa.errors import ModelError
from videonsa.models.checkpoints.generation_config import FILE, read_generation, stated_options
from videonsa.models.checkpoints.loading import load_model

QWEN = {
    "bos_token_id": 151643,
    "pad_token_id": 151643,
    "do_sample": True,
    "eos_token_id": [151645, 151643],
    "repetition_penalty": 1.05,
    "temperature": 0.000001,
    "transformers_version": "4.49.0",
}


def write(folder, content):
    (folder / FILE).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def test_what_the_published_model_asks_for_is_applied(tmp_path):
    config, notes = read_generation(write(tmp_path, QWEN))
    assert notes == ()
    assert config.eos_token_id == [151645, 151643]
    assert stated_options(config) == {"temperature": 1e-6, "repetition_penalty": 1.05}


@pytest.mark.parametrize(
    ("fields", "stated"),
    [
        ({}, {"temperature": 0.0}),
        ({"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0, "top_p": 0.8}),
        ({"do_sample": True}, {"temperature": 1.0}),
        (
            {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
            {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
        ),
        ({"max_new_tokens": 2048}, {"temperature": 0.0, "max_new_tokens": 2048}),
        ({"stop_strings": ["END"]}, {"temperature": 0.0, "stop": ["END"]}),
    ],
)
def test_what_is_stated_has_the_names_of_the_engine(tmp_path, fields, stated):
    config, notes = read_generation(write(tmp_path, fields))
    assert stated_options(config) == stated
    assert notes == ()


def test_without_a_config_nothing_is_drawn():
    assert stated_options(None) == {"temperature": 0.0}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"eos_token_id": 2, "pad_token_id": 0, "use_cache": True, "_from_model_config": True},
        {"do_sample": False, "temperature": 0.7, "top_p": 0.8, "top_k": 20},
        {"repetition_penalty": 1.0, "num_beams": 1, "max_length": 20, "min_length": 0},
        {"bad_words_ids": None, "suppress_tokens": []},
        {"a_name_that_transformers_has_not": 3},
    ],
)
def test_what_changes_nothing_is_not_said(tmp_path, fields):
    assert read_generation(write(tmp_path, fields))[1] == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"encoder_repetition_penalty": 1.05}, "encoder_repetition_penalty 1.05"),
        ({"max_length": 2048}, "max_length 2048"),
        ({"num_beams": 4}, "num_beams 4"),
        ({"do_sample": True, "typical_p": 0.9, "top_k": 20}, "not applied: typical_p 0.9"),
        ({"bad_words_ids": [[1] * 1000]}, "bad_words_ids [[1, 1, 1"),
        ({"length_penalty": True}, "length_penalty True"),
    ],
)
def test_every_other_wish_is_said_with_its_value(tmp_path, fields, said):
    (note,) = read_generation(write(tmp_path, fields))[1]
    assert said in note and len(note) < 300


def test_a_folder_without_the_file_has_nothing_to_say(tmp_path):
    assert read_generation(tmp_path) == (None, ())


@pytest.mark.parametrize(
    "content",
    [
        *("[]", "3", "null", '"x"', "{", "", "[" * 10**5, '{"top_k": 1' + "0" * 5000 + "}"),
        {"eos_token_id": "x"},
        {"eos_token_id": [1, None]},
        {"eos_token_id": [True]},
        {"cache_implementation": "none such"},
        {"watermarking_config": 3},
        {"max_new_tokens": -4},
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, content):
    with pytest.raises(ModelError) as caught:
        read_generation(write(tmp_path, content))
    message = str(caught.value)
    assert FILE in message and "\n" not in message and len(message) < 500


def test_names_of_methods_are_no_settings(tmp_path):
    config, _ = read_generation(write(tmp_path, {"validate": 3, "to_dict": 3}))
    assert callable(config.validate)


def test_loading_says_it_applies_the_rest_and_keeps_the_ids_that_end_an_answer(tmp_path):
    tiny().save_pretrained(tmp_path)
    write(tmp_path, QWEN | {"eos_token_id": [7, 9], "num_beams": 4})
    loaded = load_model(tmp_path)
    assert loaded.model.generation_config.eos_token_id == [7, 9]
    assert f"{FILE} asks for what is not applied: num_beams 4" in loaded.notes
    assert stated_options(loaded.model.generation_config)["repetition_penalty"] == 1.05
    write(tmp_path, "[]")
    with pytest.raises(ModelError, match=FILE):
        load_model(tmp_path)
