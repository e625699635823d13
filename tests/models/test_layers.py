"""Features that are added inside the layers, and tokens that leave them."""

from dataclasses import dataclass

import pytest
import torch
from tiny_models import VIDEO, left_padded, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import NSA, Dense
from videonsa.models.recorder.frames import AttentionRecorder
from videonsa.ops.spec import NSASpec

SPEC = NSASpec(block_size="frame", num_selected_blocks=3, window_size=6)


class LeavingDense(Dense):
    """Every second vision token leaves after the first layer."""

    leaves_after = (0,)

    def kept_after(self, layer, hidden, step):
        return every_second(step)


@dataclass(frozen=True)
class LeavingNSA(NSA):
    leaves_after = (0,)

    def kept_after(self, layer, hidden, step):
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
        from videonsa.models.layers import enter_rows  # the step of the tokens left
        from videonsa.models.rows import NewRows

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

        def kept_after(self, layer, hidden, step):
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

        def kept_after(self, layer, hidden, step):
            return kept

    with pytest.raises(UsageError, match=message):
        tiny()(**prompt(6), method=Wrong())


def test_tokens_leave_one_sample_at_a_time_and_in_one_step():
    with torch.no_grad(), pytest.raises(UsageError, match="tokens leave in a batch of 2"):
        tiny()(**left_padded([prompt(2), prompt(3)]), method=LeavingDense())
    with pytest.raises(UsageError, match="rows_per_chunk=4: tokens leave inside the layers"):
        tiny()(**prompt(6), method=LeavingDense(), rows_per_chunk=4)


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
