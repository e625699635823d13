"""Static steps give the logits of the plain forward, whatever was read before."""

import pytest
import torch
from tiny_models import prompt, tiny

from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding import steps as steps_module
from videonsa.models.decoding.reasons import why_not_static
from videonsa.models.decoding.steps import SIZES, KeptSteps, StaticSteps, rows_needed
from videonsa.models.methods import Dense

TOLERANCE = {"atol": 2e-5, "rtol": 1e-4}


def ids(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(20, 120, (length,), generator=generator).tolist()


@pytest.fixture(scope="module")
def model():
    return tiny()


@torch.inference_mode()
def watched(model, num_patches=4):
    cache = VideoNSACache()
    model(**prompt(num_patches), past_key_values=cache)
    return cache


@torch.inference_mode()
def plain(model, cache, tokens):
    """The logits after tokens that a fork of the cache reads."""
    return model(torch.tensor([tokens]), past_key_values=cache.fork(), logits_to_keep=1).logits[
        :, 0
    ]


def likeliest(logits):
    """The likeliest token that is none of an image or a video."""
    return logits[:, 20:].argmax(-1) + 20


def steps_after(model, cache, batch=1):
    return StaticSteps(model, cache, batch=batch, captures=False)


@pytest.mark.parametrize("length", [1, 2, 16, 17, 40, 64, 100, 128, 129, 130, 150, 300])
def test_a_question_of_any_length_is_read_as_by_the_forward(model, length):
    cache, question = watched(model), ids(length)
    steps = steps_after(model, cache)
    steps.begin(rows_needed(length, 4))
    logits = steps.read([question]).clone()
    torch.testing.assert_close(logits, plain(model, cache, question), **TOLERANCE)
    answer = []
    for _ in range(3):
        token = likeliest(logits)
        answer.append(int(token))
        logits = steps.step(token).clone()
        torch.testing.assert_close(logits, plain(model, cache, question + answer), **TOLERANCE)


def test_only_what_is_kept_counts_and_the_next_turn_goes_on_from_it(model):
    cache = watched(model)
    before, length = cache.fork(), cache.get_seq_length()
    steps, question = steps_after(model, cache), ids(20)
    steps.begin(rows_needed(20, 8))
    steps.read([question])
    for token in (50, 51, 52):
        steps.step(torch.tensor([token]))
    assert cache.get_seq_length() == cache.tokens.vision_mask.shape[1] == length
    steps.keep(22)  # of 23
    with torch.inference_mode():
        model(torch.tensor([[*question, 50, 51]]), past_key_values=before)
    assert cache.get_seq_length() == before.get_seq_length()
    for name in ("vision_mask", "attention_mask", "next_positions"):
        assert torch.equal(getattr(cache.tokens, name), getattr(before.tokens, name))
    for ours, theirs in zip(cache.layers, before.layers, strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys, **TOLERANCE)
    with torch.inference_mode():  # a second video, then a second question by the same steps
        model(**prompt(2, seed=1), past_key_values=cache)
        model(**prompt(2, seed=1), past_key_values=before)
    steps.begin(rows_needed(5, 1))
    torch.testing.assert_close(
        steps.read([ids(5, 2)]), plain(model, before, ids(5, 2)), **TOLERANCE
    )


def test_after_a_crop_the_same_memory_is_written_again(model):
    cache = watched(model)
    steps, length = steps_after(model, cache), cache.get_seq_length()
    addresses = set()
    for seed in range(20):
        steps.begin(rows_needed(12, 4))
        found = steps.read([ids(12, seed)]).clone()
        torch.testing.assert_close(found, plain(model, cache, ids(12, seed)), **TOLERANCE)
        steps.keep(12)
        addresses.add(cache.layers[0].memory[0].data_ptr())
        cache.crop(length - cache.get_seq_length())
    assert len(addresses) == 1


def test_no_row_that_a_fork_holds_is_written_over(model):
    cache = watched(model)
    with torch.inference_mode():
        model(torch.tensor([ids(6)]), past_key_values=cache)
    twin = cache.fork()
    kept = [layer.keys.clone() for layer in twin.layers]
    cache.crop(-6)
    steps = steps_after(model, cache)
    steps.begin(rows_needed(6, 1))
    found = steps.read([ids(6, 1)])
    torch.testing.assert_close(found, plain(model, cache, ids(6, 1)), **TOLERANCE)
    assert all(torch.equal(a, layer.keys) for a, layer in zip(kept, twin.layers, strict=True))


def test_steps_after_a_fork_leave_the_cache_that_it_was_made_of(model):
    cache = watched(model)
    twin = cache.fork()
    steps = steps_after(model, twin)
    steps.begin(rows_needed(6, 1))
    steps.read([ids(6, 1)])
    steps.keep(6)
    assert twin.get_seq_length() == cache.get_seq_length() + 6
    found = plain(model, cache, ids(6, 2))
    torch.testing.assert_close(found, plain(model, watched(model), ids(6, 2)), **TOLERANCE)


@pytest.mark.parametrize("lengths", [(1, 1), (3, 30, 17), (140, 2, 129, 10), (1, 300)])
def test_several_questions_over_one_cache_are_read_as_each_alone(model, lengths):
    cache = watched(model)
    with torch.inference_mode():
        model(torch.tensor([ids(9, 7)]), past_key_values=cache)
    steps, length = steps_after(model, cache, len(lengths)), cache.get_seq_length()
    questions = [ids(count, seed) for seed, count in enumerate(lengths)]
    steps.begin(rows_needed(max(lengths), 3))
    logits = steps.read(questions).clone()
    for _ in range(3):
        alone = torch.cat([plain(model, cache, question) for question in questions])
        torch.testing.assert_close(logits, alone, **TOLERANCE)
        tokens = likeliest(logits)
        for question, token in zip(questions, tokens.tolist(), strict=True):
            question.append(token)
        logits = steps.step(tokens).clone()
    assert cache.get_seq_length() == cache.tokens.vision_mask.shape[1] == length


@pytest.mark.parametrize("batch", [1, 3])
def test_what_lies_behind_the_rows_is_never_seen(model, batch):
    """Memory that was not written may hold anything."""
    cache = watched(model)
    steps = steps_after(model, cache, batch)
    steps.begin(rows_needed(20, 2))
    memory = steps._own or [layer.memory for layer in cache.layers]
    with torch.inference_mode():
        for one in memory:
            for x in one:
                x[:, 0 if batch > 1 else cache.get_seq_length() :] = torch.nan
    logits = steps.read([ids(20 - i, i) for i in range(batch)])
    assert logits.isfinite().all()
    assert steps.step(likeliest(logits)).isfinite().all()


def test_what_is_no_token_fails_nowhere(model):
    """NOT_FINITE, where the host has not seen it yet."""
    steps = steps_after(model, watched(model))
    steps.begin(rows_needed(1, 1))
    steps.read([[40]])
    assert steps.step(torch.tensor([-1])).isfinite().all()


class Leaving(Dense):
    """Every second vision token leaves after the first layer."""

    leaves_after = (0,)
    text_is_dense = True

    def kept_after(self, layer, hidden, step, following):
        if not step.tokens.has_vision:
            return None
        vision = step.tokens.vision_mask[0, -step.tokens.num_tokens :]
        return ((vision.cumsum(0) % 2 == 1) | ~vision).nonzero()[:, 0]


@pytest.mark.parametrize("batch", [1, 3])
def test_after_tokens_left_each_layer_goes_on_from_its_own_length(model, batch):
    method, cache = Leaving(), VideoNSACache()
    with torch.inference_mode():
        model(**prompt(4), past_key_values=cache, method=method)
    lengths = [layer.get_seq_length() for layer in cache.layers]
    assert lengths[0] == lengths[1] + 8
    assert why_not_static(model, cache, method) is None
    steps, questions = steps_after(model, cache, batch), [ids(20 - i, i) for i in range(batch)]
    steps.begin(rows_needed(20, 2))
    logits = steps.read(questions).clone()
    for _ in range(2):
        alone = [plain(model, cache, question) for question in questions]
        torch.testing.assert_close(logits, torch.cat(alone), **TOLERANCE)
        tokens = likeliest(logits)
        for question, token in zip(questions, tokens.tolist(), strict=True):
            question.append(token)
        logits = steps.step(tokens).clone()
    if batch == 1:
        steps.keep(21)
        assert [layer.get_seq_length() for layer in cache.layers] == [n + 21 for n in lengths]
        assert cache.records[1].places[-21:] == list(range(lengths[0], lengths[0] + 21))
        torch.testing.assert_close(plain(model, cache, questions[0][-1:]), logits, **TOLERANCE)


def test_a_model_of_dense_weights_has_them_too():
    dense = tiny(attention="dense")
    cache = watched(dense)
    steps = steps_after(dense, cache)
    steps.begin(rows_needed(5, 1))
    torch.testing.assert_close(steps.read([ids(5)]), plain(dense, cache, ids(5)), **TOLERANCE)


def test_steps_are_kept_for_one_sample_and_for_the_last_number_of_them(model):
    kept = KeptSteps(model, watched(model))
    one, three = (kept.of(batch, captures=False) for batch in (1, 3))
    assert kept.of(1, captures=False) is one
    assert kept.of(3, captures=False) is three
    kept.of(4, captures=False)
    assert kept.of(1, captures=False) is one
    assert kept.of(3, captures=False) is not three


def test_sizes_grow():
    assert list(SIZES) == sorted(SIZES)
    assert SIZES[0] == 1, "a decoded token is a step of its own"


def test_a_class_with_its_own_attend_is_not_taken_for_dense():
    class Counted(Dense):
        def attend(self, layer, hidden, q, k, v, step):
            return super().attend(layer, hidden, q, k, v, step)

    class Renamed(Dense):
        name = "renamed"

    assert Dense.text_is_dense
    assert Renamed.text_is_dense
    assert not Counted.text_is_dense


def test_a_conversation_moves_the_memory_once_in_many_turns(model):
    """Graphs would be captured anew each time."""
    cache = watched(model)
    steps, addresses = steps_after(model, cache), []
    for seed in range(20):
        steps.begin(rows_needed(30, 64))
        steps.read([ids(30, seed)])
        steps.keep(94)
        addresses.append(cache.layers[0].memory[0].data_ptr())
    assert len(set(addresses)) <= 2


def test_getting_ready_reads_nothing(model, monkeypatch):
    monkeypatch.setattr(steps_module, "why_not_captured", lambda *_: None)
    cache, untouched = watched(model), watched(model)
    kept = KeptSteps(model, cache)
    kept.get_ready(None, max_new_tokens=8)
    assert cache.get_seq_length() == cache.tokens.vision_mask.shape[1]
    assert cache.get_seq_length() == untouched.get_seq_length()
    steps, question = kept.of(1, captures=True), ids(20)
    steps.begin(rows_needed(20, 8))
    found = steps.read([question]).clone()
    torch.testing.assert_close(found, plain(model, untouched, question), **TOLERANCE)
    token = likeliest(found)
    after = plain(model, untouched, [*question, int(token)])
    torch.testing.assert_close(steps.step(token), after, **TOLERANCE)
    nothing = VideoNSACache()
    KeptSteps(model, nothing).get_ready(None, max_new_tokens=8)
    assert nothing.get_seq_length() == 0
