"""FastV, against transformers' layers and their attention maps."""

import pytest
import torch
from leaving_by_hand import LAYERS, best, by_hand
from tiny_models import IMAGE, prompt, tiny

import videonsa
from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods.fastv import FastV
from videonsa.models.methods.nsa import NSA
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.ops import last_row
from videonsa.ops.spec import NSASpec

CLOSE = {"atol": 2e-6, "rtol": 1e-4}
SPEC = NSASpec(block_size="frame", num_selected_blocks=3, window_size=6)


def image(height=8, width=6):
    """Text, an image, a question."""
    ids = [20, 12, *[IMAGE] * (height * width // 4), 13, 30, 31]
    pixels = torch.randn(height * width, 1176, generator=torch.Generator().manual_seed(1))
    grid = torch.tensor([[1, height, width]])
    return {"input_ids": torch.tensor([ids]), "pixel_values": pixels, "image_grid_thw": grid}


def by_its_last_row(layer, ratio):
    def choose(stock, seen, vision):
        return best(seen.attentions[layer - 1][0].mean(0)[-1], vision, ratio)

    return choose


@pytest.mark.parametrize("inputs", [prompt(6), image()], ids=["video", "image"])
@pytest.mark.parametrize(("layer", "ratio"), [(1, 0.3), (2, 0.5), (3, 0.9)])
def test_logits_are_those_of_stock_layers_of_which_tokens_leave(inputs, layer, ratio):
    model, cache = tiny(attention="dense", **LAYERS), VideoNSACache()
    choose, more = by_its_last_row(layer, ratio), [40, 41]
    wanted, kept = by_hand(model, inputs, layer=layer, choose=choose, more=more)
    with torch.no_grad():
        method, length = FastV(layer=layer, ratio=ratio), inputs["input_ids"].shape[1]
        first = model(**inputs, past_key_values=cache, method=method).logits
        assert cache.records[1].places == kept.tolist()
        then = [
            model(torch.tensor([[token]]), past_key_values=cache, method=method).logits
            for token in more
        ]
    torch.testing.assert_close(torch.cat([first, *then], 1), wanted, **CLOSE)
    counts = [length + 2] * layer + [len(kept) + 2] * (4 - layer)
    assert [one.get_seq_length() for one in cache.layers] == counts, "no layer ran twice"


def test_a_ratio_of_1_is_dense_and_every_layer_keeps_all():
    model, cache = tiny(attention="dense", **LAYERS), VideoNSACache()
    with torch.no_grad():
        found = model(**prompt(5), past_key_values=cache, method=FastV(ratio=1.0)).logits
        assert torch.equal(found, model(**prompt(5)).logits)
    assert len({one.get_seq_length() for one in cache.layers}) == 1


def test_one_row_of_attention_is_computed_once_and_no_map(monkeypatch):
    seen = []

    def counted(q, k, **options):
        seen.append((q.dim(), len(k)))
        return last_row.last_row_attention(q, k, **options)

    monkeypatch.setattr("videonsa.models.methods.fastv.last_row_attention", counted)
    model, cache = tiny(**LAYERS), VideoNSACache()
    with torch.no_grad():
        model(**prompt(6), past_key_values=cache, method=FastV())
        model(torch.tensor([[40]]), past_key_values=cache, method=FastV())
    assert seen == [(2, 30)], "tokens leave where the prompt is read, not at each decoded token"


def test_positions_after_the_prompt_are_those_of_the_full_sequence():
    model, caches = tiny(**LAYERS), (VideoNSACache(), VideoNSACache())
    with torch.no_grad():
        for cache, method in zip(caches, (FastV(ratio=0.2), "dense"), strict=True):
            model(**prompt(6), past_key_values=cache, method=method)
    assert caches[0].next_position == caches[1].next_position
    assert caches[0].records[1].next_positions[0, -1] == caches[1].next_position[0]


def test_with_nsa_behind_it_the_layers_have_the_frames_that_are_left():
    model, cache, recorder = tiny(**LAYERS), VideoNSACache(), AttentionRecorder()
    method = FastV(layer=1, ratio=0.3, attention=NSA(SPEC))
    with torch.no_grad():
        model(**prompt(6), past_key_values=cache, method=method, recorder=recorder)
    assert sum(cache.records[1].frame_sizes[0]) == 7
    assert len(cache.records[1].frame_sizes[0]) == 6
    mass = recorder.text_mass()[:, 0]
    gone = torch.tensor(cache.records[1].frame_sizes[0]) == 0
    assert mass.shape == (4, 6)
    assert (mass[0] > 0).all()
    assert (mass[1:, gone] == 0).all()
    assert (mass[1:, ~gone] > 0).all()
    assert recorder.selection_frequency().shape == (4, 6)


def test_every_question_of_a_session_chooses_anew(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, method="fastv:layer=1,ratio=0.25", device="cpu")
    assert "fastv attention was asked for: the gates of these weights are left out" in qa.notes
    session = qa.open(clip_path)
    for number, question in enumerate(["What moves?", "Where is the ball, and when?"]):
        answer = session.ask(question, fresh=True, max_new_tokens=6)
        assert answer.usage.cached_tokens == 0
        assert answer.text == qa.ask(clip_path, question, max_new_tokens=6).text, number
    again = session.ask("And then?", max_new_tokens=4)
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens
    assert again.usage.spec == {"layer": 1, "ratio": 0.25}
    side = session.ask_each(["What moves?", "And then?"], fresh=True, max_new_tokens=6)
    assert side[0].text == qa.ask(clip_path, "What moves?", max_new_tokens=6).text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, r"ratio=0.0: want a share of the tokens above 0, and 1 at most"),
        ({"ratio": 1.5}, "ratio=1.5: want a share"),
        ({"layer": 0}, "layer=0: want a number of layers, 1 at least"),
        ({"attention": FastV()}, r"'fastv\+fastv': one method lets tokens leave"),
    ],
    ids=["none", "more than all", "no layer", "twice"],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        FastV(**options)


def test_a_layer_that_the_model_does_not_have_is_refused_before_anything_is_read(
    tiny_folder, clip_path
):
    told = "'fastv' with layer=2 on a model of 2 layers: want 1 at most"
    with pytest.raises(UsageError, match=told):
        videonsa.load(tiny_folder, method="fastv", device="cpu")
    with pytest.raises(UsageError, match=told):
        videonsa.plan_video(clip_path, tiny_folder, method="fastv")
    with pytest.raises(UsageError, match="layer=4 on a model of 4 layers"):
        tiny(**LAYERS)(**prompt(2), method=FastV(layer=4))
