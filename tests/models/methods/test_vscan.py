"""VScan: its two choices and the merging, each against what the paper says, written plainly."""

import math

import pytest
import torch
from allocations import allocations
from leaving_by_hand import LAYERS, best, by_hand
from PIL import Image
from tiny_models import prompt, tiny

import videonsa
from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import vscan
from videonsa.models.methods.vscan import VScan, chosen, unrotated_attention
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.models.rows import vision_inputs
from videonsa.models.tower_probe import EncodedFrames


def chosen_by_loops(early, late, rows, columns, ratio):
    """Token by token in descending order, as long as its window has not had its share."""
    num_tokens = rows * columns
    num_kept = max(1, int(ratio * num_tokens))
    num_windows = math.ceil(rows / 4) * math.ceil(columns / 4)
    frames = []
    for first, last in zip(early.tolist(), late.tolist(), strict=True):
        taken, of_window = [], {}
        for place in sorted(range(num_tokens), key=lambda place: -first[place]):
            window = place // columns // 4, place % columns // 4
            share = of_window.get(window, 0)
            if len(taken) < num_kept // 2 and share < math.ceil(num_kept / 2 / num_windows):
                taken.append(place)
                of_window[window] = share + 1
        rest = [place for place in range(num_tokens) if place not in taken]
        rest.sort(key=lambda place: -last[place])
        frames.append(sorted(taken + rest[: num_kept - len(taken)]))
    return frames


@pytest.mark.parametrize("size", [(8, 8), (9, 6), (3, 5), (1, 1)], ids="{0[0]} x {0[1]}".format)
@pytest.mark.parametrize("ratio", [0.167, 0.5, 0.9, 1.0])
def test_half_of_a_frame_is_chosen_window_by_window_and_half_by_the_last_block(size, ratio):
    generator = torch.Generator().manual_seed(3)
    early, late = torch.rand(2, 3, math.prod(size), generator=generator)
    found = chosen(early, late, size, ratio=ratio)
    assert found.tolist() == chosen_by_loops(early, late, *size, ratio)


def test_windows_share_the_first_half_however_much_one_of_them_receives():
    early, late = torch.zeros(1, 64), torch.zeros(1, 64)
    first_window = (torch.arange(4)[:, None] * 8 + torch.arange(4)).flatten()
    early[0, first_window] = 5 + torch.arange(16.0)
    late[0, 63] = 1.0
    kept = chosen(early, late, (8, 8), ratio=8 / 64)[0]
    windows = {(place // 8 // 4, place % 8 // 4) for place in kept.tolist()}
    assert len(windows) == 4
    assert 63 in kept


def test_what_leaves_a_frame_is_merged_within_that_frame():
    generator = torch.Generator().manual_seed(0)
    scores = tuple(torch.rand(2, 3 * 20, generator=generator))
    features = torch.randn(3 * 20, 8, generator=generator)
    method = VScan(ratio=0.3)
    kept = method.compress(EncodedFrames(features, (3, 4, 5), scores))
    assert len(kept.features) == method.kept_tokens(3, 20) == 18
    assert (kept.places // 20).bincount().tolist() == [6, 6, 6]
    for number in range(3):  # a frame alone gives what it gives among others
        own = slice(20 * number, 20 * (number + 1))
        alone = method.compress(
            EncodedFrames(features[own], (1, 4, 5), tuple(one[own] for one in scores))
        )
        assert torch.equal(alone.places + 20 * number, kept.places[6 * number :][:6])
        torch.testing.assert_close(alone.features, kept.features[6 * number :][:6])


def unrotated_by_map(layer, ratio):
    """By the whole map of the next layer, without rotation."""

    def choose(stock, seen, vision):
        following = stock.model.language_model.layers[layer]
        hidden = following.input_layernorm(seen.hidden_states[layer][0])
        attention = following.self_attn
        q, k = (
            projection(hidden).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj)
        )
        maps = (q @ k.repeat_interleave(2, dim=0).transpose(1, 2)) * attention.head_dim**-0.5
        causal = torch.ones(maps.shape[1:], dtype=torch.bool).triu(1)
        weights = maps.masked_fill(causal, float("-inf")).softmax(-1)
        return best(weights[:, -1].mean(0), vision, ratio)

    return choose


@pytest.mark.parametrize(("layer", "ratio"), [(None, 0.333), (1, 0.6)])
def test_the_layers_behind_hold_what_the_last_token_looks_for_without_positions(layer, ratio):
    model, cache, inputs, more = tiny(attention="dense", **LAYERS), VideoNSACache(), prompt(6), [40]
    choose = unrotated_by_map(layer or 2, ratio)
    wanted, kept = by_hand(model, inputs, layer=layer or 2, choose=choose, more=more)
    embeds = model.embed_prompt(
        inputs["input_ids"],
        video_features=model.encode_vision(inputs["pixel_values_videos"], [(6, 4, 4)]),
    )
    times = inputs["video_times"]
    vision = vision_inputs(None, inputs["video_grid_thw"], times, None, temporal_ids="exact")
    rows = model.describe(inputs["input_ids"], vision)
    given = {"input_ids": inputs["input_ids"], "rows": rows, "inputs_embeds": embeds}
    method = VScan(ratio=1.0, layer=layer, layer_ratio=ratio)
    with torch.no_grad():
        found = model(**given, past_key_values=cache, method=method).logits
        then = model(torch.tensor([more]), past_key_values=cache, method=method).logits
    assert cache.records[1].places == [*kept.tolist(), 30]
    torch.testing.assert_close(torch.cat([found, then], 1), wanted, atol=2e-6, rtol=1e-4)
    counts = [31] * (layer or 2) + [len(kept) + 1] * (4 - (layer or 2))
    assert [one.get_seq_length() for one in cache.layers] == counts, "no layer ran twice"


def test_queries_and_keys_of_the_layers_are_not_rotated():
    model = tiny(**LAYERS)
    layer, hidden = model.decoder_layers[1], torch.randn(7, 64)
    with torch.no_grad():
        found = unrotated_attention(layer, hidden)
        order = torch.tensor([3, 0, 5, 1, 4, 2, 6])
        moved = unrotated_attention(layer, hidden[order])
    torch.testing.assert_close(moved, found[order])


def test_no_map_of_all_pairs_is_made(monkeypatch):
    monkeypatch.setattr(vscan, "ROWS_PER_CHUNK", 256)
    layer, hidden = tiny(**LAYERS).decoder_layers[1], torch.randn(2000, 64)
    with torch.no_grad(), allocations(torch.Tensor) as counted:
        unrotated_attention(layer, hidden)
    assert counted.peak < 3 * hidden.nbytes < 2000 * 2000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.0}, "ratio=0.0: want a share"),
        ({"layer_ratio": 2.0}, "layer_ratio=2.0: want a share"),
        ({"layer": 0}, "layer=0: want a number of layers"),
    ],
    ids=["ratio", "layer ratio", "layer"],
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        VScan(**options)


def test_the_layer_is_14_of_28_and_half_of_other_depths_and_no_layer_is_asked_at_a_ratio_of_1():
    assert VScan().of_depth(28).leaves_after == (13,)
    assert VScan().of_depth(36).parameters() == {"ratio": 0.167, "layer": 18, "layer_ratio": 0.333}
    assert VScan(layer=20).of_depth(36).leaves_after == (19,)
    assert not VScan().is_causal
    whole = VScan(layer_ratio=1.0).of_depth(28)
    assert whole.leaves_after == ()
    assert whole.is_causal


def test_a_session_reads_again_what_it_kept_of_a_video_and_of_an_image(tiny_folder, clip_path):
    qa = videonsa.load(tiny_folder, method="vscan:ratio=0.4,layer_ratio=0.5", device="cpu")
    assert "vscan: tokens leave again after layer 1 of 2; published is 14 of 28" in qa.notes
    session = qa.open(clip_path)
    session.join(Image.new("RGB", (84, 56), (200, 30, 60)))
    recorder = AttentionRecorder()
    first = session.ask("What moves?", max_new_tokens=5, recorder=recorder)
    assert first.usage.cached_tokens == 0
    assert first.usage.spec == {"ratio": 0.4, "layer": 1, "layer_ratio": 0.5}
    assert first.usage.computed.left == ((0, 18), (1, 9))
    assert recorder.text_mass().shape == (2, 5, 5), "layers, tokens of the answer, frames"
    again = session.ask("And then?", max_new_tokens=5)
    assert session.ask("What moves?", fresh=True, max_new_tokens=5).text == first.text
    assert again.usage.prompt_tokens > first.usage.prompt_tokens
    cache = session._transcript.context.cache
    vision = cache.tokens.vision_mask.sum(), cache.records[1].vision_mask.sum()
    assert [int(count) for count in vision] == [18, 9]


def test_ratios_of_1_give_the_answers_of_dense_attention(tiny_folder, clip_path):
    question = "What moves in this clip?"
    texts = [
        videonsa.load(tiny_folder, method=method, device="cpu").ask(clip_path, question).text
        for method in ("dense", "vscan:ratio=1,layer_ratio=1")
    ]
    assert texts[0] == texts[1]
