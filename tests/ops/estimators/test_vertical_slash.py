"""Vertical-slash lists against the paper written out pair by pair."""

import math

import pytest
import torch
from block_list_cases import pairs_of

from videonsa.ops.block_sparse import check_lists, computed_pairs
from videonsa.ops.estimators import vertical_slash as module
from videonsa.ops.estimators.vertical_slash import line_scores, vertical_slash_lists


def lines_by_hand(q, k, columns, offsets):
    """Of one head: the columns and offsets that its last 64 rows attend to most."""
    num_tokens = len(k)
    vertical, slash = [0.0] * num_tokens, [0.0] * num_tokens
    products = (q @ k.T / math.sqrt(q.shape[1])).tolist()
    for i in range(max(num_tokens - 64, 0), num_tokens):
        weights = [math.exp(products[i][j]) for j in range(i + 1)]
        for j, weight in enumerate(weights):
            vertical[j] += weight / sum(weights)
            slash[i - j] += weight / sum(weights)
    for forced, sums in ((30, vertical), (100, slash)):
        sums[:forced] = [math.inf] * len(sums[:forced])
    ranked = [
        sorted(range(num_tokens), key=lambda place, sums=sums: -sums[place])
        for sums in (vertical, slash)
    ]
    return set(ranked[0][: max(columns, 30)]), set(ranked[1][: max(offsets, 50)])


def tiles_by_hand(offsets, first_row):
    """First keys of the tiles of one query tile, from the farthest offset to the nearest."""
    tiles = []
    for offset in sorted(offsets, reverse=True):
        if offset >= first_row + 64:
            continue
        begin = max(first_row - offset, 0)
        if not tiles or begin > tiles[-1] + 64:
            tiles.append(begin)
        elif begin > tiles[-1]:
            tiles.append(tiles[-1] + 64)
    return tiles


def mask_by_hand(num_tokens, columns, offsets):
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool)
    for first in range(0, num_tokens, 64):
        for begin in tiles_by_hand(offsets, first):
            mask[first : first + 64, begin : begin + 64] = True
    mask[:, list(columns)] = True
    return mask.tril()


def drawn(num_tokens, *, heads=4, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((num_tokens, heads, 16), (num_tokens, kv_heads, 16))
    q, k = (2 * torch.randn(size, generator=generator) for size in sizes)
    return q, k


@pytest.mark.parametrize("num_tokens", [1, 40, 64, 101, 330])
def test_the_lists_are_the_paper_written_out(num_tokens):
    """GQA, other sizes in each head, lengths that no tile divides and shorter than the probes."""
    q, k = drawn(num_tokens)
    sizes = [(30, 110), (60, 100), (45, 130), (5, 104)]
    lists = vertical_slash_lists(q, k, sizes)
    check_lists(lists, num_tokens)
    seen = pairs_of(lists, num_tokens)
    for head, (columns, offsets) in enumerate(sizes):
        lines = lines_by_hand(q[:, head], k[:, head // 2], columns, offsets)
        assert torch.equal(seen[head], mask_by_hand(num_tokens, *lines)), head


def test_scattered_offsets_begin_anywhere_and_ranges_are_whole_tiles():
    """The walk over offsets far apart, near one another, and cut by the first key."""
    offsets = torch.zeros(1, 500, dtype=torch.bool)
    offsets[0, [0, 1, 63, 64, 65, 130, 195, 259, 300, 437, 499]] = True
    tiles, starts = module._tiles(offsets)
    for row in range(8):
        found = tiles[starts[0, row] : starts[0, row + 1]].tolist()
        wanted = tiles_by_hand(offsets[0].nonzero()[:, 0].tolist(), 64 * row)
        assert found == [first for first in wanted if first < 500], row
    assert any(first % 64 for first in tiles.tolist())


@pytest.mark.parametrize("sizes", [(150, 1), (1, 150), (10**6, 10**6)])
def test_all_columns_or_all_offsets_are_every_pair(sizes):
    q, k = drawn(150)
    lists = vertical_slash_lists(q, k, [sizes] * 4)
    assert computed_pairs(lists, 150).tolist() == [150 * 151 // 2] * 4


def test_fewer_sizes_than_are_forced_keep_the_first_columns_and_the_nearest_offsets():
    q, k = drawn(400)
    lists = vertical_slash_lists(q, k, [(1, 1)] * 4)
    wanted = mask_by_hand(400, range(30), range(50))
    assert torch.equal(pairs_of(lists, 400), wanted.expand(4, -1, -1))


def test_a_key_that_all_rows_look_for_is_a_column():
    q, k = torch.zeros(600, 1, 16), torch.zeros(600, 1, 16)
    q[:, 0, 0], k[201, 0, 0] = 8.0, 8.0
    lists = vertical_slash_lists(q, k, [(31, 100)])
    assert torch.equal(pairs_of(lists, 600)[0], mask_by_hand(600, [*range(30), 201], range(100)))


def test_tokens_a_frame_apart_are_offsets():
    """Offsets count in tokens of the sequence, whatever mRoPE calls their positions."""
    codes = torch.randn(150, 1, 32, generator=torch.Generator().manual_seed(1))
    frames = 4 * codes.repeat(4, 1, 1)
    lists = vertical_slash_lists(frames, frames, [(30, 103)])
    wanted = mask_by_hand(600, range(30), [*range(100), 150, 300, 450])
    assert torch.equal(pairs_of(lists, 600)[0], wanted)


def test_diagonals_cut_by_the_first_key_are_sums_of_the_rows_they_have():
    q, k = drawn(80, heads=1, kv_heads=1)
    vertical, slash = line_scores(q[-64:], k)
    later = torch.ones(80, 80).triu(1).bool()
    attention = (q[:, 0] @ k[:, 0].T / 4).masked_fill(later, -torch.inf).softmax(-1)[-64:]
    wanted = [sum(attention[i - 16, i - o] for i in range(max(16, o), 80)) for o in range(80)]
    torch.testing.assert_close(slash[0], torch.stack(wanted))
    torch.testing.assert_close(vertical[0], attention.sum(0))


def test_heads_in_chunks_are_heads_at_once(monkeypatch):
    q, k = drawn(200)
    sizes = [(40, 101), (31, 120), (30, 100), (90, 107)]
    whole = vertical_slash_lists(q, k, sizes)
    monkeypatch.setattr(module, "SCORES_PER_CHUNK", 1)
    parts = vertical_slash_lists(q, k, sizes)
    assert torch.equal(pairs_of(whole, 200), pairs_of(parts, 200))
