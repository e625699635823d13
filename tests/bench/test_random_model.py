"""Random models have the shape that they are said to have."""

from dataclasses import replace

import pytest
import torch

from videonsa.bench.random_model import MODELS, TINY, config_fields, random_model, random_qwen
from videonsa.models._hf import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", MODELS)
def test_config_has_the_published_number_of_parameters(size):
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config_fields(MODELS[size])))
    assert sum(x.numel() for x in model.parameters()) == MODELS[size].num_parameters


def test_gates_start_near_one_half_and_weights_are_those_of_a_seed():
    one, other = (random_model(TINY, device=CPU, dtype=torch.float32) for _ in range(2))
    for x, y in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)
    gate = one.model.language_model.layers[0].self_attn.g_proj_2
    assert gate.weight.abs().max() < 0.1
    assert (gate.bias == 0).all()


def test_dtype_is_as_asked_and_the_default_stays():
    model = random_qwen(TINY, device=CPU, dtype=torch.bfloat16)
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_what_layers_add_is_scaled_by_the_root_of_twice_their_number():
    model = random_model(replace(TINY, num_layers=8), device=CPU, dtype=torch.float32)
    layer = model.model.language_model.layers[3]
    added = torch.cat(
        [layer.self_attn.o_proj.weight.flatten(), layer.mlp.down_proj.weight.flatten()]
    )
    assert added.std().item() == pytest.approx(0.02 / 4, rel=0.03)
    assert layer.mlp.up_proj.weight.std().item() == pytest.approx(0.02, rel=0.03)
