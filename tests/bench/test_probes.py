"""What is seen of the attention inside a whole model."""

import pytest
import torch

from videonsa.bench.clips import clip_embeddings, clip_of_tokens
from videonsa.bench.probes import AttentionTime, UnionRecorder
from videonsa.bench.random_model import TINY, random_model
from videonsa.ops.spec import NSASpec


def call(device, attention="nsa", **options):
    model = random_model(TINY, device=device, dtype=torch.float32)
    clip = clip_of_tokens(1024, (112, 112), device)
    embeds = clip_embeddings(clip, TINY.hidden_size, "random", like=model.lm_head.weight)

    def run():
        with torch.no_grad():
            model(**clip.inputs, inputs_embeds=embeds, attention=attention, **options)

    return model, run


def test_without_a_gpu_there_is_no_time():
    model, run = call(torch.device("cpu"))
    with AttentionTime(model) as inside:
        run()
    assert inside.read() == {"attention_ms": None, "gates_ms": None}


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_attention_and_gates_take_part_of_a_run(attention):
    device = torch.device("cuda")
    model, run = call(device, attention)
    run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with AttentionTime(model) as inside:
        run()
        inside.reset()
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    found = inside.read()
    assert found["attention_ms"] > 0
    assert (found["gates_ms"] > 0) == (attention == "nsa")
    assert found["attention_ms"] + found["gates_ms"] < begin.elapsed_time(end)
    run()
    assert inside.read() == found, "nothing is recorded any more"


def test_unions_are_those_of_vision_rows():
    recorder = UnionRecorder()
    recorder.begin_step(torch.tensor([[False] + [True] * 16 + [False]]), None, torch.tensor([16]))
    blocks = torch.arange(18)[None, :, None, None] // 2  # of the vision rows 0 to 8
    recorder.record_selection(0, blocks, NSASpec())
    assert recorder.unions == [9.0]
