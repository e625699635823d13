import weakref

import pytest
import torch
from tiny_models import SPEC, VIDEO, left_padded, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models.cache import RowMajorLayer, VideoNSACache
from videonsa.models.rows import text_rows
from videonsa.ops.spec import NSASpec

FIXED = NSASpec(block_size=5, num_selected_blocks=2, window_size=7)
CASES = [("nsa", SPEC), ("nsa", FIXED), ("dense", SPEC)]


@pytest.mark.parametrize(("attention", "spec"), CASES)
def test_cached_steps_equal_the_full_forward(attention, spec):
    model, inputs = tiny(spec=spec), prompt(4)
    text = torch.tensor([[40, 41, 42]])
    whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], text], dim=1)}
    full = model(**whole, method=attention).logits
    cache = VideoNSACache()
    parts = [model(**inputs, past_key_values=cache, method=attention).logits]
    parts += [
        model(input_ids=token[None], past_key_values=cache, method=attention).logits
        for token in text.T
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), full, atol=1e-5, rtol=1e-4)
    assert cache.get_seq_length() == full.shape[1]


@pytest.mark.parametrize(("attention", "spec"), CASES)
def test_second_turn_sees_the_vision_keys_of_the_first(attention, spec):
    """Two turns with a video each, through the cache, equal one forward of both."""
    model, first, second = tiny(spec=spec), prompt(3), prompt(2, seed=1)
    both = {
        name: first[name] + second[name]
        if name == "video_times"
        else torch.cat([first[name], second[name]], dim=1 if name == "input_ids" else 0)
        for name in first
    }
    full = model(**both, method=attention).logits
    cache = VideoNSACache()
    turns = [
        model(**turn, past_key_values=cache, method=attention).logits for turn in (first, second)
    ]
    torch.testing.assert_close(torch.cat(turns, dim=1), full, atol=1e-5, rtol=1e-4)
    assert cache.tokens.frame_sizes == [[4] * 5]
    assert cache.tokens.vision_mask.sum() == (both["input_ids"] == VIDEO).sum()


def test_chunks_fill_memory_that_was_taken_once():
    model, inputs, cache = tiny(), prompt(6), VideoNSACache()
    memories = []
    layer = model.model.language_model.layers[-1]
    layer.register_forward_hook(lambda *_: memories.append(cache.layers[-1].keys.data_ptr()))
    with torch.no_grad():
        model(**inputs, past_key_values=cache, rows_per_chunk=7)
        assert len(memories) > 2
        assert len(set(memories)) == 1
        model(**inputs, past_key_values=cache, rows_per_chunk=7)
    assert len(memories[-2:]) == len(set(memories[-2:])) + 1
    assert cache.expected == 0


@pytest.mark.parametrize("rows", [7, 0])
@pytest.mark.parametrize("turns", [0, 1])
def test_a_step_that_fails_half_way_leaves_the_cache_as_it_was(turns, rows):
    model, inputs, cache = tiny(), prompt(6), VideoNSACache()
    token = {"input_ids": torch.tensor([[40]]), "past_key_values": cache}
    with torch.no_grad():
        for _ in range(turns):
            model(**inputs, past_key_values=cache)
        wanted = model(**token).logits
        cache.crop(1)
        calls = []

        def fail(*_):
            calls.append(1)
            if len(calls) == (2 if rows else 1):
                raise torch.OutOfMemoryError("CUDA out of memory")

        hook = model.model.language_model.layers[-1].register_forward_pre_hook(fail)
        with pytest.raises(torch.OutOfMemoryError):
            model(**inputs, past_key_values=cache, rows_per_chunk=rows)
        hook.remove()
        assert cache.tokens.vision_mask.shape[1] == cache.get_seq_length()
        assert torch.equal(model(**token).logits, wanted)


def test_padded_batch_decodes_as_each_sample_alone():
    model = tiny()
    samples = [prompt(5), prompt(2, seed=1)]
    batch = left_padded(samples)
    step = torch.tensor([[40], [41]])
    cache = model(**batch).past_key_values
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    together = model(input_ids=step, attention_mask=mask, past_key_values=cache).logits
    for i, sample in enumerate(samples):
        own = model(**sample).past_key_values
        alone = model(input_ids=step[i : i + 1], past_key_values=own)
        torch.testing.assert_close(together[i], alone.logits[0], atol=1e-5, rtol=1e-4)
        assert cache.next_position[i] == own.next_position[0]


def test_fork_leaves_the_original_alone():
    model = tiny()
    cache = model(**prompt(3)).past_key_values
    before = [layer.keys.clone() for layer in cache.layers]
    twin = cache.fork()
    asked = model(input_ids=torch.tensor([[40, 41]]), past_key_values=twin).logits
    model(**prompt(1, seed=4), past_key_values=twin)
    assert all(torch.equal(a, layer.keys) for a, layer in zip(before, cache.layers, strict=True))
    assert cache.tokens.frame_sizes == [[4] * 3]
    again = model(input_ids=torch.tensor([[40, 41]]), past_key_values=cache.fork()).logits
    assert torch.equal(asked, again)


def storages(cache):
    return {layer.keys.untyped_storage().data_ptr() for layer in cache.layers}


@torch.no_grad()
def test_tokens_are_decoded_without_a_copy_of_the_cache():
    model = tiny()
    cache = model(**prompt(3)).past_key_values
    before = storages(cache)
    for token in range(40, 45):
        model(input_ids=torch.tensor([[token]]), past_key_values=cache)
    assert storages(cache) == before


@torch.inference_mode()
def test_a_thousand_questions_and_crops_move_no_memory():
    model = tiny()
    cache = model(**prompt(3)).past_key_values
    length, question = cache.get_seq_length(), {"input_ids": torch.tensor([[40, 41, 42]])}
    wanted = model(**question, past_key_values=cache.fork(), logits_to_keep=1).logits

    def memories():
        record = cache.tokens
        masks = (record.vision_mask, record.attention_mask, record.next_positions)
        return storages(cache), {mask.untyped_storage().data_ptr() for mask in masks}

    before = memories()
    for _ in range(1000):
        cache.advance(text_rows(cache.tokens.next_positions[:, -1], 3))
        cache.crop(-3)
    assert memories() == before
    found = model(**question, past_key_values=cache, logits_to_keep=1).logits
    torch.testing.assert_close(found, wanted)
    assert memories() == before
    assert cache.get_seq_length() == length + 3


@torch.inference_mode()
def test_tokens_are_noted_without_a_copy_of_those_before():
    """The bookkeeping of a decoded token does not grow with the video."""
    model = tiny()
    cache = model(**prompt(3)).past_key_values
    held = cache.tokens.vision_mask, cache.tokens.attention_mask, cache.tokens.next_positions
    for token in range(40, 45):
        model(input_ids=torch.tensor([[token]]), past_key_values=cache)
    now = cache.tokens.vision_mask, cache.tokens.attention_mask, cache.tokens.next_positions
    for before, after in zip(held, now, strict=True):
        assert after.data_ptr() == before.data_ptr()
        assert after.shape[1] == before.shape[1] + 5
        assert torch.equal(after[:, : before.shape[1]], before)


def test_an_append_that_was_interrupted_is_forgotten():
    """Between keys and values, or before either was given."""
    layer, rows = RowMajorLayer(), torch.randn(1, 2, 3, 4)
    with torch.no_grad():
        layer.update(rows, rows)
        layer._rows()[0].append(rows.transpose(1, 2))
        assert layer.get_seq_length() == 3
        keys, values = layer.update(rows + 1, rows + 2)
    assert torch.equal(keys, torch.cat([rows, rows + 1], dim=2))
    assert torch.equal(values, torch.cat([rows, rows + 2], dim=2))


@torch.no_grad()
@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.reorder_cache(torch.tensor([1, 0])),
        lambda layer: layer.batch_select_indices(torch.tensor([1])),
        lambda layer: layer.batch_repeat_interleave(2),
    ],
    ids=["reorder", "select", "repeat"],
)
def test_keys_of_which_samples_were_taken_are_freed(change):
    layer, rows = RowMajorLayer(), torch.randn(2, 1, 3, 4)
    memory = weakref.ref(layer.update(rows, rows)[0].untyped_storage())
    change(layer)
    assert memory() is None
    first = layer.keys[:, :, :1]
    keys, _ = layer.update(first, first)
    assert torch.equal(keys[:, :, -1:], first)


@torch.no_grad()
def test_a_layer_that_was_offloaded_does_not_keep_its_memory_on_the_device():
    layer, rows = RowMajorLayer(), torch.randn(1, 1, 3, 4)
    before, _ = layer.update(rows, rows)
    layer.offload()
    after, _ = layer.update(rows, rows)
    assert after.untyped_storage().data_ptr() != before.untyped_storage().data_ptr()
    assert torch.equal(after, torch.cat([rows, rows], dim=2))


def test_keys_that_a_graph_keeps_are_not_written_over():
    """A layer whose k needs no gradient, since its projection is frozen, while that of q does."""
    layer, q = RowMajorLayer(), torch.randn(1, 1, 1, 4, requires_grad=True)
    rows = torch.randn(1, 1, 3, 4)
    first, _ = layer.update(rows, rows)
    scores = q @ first.mT
    layer.update(rows, rows)
    (found,) = torch.autograd.grad(scores.sum(), q)
    torch.testing.assert_close(found, rows.sum(dim=2, keepdim=True))


@torch.no_grad()
def test_a_cropped_cache_writes_over_no_row_that_a_fork_holds():
    model = tiny()
    cache = model(**prompt(3)).past_key_values
    twin = cache.fork()
    kept = [layer.values.clone() for layer in twin.layers]
    cache.crop(-3)
    model(input_ids=torch.tensor([[40, 41, 42]]), past_key_values=cache)
    assert all(torch.equal(a, layer.values) for a, layer in zip(kept, twin.layers, strict=True))


def test_a_cache_filled_in_inference_mode_grows_outside_of_it():
    model = tiny()
    with torch.inference_mode():
        cache = model(**prompt(3)).past_key_values
    twin, step = cache.fork(), torch.tensor([[40]])
    with torch.no_grad():
        outside = model(input_ids=step, past_key_values=cache).logits
    with torch.inference_mode():
        inside = model(input_ids=step, past_key_values=twin).logits
    torch.testing.assert_close(outside, inside)


def test_gradients_go_through_the_cache():
    model, inputs, step = tiny(), prompt(2), torch.tensor([[40, 41]])
    whole = inputs | {"input_ids": torch.cat([inputs["input_ids"], step], dim=1)}
    weight = model.model.language_model.layers[0].self_attn.k_proj.weight
    cache = model(**inputs).past_key_values
    for token in step.T:
        last = model(input_ids=token[None], past_key_values=cache).logits[:, -1].sum()
    (found,) = torch.autograd.grad(last, weight)
    (wanted,) = torch.autograd.grad(model(**whole).logits[:, -1].sum(), weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_crop_forgets_rows_and_their_frames():
    model, inputs = tiny(), prompt(3)
    cache = model(**inputs).past_key_values
    fresh = model(**inputs | prompt(3)).past_key_values
    model(input_ids=torch.tensor([[40, 41]]), past_key_values=cache)
    cache.crop(-2)
    step = torch.tensor([[50]])
    torch.testing.assert_close(
        model(input_ids=step, past_key_values=cache).logits,
        model(input_ids=step, past_key_values=fresh).logits,
    )
    cache.crop(-1)
    cache.crop(-(4 + 6))  # question and end of video, then one frame and a half
    assert cache.tokens.frame_sizes == [[4, 4]]
    assert cache.tokens.vision_mask.sum() == 6


def test_samples_can_be_chosen_and_repeated():
    model = tiny()
    batch = left_padded([prompt(5), prompt(2, seed=1)])
    cache = model(**batch).past_key_values
    positions = cache.next_position
    cache.batch_repeat_interleave(2)
    assert cache.tokens.frame_sizes == [[4] * 5] * 2 + [[4] * 2] * 2
    cache.reorder_cache(torch.tensor([3, 0]))
    assert cache.next_position == positions[::-1]
    cache.batch_select_indices(torch.tensor([1]))
    assert cache.tokens.frame_sizes == [[4] * 5]
    assert cache.layers[0].keys.shape[0] == len(cache.tokens.vision_mask) == 1


def test_another_batch_size_is_refused():
    model = tiny()
    cache = model(**prompt(2)).past_key_values
    with pytest.raises(UsageError, match="a batch of 2 with a cache of 1"):
        model(input_ids=torch.tensor([[40], [41]]), past_key_values=cache)
