"""Batches of rendered clips: the same for the same number, and labels on answers alone."""

import pytest
import torch
from conftest import TOKENIZER
from transformers import AutoTokenizer

from videonsa.train.batches import ClipBatches
from videonsa.train.recipe import EmbeddedRecipe, Stage
from videonsa.video.chat import IGNORED_LABEL

RECIPE = EmbeddedRecipe(
    stages=(
        Stage(temporal_patches=1, batch_size=3, steps=2),
        Stage(temporal_patches=8, batch_size=2, steps=2),
    )
)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


def make(tokenizer, recipe=RECIPE, **options):
    pad = tokenizer.pad_token_id
    return ClipBatches(recipe, tokenizer=tokenizer, pad_token_id=pad, **options)


def test_a_batch_is_the_same_each_time_and_differs_from_the_next(tokenizer) -> None:
    first, again = make(tokenizer)[2], make(tokenizer)[2]
    assert torch.equal(first.input_ids, again.input_ids)
    assert torch.equal(first.scenes.geometry, again.scenes.geometry)
    assert not torch.equal(first.scenes.geometry, make(tokenizer)[3].scenes.geometry)


def test_stages_follow_one_another_with_their_lengths_and_sizes(tokenizer) -> None:
    batches = make(tokenizer)
    assert [tuple(batches[i].times.shape) for i in range(4)] == [(3, 2), (3, 2), (2, 16), (2, 16)]
    assert len(batches) == 4
    with pytest.raises(IndexError):
        batches[4]


def test_loss_counts_on_answers_and_their_end_alone(tokenizer) -> None:
    batch = make(tokenizer)[2]
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        kept = labels != IGNORED_LABEL
        assert torch.equal(ids[kept], labels[kept])
        answers = tokenizer.decode(ids[kept]).split("<|im_end|>")[:-1]
        turns = tokenizer.decode(ids).split("<|im_start|>assistant\n")[1:]
        assert answers == [turn.split("<|im_end|>")[0] for turn in turns]


def test_every_clip_has_as_many_video_tokens_as_its_frames_make(tokenizer) -> None:
    video_pad = tokenizer.convert_tokens_to_ids("<|video_pad|>")
    for index, tokens in ((0, 16), (2, 8 * 16)):
        assert ((make(tokenizer)[index].input_ids == video_pad).sum(1) == tokens).all()


def test_direction_is_asked_of_every_moving_clip_and_of_no_still(tokenizer) -> None:
    still, moving = (
        [tokenizer.decode(ids) for ids in make(tokenizer)[i].input_ids] for i in (0, 2)
    )
    assert all("move?" in text for text in moving)
    assert not any("move" in text for text in still)
