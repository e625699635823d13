"""Predicted memory against what the code allocates, at published widths and on real tensors."""

from dataclasses import replace

import pytest
import torch
from allocations import allocations
from torch._subclasses.fake_tensor import FakeTensorMode

from videonsa.bench.random_model import IDS, MODELS, config_fields, random_model
from videonsa.models.cache import VideoNSACache
from videonsa.models.config import VideoNSAConfig
from videonsa.models.decoding.steps import SPARE, rows_needed
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.features import PATCHES_PER_PART
from videonsa.models.growing import ROOM
from videonsa.models.methods import NSA, Dense
from videonsa.models.methods.evs import EVS
from videonsa.models.methods.visionzip import VisionZip
from videonsa.ops.spec import NSASpec
from videonsa.planning.memory import Workload, estimate_memory, tower_terms

TEXT = (14, 50)
PREFILLS = [
    ("7B", "nsa", {}, (120, 16, 16)),  # one chunk of rows
    ("7B", "nsa", {}, (1000, 16, 16)),
    ("7B", "nsa", {"block_size": "frame"}, (1024, 12, 20)),
    ("7B", "dense", {}, (1000, 16, 16)),
    ("3B", "nsa", {}, (2048, 16, 16)),
    ("3B", "dense", {}, (512, 6, 10)),
    ("32B", "nsa", {}, (2048, 16, 16)),
    ("72B", "nsa", {"num_selected_blocks": 16}, (700, 18, 22)),
]


@pytest.fixture(scope="module")
def fake():
    """A model runs on fake tensors outside of the mode, so that its rows stay real."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def small(name):
    """Two layers and blocks of a published width."""
    shape = MODELS[name]
    return replace(shape, gates=True, num_layers=2, vision=replace(shape.vision, depth=2))


def model_of(shape, spec, fake):
    torch.set_default_dtype(getattr(torch, shape.dtype))
    try:
        with fake:
            config = VideoNSAConfig(attention="nsa", nsa=spec, **config_fields(shape))
            return VideoNSAForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


PAPER = NSA()


def workload(shape, grid, method=PAPER, *, kernels=True, **options):
    tokens = grid[0] * grid[1] * grid[2] // 4 + sum(TEXT)
    return Workload(
        shape=replace(shape, method=method),
        grid=grid,
        prompt_tokens=tokens,
        max_new_tokens=1,
        kernels=kernels,
        **options,
    )


def prompt(grid):
    ids = torch.full((1, grid[0] * grid[1] * grid[2] // 4 + sum(TEXT)), 20)
    ids[:, TEXT[0] : -TEXT[1]] = IDS["video_token_id"]
    ids[:, TEXT[0] - 1] = IDS["vision_start_token_id"]
    return {
        "input_ids": ids,
        "video_grid_thw": torch.tensor([grid]),
        "second_per_grid_ts": [1.0],
        "logits_to_keep": 1,
    }


def stage(work, name):
    return next(stage for stage in estimate_memory(work).stages if stage.name == name)


@pytest.mark.parametrize(("name", "attention", "spec", "grid"), PREFILLS)
def test_prefill_is_predicted_within_3_percent(fake, name, attention, spec, grid):
    shape = small(name)
    model = model_of(shape, spec, fake)
    method = NSA(model.config.nsa_spec, "triton") if attention == "nsa" else Dense()
    work = workload(shape, grid, method)
    with allocations() as counted:
        with fake:
            embeds = torch.empty(1, work.prompt_tokens, shape.hidden_size, dtype=torch.bfloat16)
        cache = VideoNSACache()
        model(**prompt(grid), inputs_embeds=embeds, method=method, past_key_values=cache)
    terms = stage(work, "prefill").terms
    beside_weights = sum(terms.values()) - terms["weights"]
    assert beside_weights == pytest.approx(counted.peak, rel=0.03)
    held = sum(x.untyped_storage().nbytes() for y in cache.layers for x in (y.keys, y.values))
    assert 0 <= terms["cache"] - held <= ROOM * shape.cache_bytes_per_token
    assert terms["weights"] == sum(x.nbytes for x in model.parameters())


@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_the_next_token_is_predicted_within_3_percent(fake, attention):
    shape, grid = small("7B"), (512, 16, 16)
    model = model_of(shape, {}, fake)
    method = NSA(model.config.nsa_spec, "triton") if attention == "nsa" else Dense()
    work = workload(shape, grid, method)
    with fake:
        embeds = torch.empty(1, work.prompt_tokens, shape.hidden_size, dtype=torch.bfloat16)
    cache = VideoNSACache()
    arguments = {"method": method, "past_key_values": cache}
    with allocations() as counted:
        model(**prompt(grid), inputs_embeds=embeds, **arguments)
        counted.peak = counted.live
        model(input_ids=torch.tensor([[20]]), **arguments)
    terms = stage(work, "next token").terms
    assert sum(terms.values()) - terms["weights"] == pytest.approx(counted.peak, rel=0.03)


def test_a_cache_that_outgrows_its_room_is_predicted_within_a_row():
    shape = small("3B")
    work = replace(workload(shape, (100, 16, 16), kernels=False), max_new_tokens=ROOM + 1)
    counts = (work.prompt_tokens, ROOM, 1)
    parts = [
        torch.zeros(1, shape.num_kv_heads, count, shape.head_dim, dtype=torch.bfloat16)
        for count in counts
    ]
    cache = VideoNSACache()
    with allocations(torch.Tensor) as counted:
        for rows in parts:
            for layer in range(shape.num_layers):
                cache.update(rows, rows, layer)
    terms = stage(work, "next token").terms
    row = shape.num_kv_heads * shape.head_dim * shape.value_bytes
    assert terms["cache"] + terms["growing"] == pytest.approx(counted.peak, abs=row)


@pytest.mark.parametrize("max_new_tokens", [ROOM - 1, ROOM, 2 * ROOM])
def test_the_memory_of_captured_steps_is_predicted_from_above(max_new_tokens):
    shape = small("3B")
    work = replace(workload(shape, (100, 16, 16)), max_new_tokens=max_new_tokens)
    prefilled = torch.zeros(
        1, shape.num_kv_heads, work.prompt_tokens, shape.head_dim, dtype=torch.bfloat16
    )
    cache = VideoNSACache()
    with allocations(torch.Tensor) as counted:
        for layer in range(shape.num_layers):
            cache.update(prefilled, prefilled, layer)
        cache.reserve(rows_needed(0, max_new_tokens), spare=SPARE)
    terms = stage(work, "next token").terms
    predicted = terms["cache"] + terms.get("growing", 0)
    assert 0 <= predicted - counted.peak <= ROOM * shape.cache_bytes_per_token


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["3B", "72B"])
@pytest.mark.parametrize("grid", [(30, 16, 16), (260, 18, 22), (9, 74, 130)])
def test_the_tower_is_predicted_within_3_percent(fake, dtype, name, grid):
    shape = replace(small(name), dtype=dtype)
    model = model_of(shape, {}, fake)
    size = 2 * max(1, PATCHES_PER_PART // (grid[1] * grid[2]))

    def parts():
        for first in range(0, 2 * grid[0], size):
            with fake:
                count = min(size, 2 * grid[0] - first)
                part = torch.empty(count, 3, 14 * grid[1], 14 * grid[2], dtype=torch.uint8)
            yield part

    with allocations() as counted:
        model.encode_frames(parts())
    terms = tower_terms(workload(shape, grid))
    assert sum(terms.values()) - terms["weights"] == pytest.approx(counted.peak, rel=0.03)


@pytest.mark.parametrize("method", [VisionZip(), EVS()], ids=lambda one: one.name)
@pytest.mark.parametrize("grid", [(260, 18, 22), (9, 74, 130)])
def test_the_tower_and_what_a_method_asks_of_it_are_predicted(fake, method, grid):
    shape = small("7B")
    model = model_of(shape, {}, fake)
    size = 2 * max(1, PATCHES_PER_PART // (grid[1] * grid[2]))

    def parts():
        for first in range(0, 2 * grid[0], size):
            with fake:
                count = min(size, 2 * grid[0] - first)
                part = torch.empty(count, 3, 14 * grid[1], 14 * grid[2], dtype=torch.uint8)
            yield part

    with allocations() as counted:
        model.encode_kept(parts(), method=method)
    terms = tower_terms(workload(shape, grid, method))
    assert sum(terms.values()) - terms["weights"] == pytest.approx(counted.peak, rel=0.03)


def test_joining_is_predicted_exactly(fake):
    shape, grid = small("7B"), (512, 16, 16)
    work = workload(shape, grid)
    with fake:
        features = torch.empty(work.video_tokens, shape.hidden_size, dtype=torch.bfloat16)
    model = model_of(shape, {}, fake)
    with allocations() as counted:
        model.embed_prompt(prompt(grid)["input_ids"], video_features=features)
    terms = stage(work, "joining").terms
    assert terms["embeddings"] + terms["features"] == counted.peak + features.nbytes


@pytest.mark.parametrize("spec", [{}, {"block_size": "frame"}], ids=["blocks", "frames"])
@pytest.mark.parametrize("frames", [30, 120])
def test_the_reference_on_a_cpu_is_predicted_within_10_percent(spec, frames):
    shape = replace(MODELS["tiny"], gates=True, dtype="float32")
    model = random_model(shape, device=torch.device("cpu"), dtype=torch.float32)
    grid = (frames, 8, 8)
    method = NSA(NSASpec(**spec), "reference")
    work = workload(shape, grid, method, kernels=False)
    embeds = torch.randn(1, work.prompt_tokens, shape.hidden_size)
    with allocations(torch.Tensor) as counted:
        arguments = {"inputs_embeds": embeds.clone(), "method": method}
        model(**prompt(grid), **arguments, past_key_values=VideoNSACache())
    terms = stage(work, "prefill").terms
    assert sum(terms.values()) - terms["weights"] == pytest.approx(counted.peak, rel=0.1)
