import random

import pytest
import torch

from benchmarks.study.all_questions import Asked, score_all, score_read
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.checkpoints.loading import load_model

END = 2
VIDEO, START, STOP = 7, 3, 4


def read_video(model, frames=3):
    torch.manual_seed(1)
    features = torch.randn(frames * 4, model.config.text_config.hidden_size)
    video = EncodedVision("video", features, (frames, 4, 4), tuple(map(float, range(frames))))
    context = Context(model)
    context.read(context.passage([9, START, *[VIDEO] * len(features), STOP], [video]))
    return context


def greedy(context, question, tokens):
    with context.aside():
        steps = context.answer(
            context.passage(question),
            settings=GenerationSettings(max_new_tokens=tokens),
            stop_ids={END},
        )
        return [token for (token,) in steps]


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(tiny_folder, dtype=torch.float32).model


def test_questions_asked_together_are_answered_as_if_each_were_asked_alone(model):
    context, rng = read_video(model), random.Random(0)
    asked, likeliest, free = [], [], []
    for number in range(6):
        question = rng.choices(range(20, 500), k=rng.randint(1, 9))
        options = [[*rng.choices(range(20, 500), k=rng.randint(0, 3)), END] for _ in range(5)]
        written = greedy(context, question, 3)
        if number % 2:  # a right answer that the model writes; it ends by a token of its own
            options[number % 5] = written
        asked.append(Asked(question, options, number % 5))
        with context.aside():
            likeliest.append(context.likeliest(context.passage(question), options))
        free.append(written == options[number % 5])
    before = context.num_tokens
    found = score_all(context, asked)
    assert [one.likeliest for one in found] == likeliest and len(set(likeliest)) > 1
    assert [one.free for one in found] == free and free.count(True) == 3
    assert context.num_tokens == before and score_all(context, asked) == found
    assert score_all(context, asked[::-1]) == found[::-1]


def test_a_right_answer_that_does_not_end_there_is_not_free(model):
    context = read_video(model)
    written = greedy(context, [30, 31], 4)
    (found,) = score_all(context, [Asked([30, 31], [[*written[:2], END], written], 0)])
    assert not found.free and written[2] != END


def test_a_question_that_was_read_with_the_prompt_is_scored_as_if_asked_after_it(model):
    context, rng = read_video(model), random.Random(1)
    question = rng.choices(range(20, 500), k=5)
    options = [[*rng.choices(range(20, 500), k=n), END] for n in (1, 3, 2)]
    options[1] = greedy(context, question, 3)
    (expected,) = score_all(context, [Asked(question, options, 1)])
    logits = context.read(context.passage(question))
    before = context.num_tokens
    assert score_read(context, logits, options, 1) == expected and expected.free
    assert context.num_tokens == before
    turned = score_read(context, logits, options[::-1], 0)
    assert turned == (False, 2 - expected.likeliest)
