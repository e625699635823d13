"""generation_config.json: what the engine leaves out is said; nonsense is one line."""

import json

import pytest
from tiny_models import tiny

from videonsa.errors import ModelError
from videonsa.models.checkpoints.generation_config import FILE, read_generation
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


def test_what_the_published_model_asks_for_is_said_in_one_note(tmp_path):
    config, (note,) = read_generation(write(tmp_path, QWEN))
    assert "do_sample True, repetition_penalty 1.05, temperature 1e-06;" in note
    assert "token_id" not in note and "transformers_version" not in note
    assert config.eos_token_id == [151645, 151643]
    assert config.repetition_penalty == 1.05


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
        ({"repetition_penalty": 1.05}, "repetition_penalty 1.05"),
        ({"max_new_tokens": 2048}, "max_new_tokens 2048"),
        ({"num_beams": 4}, "num_beams 4"),
        ({"do_sample": True, "top_k": 20}, "top_k 20"),
        ({"stop_strings": "x" * 1000}, "stop_strings 'xxx"),
        ({"repetition_penalty": True}, "repetition_penalty True"),
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


def test_loading_says_it_and_keeps_the_ids_that_end_an_answer(tmp_path):
    tiny().save_pretrained(tmp_path)
    write(tmp_path, QWEN | {"eos_token_id": [7, 9]})
    loaded = load_model(tmp_path)
    assert loaded.model.generation_config.eos_token_id == [7, 9]
    assert any("repetition_penalty 1.05" in note for note in loaded.notes)
    write(tmp_path, "[]")
    with pytest.raises(ModelError, match=FILE):
        load_model(tmp_path)
