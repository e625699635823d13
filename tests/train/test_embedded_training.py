"""The training of the embedded model, on two processes' worth of a very small recipe."""

import json

import pytest
import torch
from conftest import TOKENIZER
from transformers import AutoTokenizer

from videonsa.models.loading import load_model
from videonsa.ops.spec import BRANCHES
from videonsa.train.batches import ClipBatches
from videonsa.train.embedded import Trainer, learning_rate_factor, main
from videonsa.train.recipe import EmbeddedRecipe, Stage

SMALL = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_query_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 32,
    "vision_hidden_size": 32,
    "vision_depth": 1,
}


def make_trainer(tmp_path, **changes) -> Trainer:
    stages = (Stage(temporal_patches=8, batch_size=2, steps=8),)
    recipe = EmbeddedRecipe(**(SMALL | {"stages": stages, "warmup_steps": 1} | changes))
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return Trainer(recipe, tokenizer=tokenizer, out=tmp_path, device=torch.device("cpu"))


def test_the_loss_falls_on_a_batch_seen_again_and_gates_get_gradient(tmp_path) -> None:
    # Two layers: what vision rows compute in the last one reaches no text row, so no loss.
    trainer = make_trainer(tmp_path, num_layers=2)
    tokenizer = trainer.tokenizer
    batch = ClipBatches(trainer.recipe, tokenizer=tokenizer, pad_token_id=tokenizer.pad_token_id)[0]
    gate = trainer.model.model.language_model.layers[0].self_attn.g_proj_2
    assert gate.weight.abs().max() == 0
    losses = [trainer._step(batch).item() for _ in range(8)]
    assert losses[-1] < losses[0] - 0.3
    assert gate.weight.abs().max() > 0


def test_closed_gates_are_those_of_their_branch_and_layers(tmp_path) -> None:
    trainer = make_trainer(tmp_path, num_layers=2, num_compressed_layers=1, num_window_layers=0)
    first, second = (
        layer.self_attn.g_proj_2.bias.detach().view(-1, 3).sigmoid()
        for layer in trainer.model.model.language_model.layers
    )
    closed = torch.tensor(-2.0).sigmoid()
    assert (first == torch.stack([torch.tensor(0.5), torch.tensor(0.5), closed])).all()
    assert (second == torch.stack([closed, torch.tensor(0.5), closed])).all()


def test_branch_dropout_never_drops_the_selected_branch(tmp_path) -> None:
    trainer = make_trainer(tmp_path, branch_dropout=0.5)
    seen = {trainer._spec().branches for _ in range(100)}
    assert len(seen) == 4
    assert all("selected" in branches for branches in seen)
    assert make_trainer(tmp_path)._spec().branches == BRANCHES


def test_frozen_vision_stays_as_it_is(tmp_path) -> None:
    trainer = make_trainer(tmp_path, freeze_vision=True)
    before = trainer.model.model.visual.patch_embed.proj.weight.clone()
    tokenizer = trainer.tokenizer
    batches = ClipBatches(trainer.recipe, tokenizer=tokenizer, pad_token_id=0)
    trainer._step(batches[0])
    assert torch.equal(before, trainer.model.model.visual.patch_embed.proj.weight)


def test_learning_rate_rises_to_its_peak_and_falls_to_zero() -> None:
    recipe = EmbeddedRecipe(warmup_steps=10)
    assert learning_rate_factor(0, 0.0, recipe) == pytest.approx(0.1)
    assert learning_rate_factor(10, 0.0, recipe) == 1.0
    assert learning_rate_factor(500, 1.0, recipe) == pytest.approx(0.0)


def test_the_command_writes_a_checkpoint_that_loads_and_what_made_it(tmp_path, monkeypatch) -> None:
    settings = [f"--set={name}={value}" for name, value in SMALL.items()]
    arguments = [*settings, "--set=stages=1x2x2", "--workers=0", f"--out={tmp_path}"]
    monkeypatch.setattr("sys.argv", ["embedded", *arguments])
    main()
    loaded = load_model(tmp_path / "model")
    assert loaded.model.config.nsa_spec == EmbeddedRecipe().spec()
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["steps"] == 2 and run["recipe"]["hidden_size"] == 32
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 1]


def test_an_unknown_setting_is_refused_with_the_known_ones(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("sys.argv", ["embedded", f"--out={tmp_path}", "--set=depth=3"])
    with pytest.raises(SystemExit, match="want one of hidden_size"):
        main()
