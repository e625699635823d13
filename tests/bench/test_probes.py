"""What is seen of the attention inside a model: times by a clock that ticks at every event."""

import itertools

import pytest
import torch

from videonsa.bench.clips import clip_embeddings, clip_of_tokens
from videonsa.bench.probes import AttentionTime, UnionRecorder
from videonsa.bench.random_model import MODELS, random_model
from videonsa.ops.spec import NSASpec

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


def run(model, attention):
    clip = clip_of_tokens(16, (56, 56), model.device)
    width = model.config.text_config.hidden_size
    embeds = clip_embeddings(clip, width, "random", like=model.lm_head.weight)
    with torch.inference_mode():
        model(**clip.inputs, inputs_embeds=embeds, attention=attention)


@pytest.mark.parametrize(("attention", "ticks", "gates"), [("nsa", 2, 1), ("dense", 1, 0)])
def test_gates_are_taken_from_the_attention_that_they_are_inside_of(model, attention, ticks, gates):
    """v_proj ends, the gates begin and end, o_proj begins: three ticks a layer, one of gates."""
    inside = AttentionTime(model)
    inside._on_gpu = True
    with inside:
        run(model, attention)  # a warm run
        inside.reset()
        run(model, attention)
        found = inside.read()
    assert found == {"attention_ms": ticks * LAYERS, "gates_ms": gates * LAYERS}
    run(model, attention)
    assert inside.read() == found


def test_a_cpu_has_no_such_times(model):
    with AttentionTime(model) as inside:
        run(model, "nsa")
    assert inside.read() == {"attention_ms": None, "gates_ms": None}


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_attention_and_gates_take_part_of_a_run(attention):
    model = random_model(MODELS["tiny"], device=torch.device("cuda"), dtype=torch.float32)
    run(model, attention)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with AttentionTime(model) as inside:
        begin.record()
        run(model, attention)
        end.record()
    torch.cuda.synchronize()
    found = inside.read()
    assert found["attention_ms"] > 0
    assert (found["gates_ms"] > 0) == (attention == "nsa")
    assert found["attention_ms"] + found["gates_ms"] < begin.elapsed_time(end)


def test_unions_are_those_of_vision_rows():
    recorder = UnionRecorder()
    recorder.begin_step(torch.tensor([[False] + [True] * 16 + [False]]), None, torch.tensor([16]))
    blocks = torch.arange(18)[None, :, None, None] // 2  # of the vision rows 0 to 8
    recorder.record_selection(0, blocks, NSASpec())
    assert recorder.unions == [9.0]
