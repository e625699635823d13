"""Whole runs in one process."""

import json
import math
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch
from conftest import TOKENIZER
from small_manifest import OPTIONS, record, write_manifest
from small_run import lines, losses, make_data, recipe_for
from transformers import AutoTokenizer, TrainerCallback

from videonsa.data.collate import pack_batch
from videonsa.data.dataset import VideoDataset
from videonsa.data.manifest import read_manifest
from videonsa.errors import TrainingError, UsageError
from videonsa.inference.engine import load
from videonsa.models.checkpoints.loading import load_model
from videonsa.train.run import train
from videonsa.train.validation import validation_batches


class Stop(TrainerCallback):
    """Raises when a step begins, as if the process died."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            raise KeyboardInterrupt


class At(TrainerCallback):
    """Calls a function with the model before a step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step + 1 == self.step:
            self.function(model)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(tiny_folder, manifest, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train(recipe_for(tiny_folder, manifest), out)
    return out


def test_a_run_leaves_its_recipe_its_facts_its_log_and_a_model_that_answers(
    undisturbed, tiny_folder, clip_path
):
    facts = json.loads((undisturbed / "run.json").read_text())
    assert len(facts["data_hash"]) == 64
    assert facts["versions"]["torch"] == torch.__version__
    assert [step for step, _, _ in losses(undisturbed)] == [1, 2, 3, 4, 5, 6]
    first = lines(undisturbed / "log.jsonl")[0]
    assert first["tokens"] > 0 and first["tokens_per_second"] > 0
    assert first["gates/layer_00/compressed"] == first["gates/layer_01/window"] == 0.5
    assert "mfu" not in first  # a CPU has no peak
    before, after = (load_model(where).model for where in (tiny_folder, undisturbed / "model"))
    changed = [
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert sum(changed) > len(changed) / 2
    assert (
        load(str(undisturbed / "model")).ask(clip_path, "What?", max_new_tokens=2).text is not None
    )


@pytest.mark.parametrize("at", [2, 5], ids=["before the first checkpoint", "after it"])
def test_a_run_that_died_goes_on_to_the_same_losses_bit_by_bit(
    undisturbed, tiny_folder, manifest, tmp_path, at
):
    recipe = recipe_for(tiny_folder, manifest)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, callbacks=[Stop(at)])
    torch.manual_seed(99)
    train(recipe, tmp_path)
    assert losses(tmp_path) == losses(undisturbed)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        found = [(out / "model" / name).read_bytes() for out in (tmp_path, undisturbed)]
        assert found[0] == found[1]


BFLOAT16 = ("run.precision=bf16_weights", "optimizer.learning_rate=1e-2", "optimizer.steps=4")


def weight_of(folder):
    """Of a linear layer of the language model, in float32."""
    model = load_model(folder, dtype=torch.float32).model
    return model.get_parameter("model.language_model.layers.0.mlp.up_proj.weight")


def is_rounded(weight):
    return torch.equal(weight, weight.bfloat16().float())


def test_bfloat16_weights_go_on_from_their_masters_which_are_saved(tiny_folder, manifest, tmp_path):
    recipe = recipe_for(tiny_folder, manifest, *BFLOAT16)
    outs = [tmp_path / "undisturbed", tmp_path / "died"]
    models = [train(recipe, outs[0])]
    with pytest.raises(KeyboardInterrupt):
        train(recipe, outs[1], callbacks=[Stop(4)])
    models.append(train(recipe, outs[1]))
    assert losses(outs[0]) == losses(outs[1])
    weights = [weight_of(model) for model in models]
    assert torch.equal(*weights) and not is_rounded(weights[0])


def test_lora_beside_bfloat16_weights_merges_its_masters(tiny_folder, manifest, tmp_path):
    recipe = recipe_for(tiny_folder, manifest, *BFLOAT16, "model.lora_rank=2")
    assert not is_rounded(weight_of(train(recipe, tmp_path)))


def test_an_epoch_is_an_epoch_whose_last_step_has_what_is_left_also_after_it_died(
    tiny_folder, manifest, tmp_path
):
    settings = ("optimizer.steps=null", "optimizer.batch_size=3", "run.save_every=1")
    recipe = recipe_for(tiny_folder, manifest, *settings)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path, callbacks=[Stop(2)])
    train(recipe, tmp_path)
    logged = [line for line in lines(tmp_path / "log.jsonl") if "loss" in line]
    assert [(line["step"], line["epoch"]) for line in logged] == [(1, 0.75), (2, 1)]
    assert logged[-1]["tokens"] == sum(read_manifest(manifest).column("tokens"))


def test_the_loss_of_validation_data_is_logged_and_changes_nothing(
    undisturbed, tiny_folder, manifest, tmp_path, capsys
):
    own = write_manifest(
        tmp_path / "validation.parquet",
        [read_manifest(manifest)[0].record, record("text"), record("more text", turns=2)],
        AutoTokenizer.from_pretrained(TOKENIZER),
    )
    settings = (f"data.validation={own.path}", "run.evaluate_every=4", "run.evaluate_lengths=[]")
    model = train(recipe_for(tiny_folder, manifest, *settings), tmp_path / "run")
    said = "of 3 samples of data.validation, 1 are training samples and 0 more show their videos"
    assert said in capsys.readouterr().err
    assert losses(tmp_path / "run") == losses(undisturbed)
    found = [
        (line["step"], line["eval/loss"])
        for line in lines(tmp_path / "run/log.jsonl")
        if "eval/loss" in line
    ]
    assert [step for step, _ in found] == [4, 6]
    dataset = VideoDataset(own, tokenizer=AutoTokenizer.from_pretrained(TOKENIZER))
    trained = load_model(model).model.eval()
    total = labels = 0
    for index in range(3):
        batch = pack_batch([dataset[index]], sampling=dataset.sampling)
        count = int((batch.labels != -100).sum())
        total += trained(**batch.model_inputs()).loss.item() * count
        labels += count
    dataset.close()
    assert found[-1][1] == pytest.approx(total / labels, rel=1e-5)


@pytest.mark.parametrize("shards", [False, True])
def test_held_out_text_has_all_ranks_use_the_tower_where_weights_are_sharded(
    tiny_folder, tmp_path, shards
):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    own = write_manifest(tmp_path / "text.parquet", [record("text")], tokenizer)
    recipe = recipe_for(tiny_folder, own.path, f"parallel.fsdp={str(shards).lower()}")
    alone = SimpleNamespace(process_index=0, num_processes=1)
    ((batch, _),) = validation_batches(recipe, own, tokenizer, alone)()
    assert bool(batch.images) == shards


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fps": 1.0}, r"was built otherwise than data.manifest, with fps=1.0 \(not 2.0\)"),
        ({"system": "Be brief."}, r"with system='Be brief.' \(not 'You are"),
        ({}, "has the samples of data.manifest: want samples that are not trained on"),
    ],
)
def test_validation_data_are_built_as_the_training_data_and_are_others(
    tiny_folder, manifest, tmp_path, monkeypatch, change, message
):
    own = tmp_path / "validation.parquet"
    for name, value in change.items():
        monkeypatch.setitem(OPTIONS, name, value)
    records = [row.record for row in read_manifest(manifest)][: 4 if change else None]
    write_manifest(own, records, AutoTokenizer.from_pretrained(TOKENIZER))
    with pytest.raises(UsageError, match=message):
        train(recipe_for(tiny_folder, manifest, f"data.validation={own}"), tmp_path / "run")


def test_another_recipe_does_not_go_on_in_the_folder(undisturbed, tiny_folder, manifest, tmp_path):
    out = shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate=0.0001, this run has 0.001"):
        train(recipe_for(tiny_folder, manifest, "optimizer.learning_rate=1e-3"), out)


def test_a_finished_run_is_given_more_steps(undisturbed, tiny_folder, manifest, tmp_path, capsys):
    out = shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(UsageError, match=r"a run of 6 steps, this run has 4: .* at least 6"):
        train(recipe_for(tiny_folder, manifest, "optimizer.steps=4"), out)
    old = (out / "model/model.safetensors").read_bytes()
    more = recipe_for(tiny_folder, manifest, "optimizer.steps=9", "run.save_every=8")
    seen = []
    kept = At(9, lambda _: seen.append((out / "model/model.safetensors").read_bytes()))
    train(more, out, callbacks=[kept])
    said = "9 steps instead of 6: from step 7 on, learning rates are those of a schedule of 9 steps"
    assert f"{said}; {out / 'model'} stays until then" in capsys.readouterr().err
    assert seen == [old] and (out / "model/model.safetensors").read_bytes() != old
    assert [step for step, _, _ in losses(out)] == list(range(1, 10))
    assert losses(out)[:6] == losses(undisturbed)
    rates = [line["learning_rate"] for line in lines(out / "log.jsonl") if "loss" in line]
    cosine = [1e-4 * (1 + math.cos(math.pi * (step - 2) / 8)) / 2 for step in (7, 8, 9)]
    assert rates[6:] == pytest.approx(cosine)  # the first of 9 steps is the warm-up
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-8",
        "checkpoint-9",
    ]
    facts = json.loads((out / "run.json").read_text())
    assert facts["schedules"] == [{"from_step": 0, "steps": 6}, {"from_step": 6, "steps": 9}]
    train(more, out)  # it is finished again
    assert json.loads((out / "run.json").read_text())["schedules"] == facts["schedules"]
    assert "instead" not in capsys.readouterr().err


def test_a_step_without_finite_gradients_changes_nothing_and_names_its_samples(
    tiny_folder, manifest, tmp_path
):
    kept = {}

    def poison(model):
        kept["weights"] = {n: p.detach().clone() for n, p in model.named_parameters()}
        kept["hook"] = model.lm_head.register_forward_hook(lambda *_: _[2] * float("nan"))

    def heal(model):
        kept["hook"].remove()
        assert all(torch.equal(p, kept["weights"][n]) for n, p in model.named_parameters())

    train(recipe_for(tiny_folder, manifest), tmp_path, callbacks=[At(4, poison), At(5, heal)])
    (line,) = lines(tmp_path / "nonfinite.jsonl")
    assert line["step"] == 4
    named = {name for one in line["sequences"] for name in one["samples"]}
    assert named <= {f"clip{i}" for i in range(8)} and named
    assert all(one["loss"] == "nan" for one in line["sequences"])
    assert [loss == "nan" for _, loss, _ in losses(tmp_path)] == [step == 4 for step in range(1, 7)]


def test_steps_in_a_row_without_finite_gradients_end_the_run(tiny_folder, manifest, tmp_path):
    def poison(model):
        model.lm_head.register_forward_hook(lambda *_: _[2] * float("inf"))

    recipe = recipe_for(tiny_folder, manifest, "run.max_skipped=2", "optimizer.steps=8")
    with pytest.raises(TrainingError, match=r"2 steps in a row, up to step 3"):
        train(recipe, tmp_path, callbacks=[At(2, poison)])
    assert [line["step"] for line in lines(tmp_path / "nonfinite.jsonl")] == [2, 3]


class Poison(TrainerCallback):
    """Makes a weight infinite in a step of the optimizer."""

    def __init__(self, step):
        self.step = step

    def on_optimizer_step(self, args, state, control, model=None, **_):
        if state.global_step + 1 == self.step:
            with torch.no_grad():
                next(model.parameters()).view(-1)[0] = float("inf")


@pytest.mark.parametrize("settings", [(), ("model.lora_rank=2",)], ids=["all weights", "LoRA"])
@pytest.mark.parametrize("step", [2, 6], ids=["steps to come", "the last step"])
def test_weights_that_are_not_finite_end_the_run_and_are_never_saved(
    tiny_folder, manifest, tmp_path, capsys, step, settings
):
    recipe = recipe_for(tiny_folder, manifest, "run.save_every=6", *settings)
    with pytest.raises(TrainingError, match=f"weights are not finite after step {step}: lower"):
        train(recipe, tmp_path, callbacks=[Poison(step)])
    assert not list(tmp_path.rglob("*.safetensors"))
    assert capsys.readouterr().err.endswith("\n")  # the line of the progress


def test_a_disk_that_is_full_leaves_the_last_good_checkpoint(
    undisturbed, tiny_folder, manifest, tmp_path
):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(_):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    recipe = recipe_for(tiny_folder, manifest)
    try:
        with pytest.raises(TrainingError, match=r"the last good one is .*checkpoint-3; make room"):
            train(recipe, tmp_path, callbacks=[At(6, fill)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in tmp_path.glob("*checkpoint*")) == ["checkpoint-3"]
    train(recipe, tmp_path)
    assert losses(tmp_path) == losses(undisturbed)


class GateGradients(TrainerCallback):
    def __init__(self):
        self.largest = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        for name, parameter in model.named_parameters():
            if "g_proj" in name:
                value = float(parameter.grad.abs().max())
                self.largest[name] = max(self.largest.get(name, 0.0), value)


def test_gates_of_every_layer_but_the_last_receive_gradients(tiny_folder, manifest, tmp_path):
    """What vision rows compute in the last layer reaches no text row, so no loss."""
    seen = GateGradients()
    train(recipe_for(tiny_folder, manifest), tmp_path, callbacks=[seen])
    first = [value for name, value in seen.largest.items() if ".layers.0." in name]
    last = [value for name, value in seen.largest.items() if ".layers.1." in name]
    assert len(first) == len(last) == 4
    assert min(first) > 0
    assert max(last) == 0


@pytest.mark.parametrize("kind", ["nsa", "dense"])
def test_eight_samples_can_be_learnt_by_heart(tiny_folder, manifest, tmp_path, kind):
    recipe = recipe_for(
        tiny_folder,
        manifest,
        f"attention.kind={kind}",
        "optimizer.learning_rate=7e-3",
        "optimizer.steps=70",
        "data.context=512",
        "optimizer.batch_size=1",
        "run.save_every=1000",
    )
    train(recipe, tmp_path)
    curve = [loss for _, loss, _ in losses(tmp_path)]
    assert curve[0] > 5
    assert curve[-1] < 0.05


def test_activation_checkpointing_changes_no_loss(undisturbed, tiny_folder, manifest, tmp_path):
    train(recipe_for(tiny_folder, manifest, "parallel.activation_checkpointing=true"), tmp_path)
    torch.testing.assert_close(torch.tensor(losses(tmp_path)), torch.tensor(losses(undisturbed)))


def test_captured_steps_of_several_sequences_train_as_others_do(tiny_folder, manifest, tmp_path):
    settings = ("data.shapes=equal", "optimizer.steps=3")
    for capture in ("false", "true"):
        recipe = recipe_for(tiny_folder, manifest, *settings, f"run.capture={capture}")
        train(recipe, tmp_path / capture)
    found, wanted = (torch.tensor(losses(tmp_path / which)) for which in ("true", "false"))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_samples_that_no_graph_holds_are_refused_before_a_run_captures(tiny_folder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    path = write_manifest(tmp_path / "text.parquet", [record("text")], tokenizer).path
    recipe = recipe_for(tiny_folder, path, "data.shapes=equal", "run.capture=true")
    with pytest.raises(UsageError, match="capture=true and 1 samples that are not one video and"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_lora_goes_on_after_it_died_and_leaves_a_whole_model(tiny_folder, manifest, tmp_path):
    settings = ("model.lora_rank=4", "optimizer.learning_rate=1e-2", "attention.window_size=5")
    recipe = recipe_for(tiny_folder, manifest, *settings)
    outs = [tmp_path / "undisturbed", tmp_path / "died"]
    train(recipe, outs[0])
    with pytest.raises(KeyboardInterrupt):
        train(recipe, outs[1], callbacks=[Stop(5)])
    train(recipe, outs[1])
    assert losses(outs[0]) == losses(outs[1])
    models = [load_model(out / "model").model.state_dict() for out in outs]
    before = load_model(tiny_folder).model.state_dict()
    assert models[0].keys() == before.keys()
    assert all(torch.equal(models[0][name], models[1][name]) for name in before)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(models[0][name], before[name])
    # Its last checkpoint is an adapter that knows its base and how it attends.
    loaded = load_model(outs[0] / "checkpoint-6")
    assert loaded.model.config.nsa_spec == recipe.attention.method().spec
    assert loaded.notes == (f"LoRA adapter {loaded.adapter} (rank 4) merged into {tiny_folder}",)
    for name, value in loaded.model.state_dict().items():
        torch.testing.assert_close(value, models[0][name])


def test_a_run_whose_time_is_over_stops_with_a_checkpoint_and_goes_on(
    undisturbed, tiny_folder, manifest, tmp_path
):
    short = recipe_for(tiny_folder, manifest, "run.seconds=0.001")
    assert train(short, tmp_path) is None
    assert [step for step, _, _ in losses(tmp_path)] == [1]
    assert (tmp_path / "checkpoint-1").is_dir() and not (tmp_path / "model").exists()
    assert train(recipe_for(tiny_folder, manifest), tmp_path) == tmp_path / "model"
    assert losses(tmp_path) == losses(undisturbed)
