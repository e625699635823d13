import sys

import pytest
import torch

from videonsa.errors import UsageError
from videonsa.models.checkpoints.loading import load_model
from videonsa.train.parameters import choose_parameters, parameter_groups
from videonsa.train.settings import ModelSettings, OptimizerSettings


@pytest.fixture
def model(tiny_folder):
    return load_model(tiny_folder).model


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("frozen", "is_frozen"),
    [
        ((), lambda name: False),
        (("vit",), lambda name: "visual" in name and "merger" not in name),
        (("merger",), lambda name: "merger" in name),
        (("llm",), lambda name: "visual" not in name and "g_proj" not in name),
        (("vit", "merger", "llm"), lambda name: "g_proj" not in name),
    ],
)
def test_what_is_frozen_does_not_train_and_gates_always_do(model, frozen, is_frozen):
    choose_parameters(model, ModelSettings(freeze=frozen))
    expected = {name for name, _ in model.named_parameters() if not is_frozen(name)}
    assert trained(model) == expected
    assert any("g_proj" in name for name in expected)


def test_gates_have_a_rate_of_their_own_and_vectors_do_not_decay(model):
    settings = OptimizerSettings(learning_rate=1e-6, gate_learning_rate=1e-3, weight_decay=0.1)
    decayed = {name for name, p in model.named_parameters() if p.ndim > 1}
    groups = parameter_groups(dict(model.named_parameters()), settings, decayed=decayed)
    found = {(group["lr"], group["weight_decay"]): group["params"] for group in groups}
    assert set(found) == {(1e-6, 0.1), (1e-6, 0.0), (1e-3, 0.1), (1e-3, 0.0)}
    gates = [p for name, p in model.named_parameters() if "g_proj" in name]
    assert {*map(id, gates)} == {*map(id, found[1e-3, 0.1] + found[1e-3, 0.0])}
    assert all(p.ndim == 1 for p in found[1e-6, 0.0] + found[1e-3, 0.0])
    assert sum(map(len, found.values())) == len(list(model.parameters()))


def test_lora_trains_its_matrices_and_the_gates_and_merges_into_the_model(model, tiny_folder):
    wrapped = choose_parameters(model, ModelSettings(lora_rank=4))
    names = trained(wrapped)
    assert all("lora_" in name or "g_proj" in name for name in names)
    assert any("layers.1.mlp.up_proj.lora_A" in name for name in names)
    assert not any("visual" in name for name in names)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    merged = wrapped.merge_and_unload().state_dict()
    before = load_model(tiny_folder).model.state_dict()
    assert merged.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], merged[name])}
    assert changed and all("_proj.weight" in name for name in changed)


def test_lora_without_peft_says_what_to_install(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UsageError, match=r"peft is not installed.*videonsa\[train\]"):
        choose_parameters(model, ModelSettings(lora_rank=4))
