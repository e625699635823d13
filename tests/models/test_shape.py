"""Shapes of models from their configs: parameter counts are exact."""

import json

import pytest

from videonsa.errors import ModelError
from videonsa.models.methods import NSA, ReleasedNSA
from videonsa.models.shape import load_shape, published_shape, shape_of_config
from videonsa.ops.spec import NSASpec


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # Recorded totals, not read from the checkpoints here: they pin the formula.
        ("Qwen/Qwen2.5-VL-3B-Instruct", 3_754_622_976),
        ("Qwen/Qwen2.5-VL-7B-Instruct", 8_292_166_656),
        ("Qwen/Qwen2.5-VL-32B-Instruct", 33_452_718_336),
        ("Qwen/Qwen2.5-VL-72B-Instruct", 73_410_777_344),
    ],
)
def test_published_shapes_keep_their_number_of_parameters(name, parameters):
    shape = published_shape(name)
    assert shape is not None
    assert shape.num_parameters == parameters
    assert shape.head_dim == 128
    assert (shape.method.name, shape.context) == ("dense", 128_000)


def test_videonsa_adds_the_gates_of_28_layers_to_the_7b_model():
    shape, plain = published_shape("Enxin/VideoNSA"), published_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    gates = (3584 * 3584 + 3584) + (3584 * 84 + 84)
    assert shape.num_parameters - plain.num_parameters == 28 * gates
    assert shape.method == ReleasedNSA(NSASpec.released())


def test_shape_of_a_saved_model_counts_its_parameters_exactly(tiny_folder):
    from videonsa.models.checkpoints.loading import load_model

    model = load_model(tiny_folder).model
    shape = load_shape(tiny_folder)
    assert shape.num_parameters == sum(weight.numel() for weight in model.parameters())
    assert shape.method == NSA(model.config.nsa_spec)
    assert (shape.context, shape.dtype) == (2048, "float32")
    tower = model.model.visual.parameters()
    assert shape.vision.num_parameters == sum(weight.numel() for weight in tower)


def test_flat_and_nested_configs_give_the_same_shape(tiny_folder):
    nested = json.loads((tiny_folder / "config.json").read_text())
    flat = {k: v for k, v in nested.items() if k != "text_config"} | nested["text_config"]
    flat |= {"model_type": "videonsa"}
    assert shape_of_config(flat) == shape_of_config(nested)


def test_another_family_is_refused():
    with pytest.raises(ModelError, match="model_type='llama'"):
        shape_of_config({"model_type": "llama"})


def test_a_missing_key_is_named():
    with pytest.raises(ModelError, match="hidden_size"):
        shape_of_config({"model_type": "qwen2_5_vl"})


def test_a_folder_without_config_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_shape(tmp_path)


def test_a_config_that_is_no_json_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        load_shape(tmp_path)
