"""`HybridLayout`: places that follow one another, and the runs that a result is made of."""

import pytest
import torch

from videonsa.ops import NSASpec, hybrid_layout, layout
from videonsa.ops.layout import Places

SPEC = NSASpec(block_size=8, num_selected_blocks=2, window_size=5)


def vision_mask(text):
    return torch.tensor([[letter == "v" for letter in line] for line in text.split()])


def test_places_that_follow_one_another_are_a_view():
    x = torch.arange(24.0).view(2, 4, 3)
    follows, jumps = Places.of([range(1, 4)]), Places.of([torch.tensor([1, 3, 6])])
    assert follows.numbers is None
    assert (follows.flat().tolist(), jumps.flat().tolist()) == ([1, 2, 3], [1, 3, 6])
    assert torch.equal(follows.take(x), x.flatten(0, 1)[None, 1:4])
    assert follows.take(x)._base is not None
    assert torch.equal(jumps.take(x), x.flatten(0, 1)[[1, 3, 6]][None])


def test_a_whole_batch_is_a_view_too():
    x = torch.arange(24.0).view(2, 4, 3)
    every = Places.of([range(4), range(4, 8)])
    assert (every.first, every.numbers) == (0, None)
    assert torch.equal(every.take(x), x)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("ttvvvt", None),
        ("vvvv vvvv", None),
        ("tvvtvt", [[1, 2, 4]]),
        ("tvvt tvvt", None),
        ("tvvt vvtt", [[1, 2], [4, 5]]),
        ("tvtv tvtv", [[1, 3], [5, 7]]),
    ],
)
def test_vision_keys_are_numbered_only_where_they_have_gaps_or_differ(text, numbers):
    made = hybrid_layout(vision_mask(text), spec=SPEC, num_rows=len(text.split()[0]))
    keys = made.vision[0].keys.numbers
    assert (None if keys is None else keys.tolist()) == numbers
    assert all(group.keys.numbers is None for group in made.text), "they see every key"


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("vvvv", ((0, 0, 4),)),
        ("ttvvvt", ((1, 0, 2), (0, 0, 3), (1, 2, 3))),
        ("tvv vvt", ((1, 0, 1), (0, 0, 4), (1, 1, 2))),
    ],
)
def test_runs_say_where_the_rows_of_a_sequence_come_from(text, runs):
    made = hybrid_layout(vision_mask(text), spec=SPEC, num_rows=len(text.split()[0]))
    assert made.runs == runs
    parts = [group.rows.flat() for group in (*made.vision, *made.text)]
    joined = torch.cat([parts[group][start:stop] for group, start, stop in made.runs])
    assert joined.tolist() == list(range(len(text.replace(" ", ""))))


def test_equal_places_of_all_samples_are_a_view():
    x = torch.arange(24.0).view(2, 4, 3)
    middle = Places.of([range(1, 3), range(5, 7)], length=8)
    assert (middle.numbers, middle.flat().tolist()) == (None, [1, 2, 5, 6])
    assert torch.equal(middle.take(x), x[:, 1:3])
    assert middle.take(x)._base is not None
    assert Places.of([range(1, 3), range(4, 6)], length=8).numbers is not None


@pytest.mark.parametrize("packed", [False, True])
def test_samples_that_are_alike_have_the_runs_of_one(packed):
    mask, cu_seqlens = vision_mask("tvvvt tvvvt tvvvt"), None
    if packed:
        mask, cu_seqlens = mask.view(1, -1), torch.tensor([0, 5, 10, 15], dtype=torch.int32)
    made = hybrid_layout(mask, spec=SPEC, num_rows=mask.shape[1], cu_seqlens_k=cu_seqlens)
    assert (made.num_alike, made.runs) == (3, ((1, 0, 1), (0, 0, 3), (1, 1, 2)))


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("ttvvvt", ((0, 2, 2), (2, 1, 6))),
        ("tvvt tvvt", ((0, 1, 1), (1, 1, 4))),
        ("tvvt vtvt", None),
        ("tvtvtvtvtvtvtvtvt", None),
    ],
    ids=["one sample", "alike", "of other places", "too many"],
)
def test_text_rows_that_follow_one_another_are_runs(text, runs):
    made = hybrid_layout(vision_mask(text), spec=SPEC, num_rows=len(text.split()[0]))
    assert made.text[0].runs == runs


def test_too_many_runs_are_an_index(monkeypatch):
    monkeypatch.setattr(layout, "MAX_RUNS", 4)
    made = hybrid_layout(vision_mask("tvtvt"), spec=SPEC, num_rows=5)
    assert made.runs is None
    parts = torch.cat([group.rows.flat() for group in (*made.vision, *made.text)])
    assert parts[made.order].tolist() == [0, 1, 2, 3, 4]


def test_a_mask_of_keys_is_kept_only_where_there_is_padding():
    mask = vision_mask("ttvvt")
    (whole,) = hybrid_layout(mask, spec=SPEC, num_rows=5).text
    valid = torch.tensor([[False, True, True, True, True]])
    (padded,) = hybrid_layout(mask, spec=SPEC, num_rows=5, attention_mask=valid).text
    assert whole.key_mask is None
    assert torch.equal(padded.key_mask, valid)
    assert (whole.runs, padded.runs) == (((0, 2, 2), (2, 1, 5)), None)
