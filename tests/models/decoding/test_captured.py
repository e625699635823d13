"""Steps captured as CUDA graphs: the same numbers as uncaptured, and as close as the plain path."""

import pytest
import torch
from tiny_models import prompt, tiny

import videonsa
from videonsa.inference import decoding
from videonsa.inference.decoding import decode, decode_each
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.reasons import why_not_captured
from videonsa.models.decoding.steps import KeptSteps, StaticSteps, rows_needed
from videonsa.models.growing import ROOM
from videonsa.models.methods.fastv import FastV

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
QUESTION = [40 + i % 70 for i in range(20)]
TURNS = 4
"""The first runs as it is, the second is captured."""


def model_in(dtype):
    return tiny().to(DEVICE, dtype)


@torch.inference_mode()
def watched(model, num_patches=4, method=None):
    cache, inputs = VideoNSACache(), prompt(num_patches)
    for name in ("input_ids", "pixel_values_videos"):
        inputs[name] = inputs[name].to(DEVICE)
    model(**inputs, past_key_values=cache, method=method)
    return cache


def token(number):
    return torch.tensor([number], device=DEVICE)


@torch.inference_mode()
def along(steps, tokens):
    """Logits `[len(tokens), V]` after a question and after each token but the last."""
    steps.begin(rows_needed(len(QUESTION), len(tokens)))
    found = [steps.read([QUESTION]).clone()]
    found += [steps.step(token(number)).clone() for number in tokens[:-1]]
    return torch.cat(found)


@torch.inference_mode()
def plainly_along(model, tokens, question=QUESTION, cache=None):
    cache = watched(model) if cache is None else cache
    parts = [question, *([number] for number in tokens[:-1])]
    given = {"past_key_values": cache, "logits_to_keep": 1}
    found = [model(torch.tensor([ids], device=DEVICE), **given).logits[:, 0] for ids in parts]
    return torch.cat(found).float()


def behind_the_best(model, logits, tokens):
    """How far logits `[L, V]` of tokens are below the highest, at most; share where they are it."""
    logits = logits.clone()
    # Placeholders are never chosen.
    logits[:, [model.config.image_token_id, model.config.video_token_id]] = -torch.inf
    chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
    behind = logits.amax(-1) - chosen
    return float(behind.max()), float((behind == 0).float().mean())


def test_a_captured_step_gives_the_same_bits_as_one_that_is_not():
    model = model_in(torch.bfloat16)
    tokens = [20 + i for i in range(12)]
    cache = watched(model)
    captured = StaticSteps(model, cache, batch=1, captures=True)
    wanted = along(StaticSteps(model, cache, batch=1, captures=False), tokens)
    for _ in range(TURNS):
        assert torch.equal(along(captured, tokens), wanted)
    assert captured.graphs.why_not is None
    assert captured.graphs.has(1)
    assert captured.graphs.has(32)


def test_steps_behind_layers_of_different_lengths_are_captured():
    model, method = model_in(torch.float32), FastV(layer=1, ratio=0.3)
    cache, tokens = watched(model, 8, method), [20 + i for i in range(12)]
    assert len({layer.get_seq_length() for layer in cache.layers}) == 2
    assert why_not_captured(model, cache, method) is None
    captured = StaticSteps(model, cache, batch=1, captures=True)
    wanted = along(StaticSteps(model, cache, batch=1, captures=False), tokens)
    for _ in range(TURNS):
        assert torch.equal(along(captured, tokens), wanted)
    assert captured.graphs.has(1)
    plain = plainly_along(model, tokens, cache=cache.fork())
    torch.testing.assert_close(wanted, plain, atol=1e-4, rtol=1e-3)


def test_256_greedy_tokens_are_those_of_the_plain_path_where_rounding_leaves_a_choice():
    """Sums in another order: of float32's logits both paths are as far away."""
    model = model_in(torch.bfloat16)
    cache = watched(model)
    kept = KeptSteps(model, cache)
    settings = GenerationSettings(max_new_tokens=256)
    inputs = {"input_ids": torch.tensor([QUESTION], device=DEVICE)}
    tokens = [
        ids[0] for ids in decode(model, inputs, cache, settings=settings, stop_ids=set(), kept=kept)
    ]
    assert kept.decoding == "captured steps"
    assert cache.get_seq_length() == cache.tokens.vision_mask.shape[1] == 22 + 20 + 255

    cache.crop(22 - cache.get_seq_length())
    ours = along(kept.of(1, captures=True), tokens)
    plain = plainly_along(model, tokens)
    exact = plainly_along(model_in(torch.bfloat16).float(), tokens)
    error, allowed = (float((x - exact).abs().amax()) for x in (ours, plain))
    assert error <= 2 * allowed
    # So the two paths differ by three times what is allowed at most, and a token that one chose is
    # no further than twice that behind the other's best.
    behind, equal = behind_the_best(model, plain, tokens)
    assert behind <= 6 * allowed
    assert equal >= 0.9


def test_a_seed_draws_the_same_tokens_before_and_after_choosing_is_captured():
    model = model_in(torch.bfloat16)
    cache = watched(model)
    kept = KeptSteps(model, cache)
    inputs = {"input_ids": torch.tensor([QUESTION], device=DEVICE)}

    def drawn(**options):
        settings = GenerationSettings(max_new_tokens=24, temperature=2.0, **options)
        steps = decode(model, inputs, cache, settings=settings, stop_ids=set(), kept=kept)
        tokens = [ids[0] for ids in steps]
        cache.crop(22 - cache.get_seq_length())
        return tokens

    penalised = [drawn(seed=5, repetition_penalty=1.5) for _ in range(TURNS)]
    assert len(set(map(tuple, penalised))) == 1
    others = [drawn(seed=seed, top_k=20) for seed in (5, 6, 5, 6)]
    assert others[:2] == others[2:]
    assert others[0] != others[1]
    assert drawn(seed=5, repetition_penalty=1.5) == penalised[0]
    assert kept.decoding == "captured steps"


def test_graphs_are_captured_anew_when_the_memory_moved():
    model = model_in(torch.bfloat16)
    cache = watched(model)
    steps = StaticSteps(model, cache, batch=1, captures=True)
    for _ in range(TURNS):
        along(steps, [50, 51, 52])
    before = cache.layers[0].memory[0].data_ptr()
    more = torch.randint(20, 120, (1, 4 * ROOM), device=DEVICE)
    with torch.inference_mode():
        model(more, past_key_values=cache)
    assert cache.layers[0].memory[0].data_ptr() != before
    wanted = along(StaticSteps(model, cache, batch=1, captures=False), [50, 51, 52])
    for _ in range(TURNS):
        assert torch.equal(along(steps, [50, 51, 52]), wanted)
    assert steps.graphs.has(1)


def test_graphs_are_captured_anew_when_the_model_was_moved():
    model = model_in(torch.bfloat16)
    cache = watched(model)
    steps = StaticSteps(model, cache, batch=1, captures=True)
    for _ in range(TURNS):
        wanted = along(steps, [50, 51, 52])
    kept = [torch.empty(2**22, device=DEVICE) for _ in range(8)]
    model.cpu()
    taken = [torch.full((64, 64), torch.nan, device=DEVICE) for _ in range(64)]
    model.to(DEVICE)
    assert torch.equal(along(steps, [50, 51, 52]), wanted)
    del kept, taken


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_four_questions_over_one_cache_are_answered_as_each_alone(dtype):
    model = model_in(dtype)
    cache = watched(model)
    length, questions = cache.get_seq_length(), [QUESTION[:n] for n in (20, 3, 1, 12)]
    settings = GenerationSettings(max_new_tokens=24)
    kept = KeptSteps(model, cache)
    given = {"settings": settings, "stop_ids": set()}
    for _ in range(TURNS):
        together = list(decode_each(model, questions, cache, kept=kept, **given))
    assert kept.decoding == "captured steps"
    assert cache.get_seq_length() == length
    steps = kept.of(4, captures=True)
    steps.begin(rows_needed(20, 24))
    found = steps.read(questions).clone()
    with torch.inference_mode():
        alone = torch.cat(
            [
                model(torch.tensor([ids], device=DEVICE), past_key_values=cache.fork()).logits[
                    :, -1
                ]
                for ids in questions
            ]
        ).float()
    bound = 1e-4 if dtype == torch.float32 else 0.05 * float(alone.abs().amax())
    assert float((found - alone).abs().amax()) <= bound
    if dtype == torch.float32:
        for number, ids in enumerate(questions):
            inputs = {"input_ids": torch.tensor([ids], device=DEVICE)}
            own = list(decode(model, inputs, cache.fork(), **given))
            assert [row[number] for row in together] == [one for (one,) in own]


@pytest.mark.parametrize("weights", ["full", "int8", "fp8"])
def test_the_embedded_model_answers_by_captured_steps_as_plainly(weights, monkeypatch):
    if weights == "int8":
        pytest.importorskip("torchao")
    if weights == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("products of float8 want compute capability 8.9")
    qa = videonsa.load("embedded", device=DEVICE, weights=weights)
    frames = torch.randint(0, 256, (8, 3, 112, 112), dtype=torch.uint8)
    asked = qa.tokenizer("What colour is the ball?", return_tensors="pt").input_ids.to(DEVICE)
    settings = GenerationSettings(max_new_tokens=64)
    with torch.inference_mode():
        features = qa.model.encode_frames([frames])
        ids = torch.full((1, len(features)), qa.model.config.video_token_id, device=DEVICE)
        given = {
            "video_grid_thw": torch.tensor([[4, 8, 8]]),
            "video_times": [(0.0, 1.0, 2.0, 3.0)],
            "inputs_embeds": qa.model.embed_prompt(ids, video_features=features),
        }
        cache = qa.model(ids, use_cache=True, **given).past_key_values
    kept = KeptSteps(qa.model, cache)

    def answered():
        steps = decode(
            qa.model,
            {"input_ids": asked},
            cache,
            settings=settings,
            stop_ids=set(),
            kept=kept,
        )
        found = [ids[0] for ids in steps]
        cache.crop(len(features) - cache.get_seq_length())
        return found

    found = [answered() for _ in range(TURNS)]
    assert kept.decoding == "captured steps"
    monkeypatch.setattr(decoding, "why_not_captured", lambda *_: "asked to")
    wanted = answered()
    assert kept.decoding == "plain steps: asked to"
    assert all(one == found[0] for one in found)
    assert found[0][0] == wanted[0]
    # Token by token: in float8, products of few rows and of many differ.
    logits = plainly_along(qa.model, found[0], asked[0].tolist(), cache)
    behind, equal = behind_the_best(qa.model, logits, found[0])
    assert behind <= 0.02 * float(logits.abs().amax())
    assert equal >= 0.9


def test_steps_captured_beforehand_give_the_same_bits():
    model = model_in(torch.bfloat16)
    cache, tokens = watched(model), [20 + i for i in range(12)]
    kept = KeptSteps(model, cache)
    kept.get_ready(None, max_new_tokens=12)
    steps = kept.of(1, captures=True)
    assert steps.graphs.has(1)
    assert steps.graphs.has(32)
    wanted = along(StaticSteps(model, cache, batch=1, captures=False), tokens)
    assert torch.equal(along(steps, tokens), wanted)
