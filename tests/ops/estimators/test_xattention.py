"""XAttention's blocks against the paper's formulas in plain loops, which share no code."""

import math

import pytest
import torch
from listed_blocks import blocks_of, dense

from videonsa.ops.block_lists import computed_pairs
from videonsa.ops.block_sparse import block_sparse_attention
from videonsa.ops.estimators.xattention import xattention_lists

S, B = 16, 64


def inputs(num_tokens, *, heads=4, kv_heads=2, dim=16, sharp=2.0):
    """q `[T, HQ, D]` and k `[T, H, D]` whose scores vary enough that few blocks have most mass."""
    generator = torch.Generator().manual_seed(num_tokens)
    k = torch.randn(num_tokens, kv_heads, dim, generator=generator)
    q = torch.randn(num_tokens, heads, dim, generator=generator)
    common = torch.randn(num_tokens // S + 1, kv_heads, dim, generator=generator)
    k += sharp * common.repeat_interleave(S, 0)[:num_tokens]  # tiles that differ
    return q * sharp, k


def naive_mass(q, k, stride, block):
    """W of one head: nested lists, rows and columns of blocks; q and k `[T, D]`."""
    num_tokens, dim = q.shape
    scores = (q.double() @ k.double().T).tolist()
    groups = math.ceil(num_tokens / stride)
    blocks = math.ceil(num_tokens / block)
    mass = [[0.0] * blocks for _ in range(blocks)]
    for a in range(groups):
        tiles = []
        for b in range(a + 1):
            total = 0.0
            for t in range(stride):
                i, j = stride * a + stride - 1 - t, stride * b + t
                if i < num_tokens and j < num_tokens:
                    total += scores[i][j]
            tiles.append(total / (math.sqrt(dim) * stride))
        highest = max(tiles)
        weights = [math.exp(x - highest) for x in tiles]
        for b, weight in enumerate(weights):
            mass[stride * a // block][stride * b // block] += weight / sum(weights)
    return mass


def naive_blocks(q, k, *, stride, threshold, block):
    """The set of (row, column) of one head."""
    found = set()
    for p, row in enumerate(naive_mass(q, k, stride, block)):
        kept = {0, p}
        for c in sorted(range(p + 1), key=lambda c: -row[c]):
            if sum(row[x] for x in kept) >= threshold * sum(row):
                break
            kept.add(c)
        found |= {(p, c) for c in kept}
    return found


def wanted(q, k, **options):
    group = q.shape[1] // k.shape[1]
    return [naive_blocks(q[:, h], k[:, h // group], **options) for h in range(q.shape[1])]


def found(q, k, *, block=B, **options):
    return blocks_of(xattention_lists(q, k, block_size=block, **options))


LENGTHS = {
    "whole blocks": 6 * B,
    "a block that is not full": 5 * B + 48,
    "a tile that is not full": 5 * B + 23,
    "one token more": 4 * B + 1,
    "shorter than a block": 37,
    "shorter than a tile": 5,
}


@pytest.mark.parametrize("num_tokens", LENGTHS.values(), ids=LENGTHS)
def test_blocks_are_those_of_the_papers_formulas(num_tokens):
    q, k = inputs(num_tokens)
    assert found(q, k, stride=S, threshold=0.8) == wanted(q, k, stride=S, threshold=0.8, block=B)


@pytest.mark.parametrize("stride", [4, 64])
def test_blocks_follow_the_stride(stride):
    q, k = inputs(5 * B + 9)
    options = {"stride": stride, "threshold": 0.7}
    assert found(q, k, **options) == wanted(q, k, **options, block=B)


def test_blocks_of_128_tokens_and_groups_of_seven_heads():
    q, k = inputs(3 * 128 + 50, heads=7, kv_heads=1)
    options = {"stride": S, "threshold": 0.9, "block": 128}
    assert found(q, k, **options) == wanted(q, k, **options)


@pytest.mark.parametrize("num_tokens", [8 * B, 8 * B - 5], ids=["whole chunks", "not whole"])
def test_chunks_change_nothing(num_tokens, monkeypatch):
    q, k = inputs(num_tokens)
    whole = found(q, k, threshold=0.8)
    assert 0 < len(whole[0]) < 36, "some blocks are left out"
    for rows in (1, 2, 3):
        monkeypatch.setattr("videonsa.ops.estimators.xattention.ROWS_PER_CHUNK", rows)
        assert found(q, k, threshold=0.8) == whole


def test_every_row_has_the_first_column_and_its_own_block():
    q, k = inputs(6 * B)
    for blocks in found(q, k, threshold=1e-9):
        assert blocks == {(row, column) for row in range(6) for column in {0, row}}


def test_first_and_own_blocks_count_before_the_highest():
    # All mass of a row lies in its own block, so nothing else is needed.
    q = torch.zeros(4 * B, 1, 16)
    k = torch.zeros(4 * B, 1, 16)
    for block in range(4):
        q[block * B : (block + 1) * B, 0, block] = k[block * B : (block + 1) * B, 0, block] = 20.0
    assert found(q, k, threshold=0.9)[0] == {(r, c) for r in range(4) for c in {0, r}}


def test_zeros_behind_the_last_token_take_no_mass():
    # Real tiles score far below 0, where a padded tile scores: it would take all mass.
    num_tokens = 4 * B + 8
    q, k = torch.ones(num_tokens, 1, 16) * 6, torch.ones(num_tokens, 1, 16) * -6
    k[:, 0] += torch.linspace(-0.2, 0, num_tokens)[:, None]
    options = {"stride": S, "threshold": 0.6}
    assert found(q, k, **options) == wanted(q, k, **options, block=B)


def test_threshold_1_is_dense_attention():
    # Sharp enough that float32 gives most blocks no mass at all.
    q, k = inputs(5 * B + 23, sharp=8.0)
    v = torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
    lists = xattention_lists(q, k, threshold=1.0, block_size=B)
    assert computed_pairs(lists, len(q)).tolist() == [len(q) * (len(q) + 1) // 2] * 4
    torch.testing.assert_close(block_sparse_attention(q, k, v, lists), dense(q, k, v))
