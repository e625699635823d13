import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from small_run import make_data

from videonsa.data.manifest import read_manifest
from videonsa.errors import UsageError
from videonsa.models.shape import published_shape
from videonsa.train import checks
from videonsa.train.checks import (
    check_captured_samples,
    check_data,
    check_processes,
    choose_fsdp,
)
from videonsa.train.reading import read_recipe

SHAPE = published_shape("Qwen/Qwen2.5-VL-7B-Instruct")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return read_manifest(make_data(tmp_path_factory.mktemp("data"), num_samples=3))


def seven(*settings):
    names = ("fps", "min_frames", "max_frames", "max_pixels")
    free = [f"data.{name}=null" for name in names]
    return read_recipe("videonsa-7b", settings=[*free, *settings])


def check(manifest, *settings):
    check_data(seven(*settings), manifest, SHAPE, tokenizer_hash=manifest.facts.tokenizer_hash)


@pytest.mark.parametrize("world_size", [2, 8, 32])
def test_processes_that_divide_the_work_are_taken(world_size):
    check_processes(seven(), world_size=world_size, on_gpu=True)
    check_processes(seven("parallel.sequence=2"), world_size=world_size, on_gpu=True)
    check_processes(seven("parallel.fsdp=true"), world_size=world_size, on_gpu=True)


@pytest.mark.parametrize(
    ("world_size", "settings", "message"),
    [
        (6, ["parallel.sequence=4"], "want a multiple of it, such as 4 or 8 processes"),
        (2, ["parallel.sequence=4"], "want a multiple of it, such as 4 processes"),
        (8, ["optimizer.batch_size=20"], "batch_size=20 over 8 processes.* such as 16 or 24"),
        (6, [], "batch_size=32 over 6 processes.* such as 30 or 36"),
        (8, ["optimizer.batch_size=2", "parallel.sequence=2"], "over 4 processes.* such as 4"),
        (1, ["parallel.fsdp=true"], "parallel.fsdp=true with 1 processes"),
        (
            8,
            ["model.lora_rank=8", "parallel.deepspeed=zero.json"],
            "LoRA is sharded by FSDP2 alone",
        ),
    ],
)
def test_what_cannot_be_shared_names_the_nearest_that_can(world_size, settings, message):
    with pytest.raises(UsageError, match=message):
        check_processes(seven(*settings), world_size=world_size, on_gpu=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.context=20"], "the longest sample .* has 44 tokens; want at least 44"),
        (
            ["data.fps=4"],
            "built with fps=2.0, the recipe wants 4: build it so, or --set data.fps=2",
        ),
        (
            ["data.fps=4", "data.max_frames=550"],
            "built with fps=2.0, max_frames=768, the recipe wants 4, 550: build it so, or "
            "--set data.fps=2.0 --set data.max_frames=768",
        ),
        (["data.min_frames=350"], "built with min_frames=0, the recipe wants 350"),
        (["data.max_frames=550"], "built with max_frames=768, the recipe wants 550"),
        (["parallel.sequence=64"], "the shortest sample has 41 tokens.* want at most 20"),
    ],
)
def test_data_that_cannot_be_used_says_what_can(manifest, settings, message):
    with pytest.raises(UsageError, match=message):
        check(manifest, *settings)


def test_data_that_fit_are_taken_in_sequences_longer_than_the_model_has_positions(manifest):
    check(manifest, "data.context=44")
    check(manifest, "data.context=200000")


def test_samples_longer_than_the_model_has_positions_are_refused(manifest):
    short = replace(SHAPE, context=40)
    own = manifest.facts.tokenizer_hash
    with pytest.raises(UsageError, match=r"44 tokens: .* has 40 positions"):
        check_data(seven("data.context=44"), manifest, short, tokenizer_hash=own)


def test_more_shapes_of_packs_than_can_be_captured_are_refused():
    few, many = (SimpleNamespace(of_rows=np.arange(n), shapes=range(n)) for n in (32, 33))
    captured = read_recipe("tiny", settings=("run.capture=true", "data.shapes=equal"))
    check_captured_samples(captured, few)
    check_captured_samples(read_recipe("tiny"), many)
    with pytest.raises(UsageError, match=r"packs of 33 shapes.* want at most 32"):
        check_captured_samples(captured, many)


def test_data_counted_with_another_tokenizer_are_refused(manifest):
    with pytest.raises(UsageError, match="counted with another tokenizer than that of Qwen/"):
        check_data(seven("data.context=44"), manifest, SHAPE, tokenizer_hash="another")


@pytest.mark.parametrize(
    ("settings", "world_size", "memory", "line"),
    [
        ([], 8, 80, "on, weights, gradients and optimizer take 133 GB, a GPU has 80"),
        ([], 8, 288, "off, weights, gradients and optimizer take 133 GB, a GPU has 288"),
        (["model.lora_rank=8"], 2, 80, "off, weights take 33 GB, a GPU has 80"),
        (["model.freeze=[llm]"], 2, 40, "on, weights take 33 GB, a GPU has 40"),
        ([], 1, 80, "off, one process trains; .* a GPU has 80: start several processes by torch"),
        (["parallel.deepspeed=zero.json"], 8, 80, "off, DeepSpeed shards"),
        ([], 2, None, "off, on CPUs weights are not sharded"),
    ],
)
def test_weights_are_sharded_where_one_of_several_gpus_would_not_hold_them(
    settings, world_size, memory, line
):
    memory = None if memory is None else memory * 10**9
    chosen, found = choose_fsdp(seven(*settings), SHAPE, world_size=world_size, memory=memory)
    assert re.match(f"parallel.fsdp=auto: {line}", found)
    assert chosen == line.startswith("on,")


def test_weights_are_not_sharded_on_cpus():
    with pytest.raises(UsageError, match="2 processes on CPUs: want two or more GPUs"):
        check_processes(seven("parallel.fsdp=true"), world_size=2, on_gpu=False)
    deepspeed = ("parallel.deepspeed=zero.json",)
    with pytest.raises(UsageError, match=r"zero\.json on CPUs.* want a GPU a process"):
        check_processes(seven(*deepspeed), world_size=2, on_gpu=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read .*no such file.* wants DeepSpeed's config, an object"),
        ("stage: 3", "not readable JSON .*Expecting value"),
        ("[]", "holds no JSON object: .* wants DeepSpeed's config"),
        ('{"zero_optimization": null}', "want DeepSpeed's config, an object"),
        ('{"zero_optimization": {"stage": 3}}', "shards that no command loads; set .*16bit"),
        (
            '{"zero_optimization": {"stage": 3, '
            '"stage3_gather_16bit_weights_on_model_save": "auto"}}',
            "shards that no command loads",
        ),
    ],
)
def test_a_deepspeed_config_that_leaves_no_model_is_refused(text, message, tmp_path):
    path = tmp_path / "zero.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UsageError, match=message):
        checks.check_deepspeed(str(path))


def test_deepspeed_configs_that_leave_a_model_are_taken(tmp_path):
    path = tmp_path / "zero.json"
    for zero in ({"stage": 2}, {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True}):
        path.write_text(json.dumps({"zero_optimization": zero}))
        checks.check_deepspeed(str(path))


def test_too_little_shared_memory_is_told_before_workers_die_of_it(monkeypatch, tmp_path):
    recipe = read_recipe(
        "tiny", settings=["data.manifest=data", "data.context=32768", "data.num_workers=2"]
    )
    monkeypatch.setattr(checks, "SHARED_MEMORY", tmp_path)
    free = SimpleNamespace(free=2**30)
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: free)
    manifest = SimpleNamespace(facts=SimpleNamespace(options={"sources": ["a.json"]}))
    checks.check_shared_memory(recipe, manifest, runs=1)
    with pytest.raises(
        UsageError, match=r"has 1\.1 GB free, 30 batches .* want 4\.6:.*num_workers"
    ):
        checks.check_shared_memory(recipe, manifest, runs=6)
    drawn = {"sources": ["synthetic:count=9,frames=128"]}
    checks.check_shared_memory(
        recipe, SimpleNamespace(facts=SimpleNamespace(options=drawn)), runs=6
    )
    monkeypatch.setattr(checks, "SHARED_MEMORY", tmp_path / "none")
    checks.check_shared_memory(recipe, manifest, runs=6)
