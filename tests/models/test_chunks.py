"""Rows through the layers in chunks: the same as in one go, or refused with a reason."""

import math

import pytest
import torch
from tiny_models import SPEC, left_padded, prompt, tiny

from videonsa.errors import UsageError
from videonsa.models import chunks
from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import NSA
from videonsa.models.recorder.protocol import Recorder
from videonsa.ops.spec import NSASpec

BLOCKS = NSASpec(block_size=8, num_selected_blocks=3, window_size=6)


def run(model, inputs, rows, **options):
    cache = VideoNSACache()
    with torch.no_grad():
        logits = model(**inputs, past_key_values=cache, rows_per_chunk=rows, **options).logits
    return logits, cache


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0], atol=2e-5, rtol=1e-4)
    for name in ("vision_mask", "attention_mask", "next_positions"):
        assert torch.equal(getattr(ours[1].tokens, name), getattr(theirs[1].tokens, name)), name
    assert ours[1].tokens.frame_sizes == theirs[1].tokens.frame_sizes
    assert ours[1].tokens.is_padded == theirs[1].tokens.is_padded
    assert ours[1].get_seq_length() == theirs[1].get_seq_length()


@pytest.mark.parametrize("rows", [1, 3, 7, 20, 10_000])
@pytest.mark.parametrize("spec", [SPEC, BLOCKS], ids=["frames", "blocks"])
@pytest.mark.parametrize("attention", ["nsa", "dense"])
def test_chunks_give_what_one_go_gives(spec, attention, rows):
    model, inputs = tiny(spec=spec), prompt(6)
    options = {"method": attention}
    assert_same(run(model, inputs, rows, **options), run(model, inputs, 0, **options))


class Selections(Recorder):
    wants_branches = True

    def __init__(self):
        self.seen = {}

    def record(self, layer, q, k, attended):
        self.seen.setdefault(layer, []).append(attended.result.selected_blocks)


def test_chunks_draw_the_blocks_of_one_go_and_each_layer_its_own():
    model, inputs = tiny(spec=BLOCKS), prompt(16)
    options = {"method": NSA(BLOCKS.with_options(selection="random"))}
    assert_same(run(model, inputs, 3, **options), run(model, inputs, 0, **options))
    recorder = Selections()
    run(model, inputs, 0, recorder=recorder, **options)
    (one,), (other,), *_ = recorder.seen.values()
    assert one.shape == other.shape
    assert not torch.equal(one, other)


@pytest.mark.parametrize("rows", [2, 9])
def test_chunks_of_a_padded_batch_give_what_one_go_gives(rows):
    batch = left_padded([prompt(6), prompt(2, seed=1), prompt(4, 4, 6, seed=2)])
    model = tiny()
    ours, theirs = run(model, batch, rows), run(model, batch, 0)
    real = batch["attention_mask"].bool()
    assert_same((ours[0][real], ours[1]), (theirs[0][real], theirs[1]))


@pytest.mark.parametrize("kept", [1, 5])
def test_last_logits_are_those_of_one_go(kept):
    model, inputs = tiny(), prompt(6)
    ours, theirs = (run(model, inputs, rows, logits_to_keep=kept) for rows in (4, 0))
    assert ours[0].shape[1] == kept
    assert_same(ours, theirs)


def test_next_turn_continues_after_chunks():
    model, inputs, more = tiny(), prompt(6), prompt(3, seed=5)
    answers = []
    for rows in (5, 0):
        _, cache = run(model, inputs, rows)
        with torch.no_grad():
            answers.append(model(**more, past_key_values=cache, rows_per_chunk=rows).logits)
    torch.testing.assert_close(*answers, atol=2e-5, rtol=1e-4)


def test_long_prompts_are_cut_by_themselves(monkeypatch):
    model, inputs = tiny(), prompt(6)
    wanted = run(model, inputs, 0)
    monkeypatch.setattr(chunks, "ROWS_PER_CHUNK", 6)
    lengths = []
    layer = model.model.language_model.layers[0]
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append((args or [kwargs["hidden_states"]])[0].shape[1]),
        with_kwargs=True,
    )
    found = run(model, inputs, None)
    assert max(lengths) == 6
    assert_same(found, wanted)
    del lengths[:]
    model(**inputs)
    assert lengths == [inputs["input_ids"].shape[1]], "gradients are enabled"


@pytest.mark.parametrize("num_rows", [1, 6, 7, 1000, 131_072, 131_136, 262_145])
@pytest.mark.parametrize("most", [1, 6, 500, 16_384])
def test_chunks_are_few_and_the_last_is_no_crumb(num_rows, most):
    rows = chunks.even_chunk(num_rows, most)
    lengths = [min(rows, num_rows - start) for start in range(0, num_rows, rows)]
    assert max(lengths) <= most
    assert len(lengths) == math.ceil(num_rows / most)
    assert max(lengths) - lengths[-1] <= 128 * len(lengths)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"output_hidden_states": True}, "hidden states"),
        ({"method": NSA(NSASpec(selection_scope="block"))}, "choose together"),
    ],
    ids=["hidden states", "block scope"],
)
def test_what_needs_all_rows_at_once_is_refused(options, reason):
    with pytest.raises(UsageError, match=f"rows_per_chunk=4: .*{reason}"):
        tiny()(**prompt(3), rows_per_chunk=4, **options)


def test_negative_number_of_rows_is_refused():
    with pytest.raises(UsageError, match="rows_per_chunk=-1: want a number of rows"):
        tiny()(**prompt(3), rows_per_chunk=-1)
