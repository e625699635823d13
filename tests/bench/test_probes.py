"""What is seen of the attention inside a model: times by a clock that ticks at every event."""

import itertools

import pytest
import torch

from videonsa.bench.clip_rows import clip_embeddings, clip_of_tokens
from videonsa.bench.probes import AttentionTime
from videonsa.bench.random_model import MODELS, random_model

CPU = torch.device("cpu")
LAYERS = MODELS["tiny"].num_layers


@pytest.fixture
def model(monkeypatch):
    """A tiny model, and in place of CUDA's events some that need no GPU."""
    ticks = itertools.count()

    class Event:
        def __init__(self, **_):
            self.time = None

        def record(self):
            self.time = next(ticks)

        def elapsed_time(self, end):
            return end.time - self.time

    monkeypatch.setattr(torch.cuda, "Event", Event)
    return random_model(MODELS["tiny"], device=CPU, dtype=torch.float32)


def run(model, method, recorder):
    clip = clip_of_tokens(16, (56, 56), model.device)
    width = model.config.text_config.hidden_size
    embeds = clip_embeddings(clip, width, "random", like=model.lm_head.weight)
    with torch.inference_mode():
        model(**clip.inputs, inputs_embeds=embeds, method=method, recorder=recorder)


@pytest.mark.parametrize(("method", "ticks", "gates"), [("nsa", 2, 1), ("dense", 1, 0)])
def test_gates_are_taken_from_the_attention_that_they_are_inside_of(model, method, ticks, gates):
    """Values, gates begin and end, output: three ticks a layer, one of gates."""
    inside = AttentionTime(torch.device("cuda"))
    run(model, method, inside)  # a warm run
    inside.reset()
    run(model, method, inside)
    assert inside.read() == {"attention_ms": ticks * LAYERS, "gates_ms": gates * LAYERS}


def test_a_cpu_has_no_such_times(model):
    inside = AttentionTime(CPU)
    run(model, "nsa", inside)
    assert inside.read() == {"attention_ms": None, "gates_ms": None}


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["nsa", "dense"])
def test_attention_and_gates_take_part_of_a_run(method):
    model = random_model(MODELS["tiny"], device=torch.device("cuda"), dtype=torch.float32)
    inside = AttentionTime(model.device)
    run(model, method, inside)
    inside.reset()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run(model, method, inside)
    end.record()
    torch.cuda.synchronize()
    found = inside.read()
    assert found["attention_ms"] > 0
    assert (found["gates_ms"] > 0) == (method == "nsa")
    assert found["attention_ms"] + found["gates_ms"] < begin.elapsed_time(end)
