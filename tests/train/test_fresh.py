"""Runs that begin with random weights or closed gates."""

import json

import pytest
import torch
from small_run import losses, make_data, recipe_for

from videonsa.errors import UsageError
from videonsa.models.checkpoints.loading import load_model
from videonsa.train.parameters import close_gates
from videonsa.train.run import train


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


def gates_of(model):
    """Of each layer, each head's three gates where the row is zero."""
    return [
        (layer.self_attn.g_proj_2.bias.detach() / 0.3).sigmoid().view(-1, 3)
        for layer in model.model.language_model.layers
    ]


def test_a_fresh_run_has_the_shape_of_its_base_and_none_of_its_weights(
    tiny_folder, manifest, tmp_path
):
    short = ("optimizer.steps=1", "optimizer.learning_rate=1e-12", "model.fresh=true")
    models = []
    for seed in (5, 6):
        recipe = recipe_for(tiny_folder, manifest, *short, f"run.seed={seed}")
        model = train(recipe, tmp_path / str(seed))
        models.append(load_model(model).model.state_dict())
    base = load_model(tiny_folder).model.state_dict()
    assert models[0].keys() == models[1].keys() == base.keys()
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    for one, other in ((0, base), (1, base), (0, models[1])):
        assert models[one][name].shape == other[name].shape
        assert not torch.allclose(models[one][name], other[name].float(), atol=1e-3)


def test_a_fresh_run_may_have_another_shape(tiny_folder, manifest, tmp_path):
    sizes = {"num_hidden_layers": 3, "hidden_size": 48, "intermediate_size": 40}
    head = load_model(tiny_folder).model.config.text_config
    sizes["num_attention_heads"] = 48 * head.num_attention_heads // head.hidden_size
    sizes["num_key_value_heads"] = sizes["num_attention_heads"]
    shape = json.dumps({"text_config": sizes, "vision_config": {"out_hidden_size": 48}})
    settings = ("model.fresh=true", f"model.shape={shape}", "optimizer.steps=1")
    recipe = recipe_for(tiny_folder, manifest, *settings)
    config = load_model(train(recipe, tmp_path / "run")).model.config.text_config
    assert {name: getattr(config, name) for name in sizes} == sizes
    assert len(config.layer_types) == 3


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (["model.shape={text_config: {hidden_size: 64}}"], "model.fresh=true too"),
        (
            ["model.fresh=true", "model.shape={text_config: {hidden: 64}}"],
            "text_config.hidden: want",
        ),
        (["model.fresh=true", "model.shape={text_config: 3}"], "want names with values"),
        (
            ["model.fresh=true", "model.shape={text_config: {num_attention_heads: 5}}"],
            "model.shape: ",
        ),
    ],
)
def test_a_shape_that_no_model_can_have_is_refused(
    tiny_folder, manifest, tmp_path, settings, named
):
    with pytest.raises(UsageError, match=named):
        train(recipe_for(tiny_folder, manifest, *settings), tmp_path)


def test_gates_begin_closed_from_their_layer_on_and_may_open(tiny_folder, manifest, tmp_path):
    closed = 'model.closed_gates=["compressed:1", "window:0"]'
    still = ("optimizer.steps=1", "optimizer.learning_rate=1e-12")
    model = train(recipe_for(tiny_folder, manifest, closed, *still), tmp_path / "still")
    first, second = gates_of(load_model(model).model)
    assert (first[:, 2] < 0.002).all() and (second[:, [0, 2]] < 0.002).all()
    before = gates_of(load_model(tiny_folder).model)
    assert torch.allclose(first[:, :2], before[0][:, :2], atol=1e-4)
    moved = train(recipe_for(tiny_folder, manifest, closed), tmp_path / "moved")
    assert not torch.equal(gates_of(load_model(moved).model)[0], first)


def test_a_run_that_goes_on_does_not_close_its_gates_again(tiny_folder, manifest, tmp_path):
    closed = 'model.closed_gates=["compressed:0"]'
    whole = recipe_for(tiny_folder, manifest, closed, "optimizer.learning_rate=1e-2")
    train(whole, tmp_path / "whole")
    cut = recipe_for(
        tiny_folder, manifest, closed, "optimizer.learning_rate=1e-2", "run.seconds=0.001"
    )
    assert train(cut, tmp_path / "cut") is None
    train(whole, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("closed_gates=[selected]", "has 'selected': want branch:N"),
        ("closed_gates=['all:0']", "has 'all': want some of compressed, selected, window"),
    ],
)
def test_gates_that_are_none_are_refused(tiny_folder, manifest, setting, problem):
    with pytest.raises(UsageError, match=problem):
        recipe_for(tiny_folder, manifest, f"model.{setting}")


def test_dense_attention_has_no_gates_to_close(tiny_folder, manifest, tmp_path):
    recipe = recipe_for(
        tiny_folder, manifest, "attention.kind=dense", "model.closed_gates=['window:0']"
    )
    with pytest.raises(UsageError, match="which has no gates"):
        train(recipe, tmp_path)


def test_only_the_named_branch_is_closed(tiny_folder):
    model = load_model(tiny_folder, dtype=torch.float32).model
    before = gates_of(model)
    close_gates(model, {"selected": 1})
    after = gates_of(model)
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1][:, [0, 2]], before[1][:, [0, 2]])
    assert (after[1][:, 1] < 0.002).all()


def test_gates_of_a_layer_that_is_not_there_are_no_choice(tiny_folder, manifest, tmp_path):
    recipe = recipe_for(tiny_folder, manifest, 'model.closed_gates=["compressed:2"]')
    with pytest.raises(UsageError, match="'compressed:2': the model has 2 layers; want at most 1"):
        train(recipe, tmp_path)
