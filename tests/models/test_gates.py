import pytest
import torch
from tiny_models import config_fields, prompt
from torch import nn

from videonsa.models.config import VideoNSAConfig
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.gates import branch_gates


def fresh(**fields):
    torch.manual_seed(0)
    return VideoNSAForConditionalGeneration(VideoNSAConfig(**config_fields() | fields))


def layers(model):
    return [layer.self_attn for layer in model.model.language_model.layers]


def gates(attention, hidden):
    return branch_gates(
        hidden, attention.g_proj_1, attention.g_proj_2, num_heads=4, temperature=0.3
    )


def test_fresh_gates_are_exactly_one_half():
    for attention in layers(fresh()):
        assert torch.all(gates(attention, torch.randn(2, 5, 64)) == 0.5)


def test_released_init_draws_both_weights_with_std_0_02():
    for attention in layers(fresh(gate_init="released")):
        for linear in (attention.g_proj_1, attention.g_proj_2):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
            assert not linear.bias.any()


def test_layout_is_head_then_branch():
    first, second = nn.Linear(8, 8), nn.Linear(8, 12)
    nn.init.zeros_(second.weight)
    second.bias.data = torch.arange(12.0)
    out = branch_gates(torch.randn(1, 1, 8), first, second, num_heads=4, temperature=2.0)
    expected = torch.sigmoid(torch.arange(12.0) / 2).view(4, 3)  # row h: compressed, selected, ...
    torch.testing.assert_close(out[0, 0], expected)


def test_gradient_reaches_the_gates():
    model = fresh(nsa={"block_size": "frame"})
    ask = prompt(4)
    model.train()(**ask, labels=ask["input_ids"]).loss.backward()
    for attention in layers(model):
        assert attention.g_proj_2.weight.grad.abs().sum() > 0
        assert attention.g_proj_2.bias.grad.abs().sum() > 0


def test_other_weights_are_initialised_as_qwen_does():
    model = fresh()
    for attention in layers(model):
        assert attention.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.model.visual.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_initialising_again_leaves_trained_gates_alone():
    model = fresh()
    with torch.no_grad():
        layers(model)[0].g_proj_2.weight.fill_(0.7)
    model.init_weights()
    assert torch.all(layers(model)[0].g_proj_2.weight == 0.7)


def test_dense_model_has_no_gates():
    assert not [name for name, _ in fresh(attention="dense").named_parameters() if "g_proj" in name]
