import pytest
import torch
from tiny_models import EOS, PAD, SPEC, left_padded, prompt, tiny
from transformers import TextStreamer
from transformers.generation.streamers import BaseStreamer

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import NSA
from videonsa.models.recorder.frames import AttentionRecorder

OPTIONS = {"max_new_tokens": 6, "pad_token_id": PAD, "eos_token_id": None}


class Tokens(BaseStreamer):
    def __init__(self):
        self.steps, self.ended = [], False

    def put(self, value):
        self.steps.append(value)

    def end(self):
        self.ended = True


def greedy_by_hand(model, inputs, steps, **options):
    """Greedy decoding with a full forward for every token."""
    inputs = dict(inputs)
    for _ in range(steps):
        token = model(**inputs, use_cache=False, **options).logits[:, -1:].argmax(-1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], token], dim=1)
    return inputs["input_ids"]


@pytest.mark.parametrize("attention", ["nsa", "dense"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_equals_full_forwards(attention, use_cache):
    model, inputs = tiny(), prompt(4)
    out = model.generate(
        **inputs, method=attention, do_sample=False, use_cache=use_cache, **OPTIONS
    )
    assert torch.equal(out, greedy_by_hand(model, inputs, 6, method=attention))


def test_padded_batch_answers_as_each_sample_alone():
    model = tiny()
    samples = [prompt(6), prompt(2, seed=1), prompt(4, 4, 6, seed=2)]
    batch = left_padded(samples)
    together = model.generate(**batch, do_sample=False, **OPTIONS)
    for row, sample in zip(together, samples, strict=True):
        alone = model.generate(**sample, do_sample=False, **OPTIONS)[0]
        assert torch.equal(row[-6:], alone[-6:])


def test_streamer_sees_the_tokens_of_the_output():
    model, streamer = tiny(), Tokens()
    torch.manual_seed(3)
    out = model.generate(**prompt(3), do_sample=True, streamer=streamer, **OPTIONS)
    assert streamer.ended
    assert torch.cat([step.flatten() for step in streamer.steps]).tolist() == out[0].tolist()


def test_text_streamer_prints_the_answer(capsys):
    class Tokenizer:
        def decode(self, ids, **_):
            return "".join(f"<{int(i)}>" for i in ids)

    model = tiny()
    streamer = TextStreamer(Tokenizer(), skip_prompt=True)
    out = model.generate(**prompt(3), do_sample=False, streamer=streamer, **OPTIONS)
    printed = capsys.readouterr().out.strip()
    assert printed == "".join(f"<{i}>" for i in out[0, -6:].tolist())


def test_sampling_is_repeatable_and_varies_with_the_seed():
    model, inputs = tiny(), prompt(3)
    outs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(model.generate(**inputs, do_sample=True, temperature=2.0, **OPTIONS))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])


def test_several_answers_of_a_batch_keep_videos_and_times_together():
    model = tiny()
    batch = left_padded([prompt(4), prompt(2, seed=1)])
    once = model.generate(**batch, do_sample=False, **OPTIONS)
    torch.manual_seed(0)
    twice = model.generate(**batch, do_sample=True, top_k=1, num_return_sequences=2, **OPTIONS)
    assert torch.equal(twice, once.repeat_interleave(2, dim=0))


def test_beams_reorder_the_rows_that_the_cache_knows():
    """The best of three beams is at least as likely as the greedy answer."""
    model, inputs = tiny(), prompt(3)
    length = inputs["input_ids"].shape[1]
    likelihoods = []
    for num_beams in (1, 3):
        out = model.generate(**inputs, do_sample=False, num_beams=num_beams, **OPTIONS)
        scores = model(**inputs | {"input_ids": out}).logits.log_softmax(-1)[0, length - 1 : -1]
        likelihoods.append(scores.gather(1, out[0, length:, None]).sum().item())
    assert likelihoods[1] >= likelihoods[0]


def test_second_turn_continues_the_cache():
    model, first, second = tiny(), prompt(3), prompt(2, seed=1)
    cache = VideoNSACache()
    model(**first, past_key_values=cache)
    ids = torch.cat([first["input_ids"], second["input_ids"]], dim=1)
    continued = model.generate(
        **second | {"input_ids": ids}, past_key_values=cache, do_sample=False, **OPTIONS
    )
    both = {
        name: torch.cat([first[name], second[name]])
        for name in ("pixel_values_videos", "video_grid_thw")
    } | {"input_ids": ids, "video_times": first["video_times"] + second["video_times"]}
    assert torch.equal(continued, model.generate(**both, do_sample=False, **OPTIONS))


def test_generation_stops_at_the_end_token():
    model, inputs = tiny(), prompt(3)
    first = int(model.generate(**inputs, do_sample=False, **OPTIONS)[0, -6])
    out = model.generate(**inputs, do_sample=False, **OPTIONS | {"eos_token_id": first})
    assert out.shape[1] == inputs["input_ids"].shape[1] + 1


def test_options_of_the_call_reach_every_step():
    model, inputs = tiny(), prompt(6)
    spec = SPEC.with_options(branches=())
    out = model.generate(**inputs, method=NSA(spec), do_sample=False, **OPTIONS)
    assert torch.equal(out, greedy_by_hand(model, inputs, 6, method=NSA(spec)))


def test_static_cache_is_refused():
    with pytest.raises(UsageError, match="cache_implementation='static'"):
        tiny().generate(**prompt(2), cache_implementation="static", **OPTIONS)


def test_recorder_collects_prefill_and_every_step():
    model, recorder = tiny(), AttentionRecorder()
    inputs = prompt(4)
    with_it = model.generate(**inputs, recorder=recorder, do_sample=False, **OPTIONS)
    assert recorder.text_mass().shape == (2, 6, 4)
    assert torch.equal(with_it, model.generate(**inputs, do_sample=False, **OPTIONS))


def test_end_token_of_the_config_is_used():
    model = tiny()
    assert model.generation_config.eos_token_id == EOS
