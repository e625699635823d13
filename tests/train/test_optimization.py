"""Optimizers and schedules by name; a run with others than the recipe's own."""

import pytest
import torch
from small_run import lines, make_data, recipe_for
from transformers import TrainerCallback

from videonsa.errors import UsageError
from videonsa.models.checkpoints.loading import load_model
from videonsa.train import optimization
from videonsa.train.optimization import check_optimization, check_schedule, optimizers, schedules
from videonsa.train.reading import read_recipe
from videonsa.train.run import train
from videonsa.train.settings import OptimizerSettings

MIN_LR = (
    "optimizer.schedule=cosine_with_min_lr",
    "optimizer.schedule_options={min_lr_rate: 1e-1}",
)


def settings_of(*settings):
    return read_recipe("tiny", settings=settings).optimizer


def test_the_defaults_are_adamw_and_a_cosine_and_nothing_of_them_is_unused():
    settings = OptimizerSettings()
    assert (settings.name, settings.schedule) == ("adamw_torch_fused", "cosine")
    assert check_optimization(settings) == []
    check_schedule(settings, steps=1)


def test_what_a_choice_does_not_use_is_told():
    constant, adafactor = check_optimization(
        settings_of("optimizer.schedule=constant", "optimizer.name=adafactor")
    )[::-1]
    assert "has no warm-up: optimizer.warmup=0.1 is not used" in constant
    assert adafactor == "optimizer.name=adafactor uses no optimizer.betas and optimizer.epsilon"


def test_lion_has_betas_and_no_epsilon(monkeypatch):
    chosen = staticmethod(lambda _: (None, {"betas": (0.9, 0.95)}))
    monkeypatch.setattr(optimization.Trainer, "get_optimizer_cls_and_kwargs", chosen)
    notes = check_optimization(settings_of("optimizer.name=lion_32bit"))
    assert notes == ["optimizer.name=lion_32bit uses no optimizer.epsilon"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["optimizer.name=adafacto"], r"optimizer\.name='adafacto': .* such as adafactor"),
        (["optimizer.name=galore_adamw"], r"optimizer\.name='galore_adamw': want a name of"),
        (["optimizer.schedule=cosin"], r"optimizer\.schedule='cosin': .* such as cosine"),
        (["optimizer.schedule=greedy"], r"schedule='greedy': want .* such as linear, cosine,"),
        (["optimizer.schedule=cosine_with_min_lr"], r"cannot be used \(One of min_lr or min_lr_"),
        ([MIN_LR[0], "optimizer.schedule_options={floor: 1}"], "unexpected keyword .*'floor'"),
        ([*MIN_LR, "optimizer.schedule=constant"], r"cannot be used \(it takes none\)"),
        (["optimizer.schedule_options={num_cycles: .inf}"], "below 0 or none|cannot be used"),
        (["optimizer.schedule_options=[1]"], r"options=\[1\]: want names with values"),
        (["optimizer.schedule_options={a: [1]}"], r"schedule_options\.a=\[1\]: want a whole"),
    ],
)
def test_what_transformers_does_not_have_is_refused_in_one_line(settings, message):
    with pytest.raises(UsageError, match=message) as caught:
        chosen = settings_of(*settings)
        check_optimization(chosen)
        check_schedule(chosen, steps=100)
    assert "\n" not in str(caught.value)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UsageError, match=r"lion_8bit cannot be used here .*bitsandbytes"):
        check_optimization(settings_of("optimizer.name=lion_8bit"))


def test_only_what_follows_the_step_and_takes_groups_may_be_named():
    assert {"linear", "cosine", "constant", "warmup_stable_decay"} < set(schedules())
    assert {"adamw_torch", "adamw_torch_fused", "adafactor", "sgd"} < set(optimizers())
    assert not [name for name in optimizers() if "galore" in name or "layerwise" in name]


class Rates(TrainerCallback):
    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **_):
        self.rates.append([group["lr"] for group in optimizer.param_groups])


def test_gates_follow_the_schedule_from_their_own_rate(tiny_folder, tmp_path):
    seen = Rates()
    recipe = recipe_for(
        tiny_folder,
        make_data(tmp_path / "data"),
        *MIN_LR,
        "optimizer.name=adafactor",
        "optimizer.gate_learning_rate=1e-3",
        "optimizer.warmup=0",
        "optimizer.steps=3",
    )
    train(recipe, tmp_path / "run", callbacks=[seen])
    found = torch.tensor(
        seen.rates
    )  # [steps, groups]: others that decay and do not, gates likewise
    share = [1.0, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25]
    expected = torch.outer(torch.tensor(share), torch.tensor([1e-4, 1e-4, 1e-3, 1e-3]))
    torch.testing.assert_close(found, expected)
    logged = [line["learning_rate"] for line in lines(tmp_path / "run/log.jsonl") if "loss" in line]
    assert logged == pytest.approx([1e-4 * one for one in share])
    before, after = (load_model(one).model for one in (tiny_folder, tmp_path / "run/model"))
    gate = "model.language_model.layers.0.self_attn.g_proj_2.weight"
    assert not torch.equal(before.state_dict()[gate], after.state_dict()[gate])
