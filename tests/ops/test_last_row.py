"""Attention of the last token, and which tokens it keeps."""

import math

import pytest
import torch

from videonsa.ops import last_row
from videonsa.ops.last_row import kept_of, last_row_attention, most_attended


@pytest.mark.parametrize("padded", [0, 2])
def test_it_is_the_last_row_of_the_map_averaged_over_heads(monkeypatch, padded):
    monkeypatch.setattr(last_row, "KEYS_PER_PART", 3)
    q, k = torch.randn(6, 4), torch.randn(11, 2, 4)
    rows = []
    for head in range(6):
        weights = [
            math.exp(float(q[head] @ key[head // 3]) / 2) if place >= padded else 0.0
            for place, key in enumerate(k)
        ]
        rows.append(torch.tensor(weights) / sum(weights))
    mask = torch.arange(11) >= padded if padded else None
    torch.testing.assert_close(last_row_attention(q, k, key_mask=mask), sum(rows) / 6)


@pytest.mark.parametrize(
    ("ratio", "kept"),
    [(1.0, [0, 1, 2, 3, 4, 5]), (0.5, [0, 2, 3, 5]), (0.01, [0, 2, 5])],
)
def test_text_stays_and_of_equal_scores_the_earlier(ratio, kept):
    vision = torch.tensor([False, True, True, True, True, False])
    scores = torch.tensor([0.0, 0.1, 0.3, 0.3, 0.2, 0.0])
    assert most_attended(scores, vision, ratio=ratio).tolist() == kept


def test_the_last_token_stays_as_one_of_those_that_the_ratio_keeps():
    vision = torch.tensor([True, True, True, True])
    scores = torch.tensor([0.3, 0.1, 0.2, 0.0])
    assert most_attended(scores, vision, ratio=0.5).tolist() == [0, 3]
    assert most_attended(scores, vision, ratio=0.25).tolist() == [3]


def test_the_share_is_rounded_down_but_not_by_the_error_of_a_product():
    assert [kept_of(100, 0.29), kept_of(7, 0.5), kept_of(3, 0.01), kept_of(0, 0.5)] == [29, 3, 1, 0]
