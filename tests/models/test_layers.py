"""Features that are added inside the layers, and tokens that leave them."""

from dataclasses import dataclass

import pytest
import torch
from tiny_models import VIDEO, config_fields, left_padded, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.layers import enter_rows
from videonsa.models.methods import NSA, Dense
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.rows import NewRows
from videonsa.ops.spec import NSASpec

SPEC = NSASpec(block_size="frame", num_selected_blocks=3, window_size=6)


class LeavingDense(Dense):
    """Every second vision token leaves after the first layer."""

    leaves_after = (0,)

    def kept_after(self, layer, hidden, step, following):
        return every_second(step)


@dataclass(frozen=True)
class LeavingNSA(NSA):
    leaves_after = (0,)

    def kept_after(self, layer, hidden, step, following):
        return every_second(step)


def every_second(step):
    vision = step.tokens.vision_mask[0, -step.tokens.num_tokens :]
    return ((vision.cumsum(0) % 2 == 1) | ~vision).nonzero()[:, 0]


def dense_by_hand(model, ids, embeds, positions, kept):
    """Hidden states of all tokens through layer 0, then of those kept through layer 1."""
    inner = model.model.language_model
    with torch.no_grad():
        first = model(ids, inputs_embeds=embeds, position_ids=positions, output_hidden_states=True)
        hidden = first.hidden_states[1][:, kept]
        layer, angles = inner.layers[1], inner.rotary_emb(hidden, positions[:, :, kept])
        mask = torch.ones(1, len(kept), dtype=torch.bool)
        rows = NewRows(~mask, mask, positions[:, :, kept], mask.long(), [[]], False, False)
        step = enter_rows(rows, None, Dense())
        return model.lm_head(inner.norm(layer(hidden, position_embeddings=angles, step=step)))


def test_tokens_that_leave_are_seen_by_no_later_layer():
    model = tiny(attention="dense")
    ids = torch.tensor([[20, *range(40, 60), 30]])
    embeds = model.get_input_embeddings()(ids)
    positions = torch.arange(22).expand(3, 1, 22)
    kept = torch.tensor([0, *range(1, 21, 2), 21])

    class Leaving(Dense):
        leaves_after = (0,)

        def kept_after(self, layer, hidden, step, following):
            return kept

    with torch.no_grad():
        found = model(ids, inputs_embeds=embeds, position_ids=positions, method=Leaving()).logits
    wanted = dense_by_hand(model, ids, embeds, positions, kept)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", [LeavingDense(), LeavingNSA(SPEC)], ids=["dense", "nsa"])
def test_the_cache_holds_fewer_keys_after_the_layer_and_decoding_goes_on(method):
    model, inputs, cache = tiny(), prompt(6), VideoNSACache()
    length, gone = inputs["input_ids"].shape[1], 12
    with torch.no_grad():
        model(**inputs, past_key_values=cache, method=method)
        counts = [layer.get_seq_length() for layer in cache.layers]
        assert counts == [length, length - gone]
        assert cache.get_seq_length() == length
        assert [record.first_layer for record in cache.records] == [0, 1]
        assert cache.records[1].frame_sizes == [[2] * 6]
        logits = model(torch.tensor([[40]]), past_key_values=cache, method=method).logits
        assert [layer.get_seq_length() for layer in cache.layers] == [length + 1, length - gone + 1]
        cache.crop(-1)
        assert [layer.get_seq_length() for layer in cache.layers] == counts
        again = model(torch.tensor([[40]]), past_key_values=cache.fork(), method=method).logits
    assert torch.equal(logits, again)


def test_a_second_video_leaves_too_and_the_first_stays_as_it_was():
    model, cache, method = tiny(), VideoNSACache(), LeavingNSA(SPEC)
    with torch.no_grad():
        model(**prompt(4), past_key_values=cache, method=method)
        keys = cache.layers[1].keys.clone()
        model(**prompt(2, seed=1), past_key_values=cache, method=method)
    assert torch.equal(cache.layers[1].keys[:, :, : keys.shape[2]], keys)
    assert cache.records[1].frame_sizes == [[2] * 6]
    assert len(cache.records[1].places) == cache.layers[1].get_seq_length()


def test_a_step_that_fails_behind_the_layer_leaves_the_cache_as_it_was():
    model, cache, method = tiny(), VideoNSACache(), LeavingDense()
    with torch.no_grad():
        model(**prompt(4), past_key_values=cache, method=method)
        counts = [layer.get_seq_length() for layer in cache.layers]
        hook = model.model.language_model.norm.register_forward_pre_hook(fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            model(**prompt(2, seed=1), past_key_values=cache, method=method)
        hook.remove()
    assert [layer.get_seq_length() for layer in cache.layers] == counts
    assert cache.tokens.frame_sizes == [[4] * 4]
    assert cache.records[1].frame_sizes == [[2] * 4]


def fail(*_):
    raise RuntimeError("on purpose")


@dataclass(frozen=True)
class LeavingFrames(NSA):
    """Frames 1, 4 and 5 of six leave, whole."""

    leaves_after = (0,)

    def kept_after(self, layer, hidden, step, following):
        vision = step.tokens.vision_mask[0, -step.tokens.num_tokens :]
        frame = (vision.cumsum(0) - 1) // 4
        return (~vision | torch.isin(frame, torch.tensor([0, 2, 3]))).nonzero()[:, 0]


def test_blocks_of_the_frames_that_are_left_are_those_of_a_video_of_these_frames():
    model, inputs, method = tiny(), prompt(6), LeavingFrames(SPEC)
    vision = inputs["input_ids"][0] == VIDEO
    frame = (vision.cumsum(0) - 1) // 4
    kept = (~vision | torch.isin(frame, torch.tensor([0, 2, 3]))).nonzero()[:, 0]
    inner, cache = model.model.language_model, VideoNSACache()
    with torch.no_grad():
        first = model(**inputs, output_hidden_states=True)
        hidden = first.hidden_states[1][:, kept]
        positions = positions_of(model, inputs)[:, :, kept]
        mask = torch.ones(1, len(kept), dtype=torch.bool)
        rows = NewRows(vision[None, kept], mask, positions, mask.long(), [[4] * 3], True, False)
        angles = inner.rotary_emb(hidden, positions)
        step = enter_rows(rows, None, NSA(SPEC))
        last = inner.layers[1](hidden, position_embeddings=angles, step=step)
        found = model(**inputs, method=method, past_key_values=cache).logits
        torch.testing.assert_close(found, model.lm_head(inner.norm(last)), atol=1e-6, rtol=1e-5)
    assert [record.frame_sizes for record in cache.records] == [[[4] * 6], [[4, 0, 4, 4, 0, 0]]]


def positions_of(model, inputs):
    seen = []
    hook = model.model.language_model.rotary_emb.register_forward_pre_hook(
        lambda _, args: seen.append(args[1])
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return seen[0]


def test_frames_keep_their_numbers_where_tokens_are_forgotten_behind_those_that_left():
    model, cache, recorder = tiny(), VideoNSACache(), AttentionRecorder()
    with torch.no_grad():
        model(**prompt(6), past_key_values=cache, method=LeavingFrames(SPEC))
        cache.crop(-3)
        assert [record.frame_sizes for record in cache.records] == [[[4] * 6], [[4, 0, 4, 4, 0, 0]]]
        model(**prompt(2, seed=1), past_key_values=cache, recorder=recorder)
        assert cache.records[1].frame_sizes == [[4, 0, 4, 4, 0, 0, 4, 4]]
        cache.crop(16 - 41)  # half of frame 3 stays
        assert [record.frame_sizes for record in cache.records] == [[[4] * 4], [[4, 0, 4, 4]]]
    mass = recorder.text_mass()
    assert mass.shape == (2, 1, 8)
    assert torch.all(mass[1, 0, [1, 4, 5]] == 0)
    assert torch.all(mass[1, 0, [0, 2, 3, 6, 7]] > 0)


def test_a_recorder_sees_the_tokens_that_are_left():
    recorder = AttentionRecorder()
    with torch.no_grad():
        tiny()(**prompt(6), recorder=recorder, method=LeavingNSA(SPEC))
    assert recorder.text_mass().shape == (2, 1, 6)
    assert recorder.selection_frequency().shape == (2, 6)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (torch.tensor([0, 1]), "the last of them included"),
        (torch.tensor([3, 1, 29]), "ascending places"),
        (torch.ones(30, dtype=torch.bool), "want int64"),
    ],
    ids=["without the last", "not in order", "a mask"],
)
def test_places_that_cannot_be_are_refused(kept, message):
    class Wrong(Dense):
        leaves_after = (0,)

        def kept_after(self, layer, hidden, step, following):
            return kept

    with pytest.raises(UsageError, match=message):
        tiny()(**prompt(6), method=Wrong())


def test_tokens_leave_one_sample_at_a_time_and_in_one_step():
    with torch.no_grad(), pytest.raises(UsageError, match="tokens leave in a batch of 2"):
        tiny()(**left_padded([prompt(2), prompt(3)]), method=LeavingDense())
    for method in (LeavingDense(), LeavingNSA(SPEC)):
        with pytest.raises(UsageError, match="rows_per_chunk=4: tokens leave inside the layers"):
            tiny()(**prompt(6), method=method, rows_per_chunk=4)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"labels": torch.ones(1, 30, dtype=torch.int64)}, "labels with method 'dense'"),
        ({"logits_to_keep": torch.tensor([3])}, "chosen logits_to_keep with method 'dense'"),
    ],
    ids=["labels", "chosen logits"],
)
def test_what_counts_tokens_that_may_be_gone_is_refused(asked, message):
    with pytest.raises(UsageError, match=message):
        tiny()(**prompt(6), method=LeavingDense(), **asked)


def test_no_token_leaves_after_the_last_layer():
    class Late(LeavingDense):
        leaves_after = (0, 1)

    with pytest.raises(UsageError, match=r"after layers \[0, 1\]: want layers from 0 to 0"):
        tiny()(**prompt(6), method=Late())


def test_turns_that_leave_after_an_earlier_layer_than_those_before_keep_all_keys_in_order():
    class After(LeavingDense):
        def __init__(self, layer):
            self.leaves_after = (layer,)

    model, cache = tiny(**config_fields(num_hidden_layers=4)), VideoNSACache()
    with torch.no_grad():
        for layer in (2, 0):
            model(**prompt(6, seed=layer), past_key_values=cache, method=After(layer))
        assert [record.first_layer for record in cache.records] == [0, 1, 3]
        assert [len(record.places or range(60)) for record in cache.records] == [60, 48, 36]
        assert [layer.get_seq_length() for layer in cache.layers] == [60, 48, 48, 36]
        hook = model.model.language_model.norm.register_forward_pre_hook(fail)
        first = list(cache.records)
        with pytest.raises(RuntimeError, match="on purpose"):
            model(**prompt(6, seed=3), past_key_values=cache, method=After(1))
        hook.remove()
        assert cache.records == first
        assert [layer.get_seq_length() for layer in cache.layers] == [60, 48, 48, 36]
        logits = model(torch.tensor([[40]]), past_key_values=cache).logits
    assert torch.all(logits.isfinite())


class Scores:
    """What the first layer leaves in its step."""

    value = None

    def to(self, device):
        return self


class MostAttended(Dense):
    """FastV: the tokens that the last one attended to most in the first layer go on."""

    leaves_after = (0,)

    def prepare(self, tokens):
        return Scores()

    def attend(self, layer, hidden, q, k, v, step):
        if layer.layer_idx == 0:
            scores = torch.einsum("hgd,shd->hgs", q[0, -1].unflatten(0, (2, -1)), k[0])
            step.prepared.value = scores.mul(q.shape[-1] ** -0.5).softmax(-1).mean((0, 1))
        return super().attend(layer, hidden, q, k, v, step)

    def kept_after(self, layer, hidden, step, following):
        count = step.tokens.num_tokens
        if count == 1:
            return None
        best = step.prepared.value[:-1].topk(count // 2).indices
        return torch.cat([best, torch.tensor([count - 1])]).sort().values


def test_attention_of_a_layer_can_decide_which_tokens_leave_after_it():
    model, recorder, cache = tiny(attention="dense"), AttentionRecorder(), VideoNSACache()
    with torch.no_grad():
        model(**prompt(6), past_key_values=cache, method=MostAttended(), recorder=recorder)
        kept = set(cache.records[1].places)
        counts = [layer.get_seq_length() for layer in cache.layers]
        assert counts == [30, 16]
        model(torch.tensor([[40]]), past_key_values=cache, method=MostAttended())
    assert [layer.get_seq_length() for layer in cache.layers] == [31, 17]
    q, k = first_layer_queries_and_keys(model, prompt(6))
    weights = torch.stack(
        [(q[head] @ k[head // 2].T * 16**-0.5).softmax(-1) for head in range(4)]
    ).mean(0)
    assert kept == {29, *weights[:29].topk(15).indices.tolist()}


def first_layer_queries_and_keys(model, inputs):
    """`[HQ, D]` of the last token and `[H, S, D]`, as a recorder sees them."""

    class Seen(Recorder):
        def record(self, layer, q, k, attended):
            if layer == 0:
                self.q, self.k = q[0, -1], k[0].transpose(0, 1)

    seen = Seen()
    with torch.no_grad():
        model(**inputs, recorder=seen)
    return seen.q, seen.k


@pytest.mark.parametrize("rows", [0, 5])
def test_features_are_added_to_vision_tokens_after_their_layer(rows):
    model, inputs = tiny(), prompt(4)
    vision = inputs["input_ids"][0] == VIDEO
    features = torch.randn(int(vision.sum()), 64)
    seen = []
    hook = model.model.language_model.layers[1].register_forward_pre_hook(
        lambda _, args: seen.append(args[0])
    )
    with torch.no_grad():
        for added in (None, {0: features}):
            model(
                **inputs,
                past_key_values=VideoNSACache(),
                layer_features=added,
                rows_per_chunk=rows,
            )
    hook.remove()
    half = len(seen) // 2
    plain, with_features = torch.cat(seen[:half], 1)[0], torch.cat(seen[half:], 1)[0]
    assert torch.equal(with_features[~vision], plain[~vision])
    torch.testing.assert_close(with_features[vision], plain[vision] + features)


def test_features_of_another_number_of_tokens_are_refused():
    with pytest.raises(UsageError, match=r"layer_features of layer 1 are \[3, 64\]: want \[16"):
        tiny()(**prompt(4), layer_features={1: torch.zeros(3, 64)})


def test_features_of_a_layer_that_is_not_there_are_refused():
    with pytest.raises(
        UsageError, match=r"layer_features of layers \[2\]: want layers from 0 to 1"
    ):
        tiny()(**prompt(4), layer_features={0: torch.zeros(16, 64), 2: torch.zeros(16, 64)})


def test_generate_adds_features_to_the_prompt_only():
    model, inputs = tiny(), prompt(4)
    options = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4}
    features = {0: 5 * torch.randn(16, 64)}
    found = model.generate(**inputs, layer_features=features, **options)
    cache = VideoNSACache()
    with torch.no_grad():
        model(**inputs, layer_features=features, past_key_values=cache)
        last = cache.layers[1].keys[:, :, :-1]
    plain = model.generate(**inputs, **options, return_dict_in_generate=True)
    assert found.shape == plain.sequences.shape
    assert (last - plain.past_key_values.layers[1].keys[:, :, : last.shape[2]]).abs().max() > 1e-3
