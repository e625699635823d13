"""Two processes on gloo: they train as one does, are killed, and go on."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from fsdp_on_cpus import main_sharded
from ranks import run_ranks
from safetensors.torch import load_file
from small_run import (
    build_data,
    command_of,
    lines,
    losses,
    make_data,
    recipe_for,
    run_on_from_first_checkpoint,
    run_processes,
    start_torchrun,
)

from videonsa.cli.main import main
from videonsa.disk import sole_writer
from videonsa.inference.engine import load
from videonsa.models.checkpoints.loading import load_model
from videonsa.train.run import train

pytestmark = pytest.mark.slow
STEPS = 8
ASKED = ("run.evaluate_every=3", "run.evaluate_samples=1", "run.evaluate_lengths=['1k']")


@pytest.fixture(scope="module")
def recipe(tiny_folder, tmp_path_factory):
    data = build_data(tmp_path_factory.mktemp("data"))
    held_out = build_data(tmp_path_factory.mktemp("held-out"), num_videos=4)
    settings = (f"optimizer.steps={STEPS}", f"data.validation={held_out}")
    return recipe_for(tiny_folder, data, *settings)


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    train(recipe, out)
    return out


def held_out_loss(out):
    """After the last step."""
    logged = [line["eval/loss"] for line in lines(out / "log.jsonl") if "eval/loss" in line]
    return logged[-1]


def assert_same_training(out, expected):
    """The same curve and the same weights, but for the order of sums."""
    found, wanted = (torch.tensor(losses(where)) for where in (out, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert held_out_loss(out) == pytest.approx(held_out_loss(expected), rel=1e-5)
    models = [load_model(where / "model").model for where in (out, expected)]
    for own, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=2e-5)


def children(pid):
    """What torchrun started: it puts them into sessions of their own."""
    return [int(own) for own in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture(scope="module")
def sharing(recipe, tmp_path_factory):
    """A run whose two processes share every packed sequence."""
    out = tmp_path_factory.mktemp("sharing") / "run"
    run_processes(recipe, out, "parallel.sequence=2")
    return out


def test_processes_that_share_sequences_train_as_one(sharing, alone):
    assert_same_training(sharing, alone)


def test_processes_with_sequences_of_their_own_train_as_one(recipe, alone, tmp_path):
    run_processes(recipe, tmp_path / "run")
    assert_same_training(tmp_path / "run", alone)


def test_processes_that_shard_weights_train_as_one_and_go_on(recipe, alone, tmp_path):
    out = tmp_path / "run"
    sharded = ("parallel.fsdp=true", "parallel.sequence=2", *ASKED)
    run_processes(recipe, out, *sharded, program=main_sharded)
    assert_same_training(out, alone)
    for step in (3, 6):
        assert (out / "eval" / f"step-{step}" / "samples.jsonl").exists()
    whole = losses(out)
    run_on_from_first_checkpoint(recipe, out, *sharded, program=main_sharded)
    again = losses(out)
    assert [line[:2] for line in again] == [line[:2] for line in whole]
    # How the norm over shards is rounded depends on where they lie in memory.
    assert [norm for *_, norm in again] == pytest.approx([norm for *_, norm in whole], rel=1e-6)


def test_processes_that_shard_weights_and_sum_sequences_train_in_bf16(tiny_folder, tmp_path):
    # In some of these sequences one of the processes has no vision row.
    recipe = recipe_for(tiny_folder, make_data(tmp_path / "data"))
    train(recipe, tmp_path / "alone")
    settings = ("parallel.fsdp=true", "parallel.sequence=2", "run.precision=bf16")
    again = "parallel.activation_checkpointing=true"  # of the tower's blocks too
    run_processes(recipe, tmp_path / "run", *settings, again, program=main_sharded)
    found, wanted = (torch.tensor(losses(tmp_path / name)) for name in ("run", "alone"))
    torch.testing.assert_close(found, wanted, rtol=5e-2, atol=1e-2)


def test_processes_with_bfloat16_weights_sum_the_gradients_of_all_sequences(tiny_folder, tmp_path):
    chosen = ("run.precision=bf16_weights", "optimizer.batch_size=4", "optimizer.steps=3")
    recipe = recipe_for(tiny_folder, make_data(tmp_path / "data"), *chosen)
    train(recipe, tmp_path / "alone")
    run_processes(recipe, tmp_path / "run")
    found, wanted = (torch.tensor(losses(tmp_path / name)) for name in ("run", "alone"))
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-2)


def test_processes_that_shard_lora_train_the_adapter_and_the_model_of_one(recipe, tmp_path):
    chosen = ("model.lora_rank=4", "optimizer.learning_rate=1e-2", "optimizer.steps=2")
    held_out = f"data.validation={recipe.data.validation}"
    lora = recipe_for(recipe.model.base, recipe.data.manifest, held_out, *chosen)
    outs = [tmp_path / "alone", tmp_path / "run"]
    train(lora, outs[0])
    run_processes(lora, outs[1], "parallel.fsdp=true", program=main_sharded)
    assert_same_training(outs[1], outs[0])
    adapters = [load_file(out / "checkpoint-2/adapter_model.safetensors") for out in outs]
    assert adapters[0].keys() == adapters[1].keys()
    for name, value in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], value, rtol=1e-3, atol=1e-4)


def test_killed_processes_go_on_to_the_same_losses_bit_by_bit(sharing, recipe, tmp_path, clip_path):
    out = tmp_path / "run"
    process = start_torchrun(recipe, out, "parallel.sequence=2")
    log, patience = out / "log.jsonl", time.monotonic() + 120
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.02)
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert not (out / "model").exists()
    run_processes(recipe, out, "parallel.sequence=2")
    assert losses(out) == losses(sharing)
    assert load(str(out / "model")).ask(clip_path, "What?", max_new_tokens=2).usage.video_tokens > 0


def test_processes_of_a_second_run_are_all_told_who_holds_the_folder(recipe, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    with sole_writer(out, work="training"):
        ended = run_ranks(main, command_of(recipe, out), folder=tmp_path / "output")
    assert ended.statuses == (2, 2)
    assert ended.output.count(f"{out} is being written by training (process {os.getpid()} on") == 2
    assert not (out / "recipe.yaml").exists()


def test_processes_whose_time_is_over_stop_together_and_go_on(sharing, recipe, tmp_path):
    out = tmp_path / "run"
    run_processes(recipe, out, "parallel.sequence=2", "run.seconds=0.001")
    assert len(losses(out)) == 1 and not (out / "model").exists()
    run_processes(recipe, out, "parallel.sequence=2")
    assert losses(out) == losses(sharing)
