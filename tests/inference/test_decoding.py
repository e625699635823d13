"""The decode loop: by static steps as by the plain forward, a step ahead of the host or not."""

import pytest
import torch
from tiny_models import prompt, tiny

from videonsa.errors import ModelError, UsageError
from videonsa.inference import decoding
from videonsa.inference.context import Context
from videonsa.inference.decoding import LONGEST_QUESTION, decode, decode_each
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.capture import Graphs
from videonsa.models.decoding.reasons import why_not_static
from videonsa.models.decoding.steps import KeptSteps
from videonsa.models.methods import Dense

QUESTIONS = [[40, 41, 42], [50 + i % 60 for i in range(140)], [60], [70, 71]]


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture
def static(monkeypatch):
    """Makes decoding as on a GPU from then on: by static steps, which run ahead where captured."""

    def as_on_a_gpu(*, ahead):
        monkeypatch.setattr(decoding, "why_not_captured", lambda *given: why_not_static(*given[:3]))
        monkeypatch.setattr(Graphs, "has", lambda *_: ahead)

    return as_on_a_gpu


@torch.inference_mode()
def watched(model):
    cache = VideoNSACache()
    model(**prompt(4), past_key_values=cache)
    return cache


def answer(model, cache, ids, *, stop_ids=frozenset(), kept=None, method=None, **changes):
    settings = GenerationSettings(**{"max_new_tokens": 12} | changes)
    given = {"settings": settings, "stop_ids": stop_ids, "kept": kept, "method": method}
    return decode(model, {"input_ids": torch.tensor([ids])}, cache, **given)


def answers(model, cache, questions, *, stop_ids=frozenset(), kept=None, method=None):
    settings = GenerationSettings(max_new_tokens=8)
    given = {"settings": settings, "stop_ids": stop_ids, "kept": kept, "method": method}
    return list(map(list, zip(*decode_each(model, questions, cache, **given), strict=True)))


def tokens_of(steps):
    return [token for (token,) in steps]


def assert_same(ours, theirs):
    assert ours.get_seq_length() == theirs.get_seq_length()
    assert ours.tokens.frame_sizes == theirs.tokens.frame_sizes
    for name in ("vision_mask", "attention_mask", "next_positions"):
        assert torch.equal(getattr(ours.tokens, name), getattr(theirs.tokens, name))
    for one, other in zip(ours.layers, theirs.layers, strict=True):
        torch.testing.assert_close(one.keys, other.keys, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("length", [1, 20, LONGEST_QUESTION + 1])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "top_p": 0.9, "seed": 3}])
def test_tokens_and_cache_are_those_of_the_plain_path(model, static, ahead, length, drawn):
    first, second = [20 + i % 90 for i in range(length)], [90, 91, 92]
    theirs, ours = watched(model), watched(model)
    wanted = [tokens_of(answer(model, theirs, ids, **drawn)) for ids in (first, second)]
    static(ahead=ahead)
    kept = KeptSteps(model, ours)
    found = [tokens_of(answer(model, ours, ids, kept=kept, **drawn)) for ids in (first, second)]
    assert found == wanted
    assert kept.decoding == "captured steps"
    assert_same(ours, theirs)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_prompt_that_is_all_there_is_goes_on_by_static_steps(model, static, ahead):
    theirs, ours = VideoNSACache(), VideoNSACache()
    wanted = tokens_of(answer(model, theirs, [40, 41, 42]))
    static(ahead=ahead)
    kept = KeptSteps(model, ours)
    assert tokens_of(answer(model, ours, [40, 41, 42], kept=kept)) == wanted
    assert kept.decoding == "captured steps"
    assert_same(ours, theirs)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_answer_that_is_stopped_or_left_keeps_what_was_given(model, static, ahead, count):
    """All tokens but the last are read, whether a stop id or the reader ends it."""
    whole = tokens_of(answer(model, watched(model), [40, 41]))
    assert whole.index(whole[count - 1]) == count - 1, "the test needs a token that is new"
    theirs = watched(model)
    wanted = tokens_of(answer(model, theirs, [40, 41], stop_ids={whole[count - 1]}))
    static(ahead=ahead)
    ours = watched(model)
    assert tokens_of(answer(model, ours, [40, 41], stop_ids={whole[count - 1]})) == wanted
    assert_same(ours, theirs)
    left = watched(model)
    steps = answer(model, left, [40, 41])
    assert [next(steps)[0] for _ in range(count)] == wanted
    steps.close()
    assert_same(left, theirs)


@pytest.mark.parametrize("ahead", [False, True])
def test_an_interrupt_leaves_a_cache_that_goes_on(model, static, ahead, monkeypatch):
    whole = tokens_of(answer(model, watched(model), [40, 41]))
    static(ahead=ahead)
    cache, real, calls = watched(model), decoding.StaticSteps.step, []

    def interrupted(self, ids):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, ids)

    monkeypatch.setattr(decoding.StaticSteps, "step", interrupted)
    given, before = [], cache.get_seq_length()
    with pytest.raises(KeyboardInterrupt):
        given.extend(token for (token,) in answer(model, cache, [40, 41]))
    assert cache.get_seq_length() == cache.tokens.vision_mask.shape[1]
    read = cache.get_seq_length() - before - 2
    rest = tokens_of(answer(model, cache, [whole[read]], max_new_tokens=3))
    assert rest == whole[read + 1 : read + 4]


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("step", [1, 3])
def test_logits_that_are_not_finite_end_the_answer_and_name_its_step(static, ahead, step):
    model, calls = tiny(), []

    def spoiled(_, __, output):
        calls.append(1)
        return output * float("nan") if len(calls) == step else output

    cache = watched(model)
    static(ahead=ahead)
    with model.lm_head.register_forward_hook(spoiled):
        steps, given = answer(model, cache, [40, 41]), []
        with pytest.raises(ModelError, match=f"token {step} of the answer are not finite"):
            given.extend(steps)
    assert cache.get_seq_length() == cache.tokens.vision_mask.shape[1]


@pytest.mark.parametrize("ahead", [False, True])
def test_questions_over_one_cache_are_answered_as_each_alone(model, static, ahead):
    alone = [tokens_of(answer(model, watched(model), ids, max_new_tokens=8)) for ids in QUESTIONS]
    assert len({tuple(one) for one in alone}) > 1
    cache, untouched = watched(model), watched(model)
    kept = KeptSteps(model, cache)
    assert answers(model, cache, QUESTIONS, kept=kept) == alone
    assert kept.decoding == "static steps: it runs on a CPU, not on a CUDA GPU"
    static(ahead=ahead)
    for questions in (QUESTIONS, QUESTIONS[:1], QUESTIONS[2:]):
        wanted = [alone[QUESTIONS.index(ids)] for ids in questions]
        assert answers(model, cache, questions, kept=kept) == wanted
        assert kept.decoding == "captured steps"
    assert_same(cache, untouched)
    ends = {alone[0][1], alone[1][3], alone[2][2], alone[3][0]}
    lasts = [next(i for i, token in enumerate(one) if token in ends) for one in alone]
    stopped = answers(model, cache, QUESTIONS, stop_ids=ends, kept=kept)
    assert stopped == [one[: max(lasts) + 1] for one in alone]


class Own(Dense):
    """Dense, by an `attend` of its own."""

    name = "own"

    def attend(self, layer, hidden, q, k, v, step):
        return super().attend(layer, hidden, q, k, v, step)


def test_questions_are_answered_in_turn_where_steps_cannot_be_static(model):
    cache, untouched = watched(model), watched(model)
    kept = KeptSteps(model, cache)
    found = answers(model, cache, QUESTIONS, kept=kept, method=Own())
    assert found == answers(model, cache, QUESTIONS)
    assert kept.decoding == (
        "plain steps, one question after another: "
        "method 'own' need not be dense attention after the video"
    )
    assert_same(cache, untouched)
    ended = answers(model, cache, QUESTIONS, stop_ids={found[0][1]}, method=Own())
    assert ended[0] == [*found[0][:2], *[found[0][1]] * (len(ended[0]) - 2)]
    nothing = VideoNSACache()
    alone = answers(model, nothing, QUESTIONS)
    assert alone == [
        tokens_of(answer(model, VideoNSACache(), ids, max_new_tokens=8)) for ids in QUESTIONS
    ]
    assert nothing.get_seq_length() == 0


def test_a_batch_of_prompts_and_one_token_are_decoded_plainly(model, static):
    static(ahead=True)
    cache = VideoNSACache()
    kept = KeptSteps(model, cache)
    settings = GenerationSettings(max_new_tokens=2)
    given = {"settings": settings, "stop_ids": frozenset(), "kept": kept}
    list(decode(model, {"input_ids": torch.tensor([[40, 41], [50, 51]])}, cache, **given))
    assert kept.decoding == "plain steps: a batch of 2 prompts, each with keys of its own"
    kept = KeptSteps(model, VideoNSACache())
    tokens_of(answer(model, kept._cache, [40], kept=kept, max_new_tokens=1))
    assert kept.decoding == "plain steps: one token is wanted"


def test_a_question_without_tokens_is_refused(model):
    with pytest.raises(UsageError, match="a question without tokens"):
        answers(model, watched(model), [[40], []])


@pytest.mark.parametrize("ahead", [False, True])
def test_a_context_keeps_its_steps_and_says_how_it_decoded(model, static, ahead):
    static(ahead=ahead)
    context = Context(model, cache=watched(model))
    assert context.decoding is None
    settings = GenerationSettings(max_new_tokens=6)
    given = {"settings": settings, "stop_ids": frozenset()}
    alone = [tokens_of(answer(model, watched(model), ids, max_new_tokens=6)) for ids in QUESTIONS]
    before = context.num_tokens
    together = zip(*context.answer_each(QUESTIONS, **given), strict=True)
    assert list(map(list, together)) == alone
    assert context.num_tokens == before
    steps = context.answer(context.passage(QUESTIONS[0]), **given)
    assert [next(steps)[0] for _ in range(4)] == alone[0][:4]
    steps.close()
    assert context.num_tokens == before + len(QUESTIONS[0]) + 3
    rest = context.answer(context.passage(alone[0][3:4]), **given)
    assert tokens_of(rest)[:2] == alone[0][4:]
    assert context.decoding == "captured steps"
