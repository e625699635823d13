"""Tri-Shape: tiles and trim together are the published rule, pair by pair."""

import pytest
import torch
from block_list_cases import pairs_of

from videonsa.ops.block_sparse import check_lists
from videonsa.ops.estimators.tri_shape import tri_shape_lists


def by_hand(num_tokens, num_init, window, num_last):
    """Row i sees its last `window` keys and the first `num_init`; one of the last rows, all."""
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for i in range(num_tokens):
        mask[i, :num_init] = True
        mask[i, max(i - window + 1, 0) : i + 1] = True
        if i >= num_tokens - num_last:
            mask[i] = True
        mask[i, i + 1 :] = False
    return mask


@pytest.mark.parametrize(
    ("num_tokens", "num_init", "window", "num_last"),
    [
        (300, 16, 100, 50),
        (385, 128, 129, 1),
        (300, 0, 1, 0),
        (300, 0, 300, 0),
        (300, 200, 128, 20),
        (1, 4, 4, 0),
    ],
)
def test_the_rule_holds_to_the_token(num_tokens, num_init, window, num_last):
    numbers = {"num_init": num_init, "window": window, "num_last": num_last}
    lists = tri_shape_lists(num_tokens, 2, **numbers, device=torch.device("cpu"))
    check_lists(lists, num_tokens)
    seen = pairs_of(
        lists,
        num_tokens,
        keeps=lambda i, j: (j < num_init) | (i - j < window) | (i >= num_tokens - num_last),
    )
    wanted = by_hand(num_tokens, num_init, window, num_last)
    assert torch.equal(seen, wanted.expand(2, -1, -1))


def test_no_tile_is_listed_without_a_pair_in_it():
    numbers = {"num_init": 100, "window": 130, "num_last": 40}
    lists = tri_shape_lists(700, 1, **numbers, device=torch.device("cpu"))
    wanted, starts = by_hand(700, 100, 130, 40), lists.row_starts[0].tolist()
    for row in range(6):
        for first in lists.tiles[starts[row] : starts[row + 1]].tolist():
            assert wanted[128 * row : 128 * row + 128, first : first + 128].any()
