"""The folder of a run: one writer, whole checkpoints, and what is damaged is named in one line."""

import io
import os
import random
import resource
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from small_run import losses, make_data, recipe_for

from videonsa.data.manifest import read_manifest
from videonsa.disk import sole_writer
from videonsa.errors import TrainingError, UsageError, VideoNSAError
from videonsa.train.folder import open_folder
from videonsa.train.run import train
from videonsa.train.saving import CONTENTS, check_whole, checkpoints, publish

ALONE = SimpleNamespace(is_main_process=True, num_processes=1, wait_for_everyone=lambda: None)
LAST = "checkpoint-4"
SAVED = (
    *(
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "loader_0.json",
        "model.safetensors",
        "modeling_videonsa.py",
    ),
    *("optimizer.pt", "rng_state.pth", "scheduler.pt", "tokenizer.json", "tokenizer_config.json"),
    *("trainer_state.json", "training_args.bin", "video_preprocessor_config.json"),
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def recipe(tiny_folder, manifest):
    return recipe_for(tiny_folder, manifest, "optimizer.steps=6", "run.save_every=2")


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory):
    """Six steps; the last checkpoint is taken away, as if the run had died after the fifth."""
    out = tmp_path_factory.mktemp("run") / "run"
    kept = recipe_for(recipe.model.base, recipe.data.manifest, "run.save_every=2", "run.keep=3")
    train(kept, out)
    shutil.rmtree(out / "checkpoint-6")
    shutil.rmtree(out / "model")
    return out


@pytest.fixture
def run(undisturbed, tmp_path):
    return shutil.copytree(undisturbed, tmp_path / "run")


def open_again(recipe, manifest, out):
    return open_folder(recipe, out, read_manifest(manifest), ALONE, steps=6, epoch={}, asked={})


def state_again(checkpoint):
    """Let a checkpoint state what it holds now."""
    (checkpoint / CONTENTS).unlink()
    (checkpoint.parent / ".saving").mkdir()
    shutil.move(checkpoint, checkpoint.parent / ".saving" / checkpoint.name)
    publish(checkpoint.parent, checkpoint.name, keep=9)


def remove(path, rng):
    path.unlink()


def empty(path, rng):
    path.write_bytes(b"")


def cut(path, rng):
    path.write_bytes(path.read_bytes()[: rng.randrange(1, path.stat().st_size)])


def flip(path, rng):
    content = bytearray(path.read_bytes())
    for _ in range(3):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(bytes(content))


def scramble(path, rng):
    path.write_bytes(rng.randbytes(path.stat().st_size))


def make_folder(path, rng):
    path.unlink()
    path.mkdir()


def make_pipe(path, rng):
    path.unlink()
    os.mkfifo(path)


DAMAGES = (remove, empty, cut, flip, scramble, make_folder, make_pipe)


def test_a_sound_folder_goes_on_from_its_last_checkpoint(run, recipe, manifest):
    assert open_again(recipe, manifest, run) == run / LAST
    assert sorted(path.name for path in (run / LAST).iterdir()) == sorted([*SAVED, CONTENTS])


@pytest.mark.parametrize("other", ["parallel.fsdp=true", "parallel.deepspeed"])
def test_an_optimizer_in_shards_and_a_whole_one_do_not_go_on_from_each_other(
    run, recipe, manifest, other
):
    setting = other if "=" in other else f"{other}=zero.json"
    sharded = recipe_for(recipe.model.base, recipe.data.manifest, setting)
    message = f"has checkpoints of a run with parallel.fsdp=false, this run has {other} and"
    with pytest.raises(UsageError, match=message):
        open_again(sharded, manifest, run)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", SAVED)
def test_a_damaged_file_of_a_checkpoint_is_named(run, name, damage):
    damage(run / LAST / name, random.Random(f"{name}/{damage.__name__}"))
    with pytest.raises(TrainingError) as caught:
        check_whole(run / LAST)
    message = str(caught.value)
    assert f"{LAST} lacks {name}: " in message or f"{LAST}/{name} is damaged" in message
    assert message.endswith(f"put it back, or remove {run / LAST} to go on from checkpoint-2")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["recipe.yaml", "run.json", f"{LAST}/{CONTENTS}"])
def test_what_a_run_wrote_down_is_read_or_named_in_one_line(run, recipe, manifest, name, damage):
    for seed in range(8 if damage in (cut, flip, scramble) else 1):
        damage(run / name, random.Random(f"{name}/{damage.__name__}/{seed}"))
        try:
            open_again(recipe, manifest, run)
            told = damage in (cut, flip)  # the line break at the end, or the case of a letter
        except VideoNSAError as error:
            told = str(run) in str(error) and "\n" not in str(error)
        assert told


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "[]"),
        ("run.json", '{"data_hash": ' + "9" * 10_000 + "}"),
        ("run.json", "[" * 100_000),
        ("recipe.yaml", "- a"),
        ("recipe.yaml", "optimizer: 3"),
        ("recipe.yaml", "optimizer: {steps: " + "9" * 10_000 + "}"),
        ("recipe.yaml", "optimizer: {steps: 0x" + "f" * 10_000 + "}"),
        ("recipe.yaml", "optimizer: {learning_rate: 2026-99-99}"),
        ("recipe.yaml", "{" * 5000),
        ("recipe.yaml", "? [a, b]\n: 1"),
        (f"{LAST}/{CONTENTS}", "{}"),
        (f"{LAST}/{CONTENTS}", '{"trainer_state.json": 5}'),
        (f"{LAST}/{CONTENTS}", '{"../../..": {}}'),
    ],
)
def test_wrong_types_and_huge_numbers_are_named_in_one_line(run, recipe, manifest, name, content):
    (run / name).write_text(content)
    with pytest.raises(VideoNSAError) as caught:
        open_again(recipe, manifest, run)
    assert str(run) in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("trainer_state.json", b"{}"),
        ("trainer_state.json", b"[]"),
        ("trainer_state.json", b'{"global_step": 4, "log_history": [3]}'),
        ("trainer_state.json", b'{"global_step": 4, "stateful_callbacks": 7}'),
        ("trainer_state.json", b'{"global_step": ' + b"9" * 10_000 + b"}"),
        ("loader_0.json", b"{}"),
        ("loader_0.json", b'{"sampler": 3}'),
        ("optimizer.pt", b"nothing"),
        ("scheduler.pt", b""),
        ("rng_state.pth", b"PK\x03\x04"),
    ],
)
def test_a_file_that_was_damaged_before_it_was_saved_is_one_line_too(run, recipe, name, content):
    (run / LAST / name).write_bytes(content)
    state_again(run / LAST)
    with pytest.raises(VideoNSAError) as caught:
        train(recipe, run)
    assert f"{run / LAST} cannot be read" in str(caught.value)


def test_optimizer_states_of_another_model_are_one_line(run, recipe):
    torch.save({"state": {}, "param_groups": []}, run / LAST / "optimizer.pt")
    state_again(run / LAST)
    with pytest.raises(TrainingError, match=r"checkpoint-4 cannot be read \(ValueError"):
        train(recipe, run)


def test_without_the_damaged_checkpoint_the_run_goes_on_from_the_one_before(
    run, undisturbed, recipe
):
    (run / LAST / "optimizer.pt").unlink()
    with pytest.raises(TrainingError, match=r"lacks optimizer\.pt: .* go on from checkpoint-2"):
        train(recipe, run)
    shutil.rmtree(run / LAST)
    train(recipe, run)
    assert losses(run) == losses(undisturbed)


def test_only_checkpoints_by_name_count_and_an_empty_one_is_refused(run, recipe, manifest):
    for name in (
        "checkpoint-x",
        "checkpoint-",
        "checkpoint-7.old",
        f"checkpoint-{'9' * 5000}"[:250],
    ):
        (run / name).mkdir()
    (run / "checkpoint-8").write_text("a file")
    assert checkpoints(run) == [run / "checkpoint-2", run / LAST]
    assert open_again(recipe, manifest, run) == run / LAST
    (run / "checkpoint-99").mkdir()
    with pytest.raises(TrainingError, match=r"checkpoint-99/contents\.json .* from checkpoint-4"):
        open_again(recipe, manifest, run)
    (run / "checkpoint-99").rmdir()
    shutil.copytree(run / LAST, run / "checkpoint-99")
    with pytest.raises(TrainingError, match=r"checkpoint-99 cannot be read .*it is of step 4"):
        open_again(recipe, manifest, run)


def test_a_second_run_is_told_who_holds_the_folder_and_changes_nothing(run, recipe):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    with sole_writer(run, work="training"):
        with pytest.raises(
            UsageError, match=rf"is being written by training \(process {os.getpid()}"
        ):
            train(recipe, run)
        now = {path: path.stat().st_mtime_ns for path in before}
    assert now == before


@pytest.mark.parametrize("name", ["log.jsonl", "recipe.yaml", "run.json", ".lock", ".lock.json"])
def test_a_folder_where_a_file_belongs_is_one_line(recipe, tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(VideoNSAError, match="cannot be written"):
        train(recipe, tmp_path)


def test_a_file_where_the_model_belongs_is_one_line(recipe, tmp_path):
    (tmp_path / "model").write_text("")
    with pytest.raises(UsageError, match="model is a file, and the trained model goes there"):
        train(recipe, tmp_path)


@pytest.mark.parametrize("room", [10, 600])
def test_a_disk_that_is_full_at_the_first_files_is_one_line(recipe, tmp_path, room, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # pytest's is a file
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
        with pytest.raises(VideoNSAError, match=r"cannot be written \(File too large\)"):
            train(recipe, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
