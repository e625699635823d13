"""FlexPrefill's blocks against the paper's algorithms in plain loops, which share no code."""

import math

import pytest
import torch
from listed_blocks import blocks_of, dense

from videonsa.ops.block_lists import computed_pairs
from videonsa.ops.block_sparse import block_sparse_attention
from videonsa.ops.estimators.flexprefill import flexprefill_lists, jensen_shannon

B = 64
SHARP, FLAT = 3.0, 0.05
"""How far apart the scores of a head are: a flat one is what means of blocks predict."""


def inputs(num_tokens, *, sharp=(SHARP, FLAT, SHARP, FLAT), kv_heads=2, dim=16):
    """q `[T, HQ, D]` and k `[T, H, D]`; neighbouring keys are alike, every 100th is sought."""
    generator = torch.Generator().manual_seed(num_tokens)
    k = torch.randn(num_tokens, kv_heads, dim, generator=generator)
    k += torch.randn(num_tokens // 20 + 1, kv_heads, dim, generator=generator).repeat_interleave(
        20, 0
    )[:num_tokens]
    q = torch.randn(num_tokens, len(sharp), dim, generator=generator)
    q += 0.5 * k.repeat_interleave(len(sharp) // kv_heads, 1)  # a diagonal
    q += k[::100].mean(0).repeat_interleave(len(sharp) // kv_heads, 0)  # columns
    return q * torch.tensor(sharp)[:, None], k


def softmax(scores):
    highest = max(scores)
    weights = [math.exp(x - highest) for x in scores]
    return [x / sum(weights) for x in weights]


def smallest_set(mass, target):
    """Keys of a dict whose highest masses reach a target."""
    kept, total = set(), 0.0
    for key in sorted(mass, key=lambda key: -mass[key]):
        if total >= target:
            break
        kept.add(key)
        total += mass[key]
    return kept


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def in_blocks(x, block):
    return [x[first : first + block] for first in range(0, len(x), block)]


def distance(p, q):
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += sum(x * math.log(x / m) / 2 for x in (a, b) if x > 0)
    return math.sqrt(max(total, 0))


def naive_blocks(q, k, *, gamma, tau, min_budget, max_budget, block):
    """Of one head: the set of (row, column), and whether it is query-aware; q and k `[T, D]`."""
    num_tokens, dim = q.shape
    blocks = math.ceil(num_tokens / block)
    triangle = {(r, c) for r in range(blocks) for c in range(r + 1)}
    fewest = math.ceil(min_budget / block)
    if num_tokens <= max(2 * block, fewest * block):
        return triangle, False
    most = blocks if max_budget is None else min(math.ceil(max_budget / block), blocks)
    scale = dim**-0.5
    scores = (q[-block:].double() @ k.double().T * scale).tolist()
    vertical, slash = dict.fromkeys(range(num_tokens), 0.0), dict.fromkeys(range(num_tokens), 0.0)
    for row, of_row in enumerate(scores):
        i = num_tokens - block + row
        for j, x in enumerate(softmax(of_row[: i + 1])):
            vertical[j] += x / block
            slash[i - j] += x / block
    columns, diagonals = [0.0] * blocks, [0.0] * blocks
    for j in range(num_tokens):
        columns[j // block] += vertical[j]
        # The block of the key that the last query meets on this diagonal, seen from the last row.
        diagonals[blocks - 1 - (num_tokens - 1 - j) // block] += slash[j]
    mean_k = [mean(x) for x in in_blocks(k.double().tolist(), block)]
    mean_q = [mean(x) for x in in_blocks(q.double().tolist(), block)]
    probe = mean(q[-block:].double().tolist())

    def product(a, b):
        return scale * sum(x * y for x, y in zip(a, b, strict=True))

    aware = distance(softmax([product(probe, x) for x in mean_k]), columns) < tau
    found = set()
    for mass, of_block in ((vertical, columns), (slash, diagonals)):
        count = len(smallest_set(mass, gamma)) // block + 1
        count = fewest if aware else min(max(count, fewest), most)
        rest = sorted(range(1, blocks), key=lambda x, of_block=of_block: -of_block[x])
        kept = {0, *rest[: count - 1]}
        found |= {(r, c) for r, c in triangle if (c if of_block is columns else r - c) in kept}
    if aware:
        mass = {}
        for r in range(blocks):
            for c, x in enumerate(softmax([product(mean_q[r], x) for x in mean_k[: r + 1]])):
                mass[r, c] = x
        found |= smallest_set(mass, gamma * blocks)
    return found, aware


DEFAULTS = {"gamma": 0.8, "tau": 0.1, "min_budget": 1, "max_budget": None}


def found(q, k, *, block=B, **options):
    """The set of (row, column) of each head."""
    return blocks_of(flexprefill_lists(q, k, block_size=block, **DEFAULTS | options))


def wanted(q, k, *, block=B, **options):
    """The same from the loops, and which heads are query-aware."""
    group = q.shape[1] // k.shape[1]
    heads = [
        naive_blocks(q[:, h], k[:, h // group], block=block, **DEFAULTS | options)
        for h in range(q.shape[1])
    ]
    return [blocks for blocks, _ in heads], [aware for _, aware in heads]


LENGTHS = {
    "whole blocks": (8 * B, 0.1),
    "a block that is not full": (7 * B + 50, 0.15),
    "one token more than whole blocks": (7 * B + 1, 0.25),
    "one token more than is dense": (2 * B + 1, 0.4),
}
"""With a tau that tells sharp heads from flat ones: the shorter the last block, the further is an
attention to means, which takes it for a whole one."""


@pytest.mark.parametrize(("num_tokens", "tau"), LENGTHS.values(), ids=LENGTHS)
def test_blocks_are_those_of_the_papers_algorithms(num_tokens, tau):
    q, k = inputs(num_tokens)
    blocks, aware = wanted(q, k, tau=tau)
    assert aware == [False, True, False, True]
    assert found(q, k, tau=tau) == blocks


@pytest.mark.parametrize(
    "options",
    [
        {"min_budget": 2 * B + 1},
        {"gamma": 0.95, "max_budget": 2 * B},
        {"min_budget": 3 * B, "max_budget": 2 * B},
        {"tau": 0.0},
        {"tau": 1.0, "gamma": 0.5},
    ],
    ids=str,
)
def test_budgets_and_thresholds_are_the_papers(options):
    q, k = inputs(8 * B, sharp=(SHARP, FLAT))
    assert found(q, k, **options) == wanted(q, k, **options)[0]


def test_blocks_of_128_tokens_and_groups_of_seven_heads():
    q, k = inputs(2 * 128 + 77, sharp=(SHARP,) * 4 + (FLAT,) * 3, kv_heads=1, dim=4)
    assert found(q, k, block=128) == wanted(q, k, block=128)[0]


def test_keys_that_reach_gamma_are_counted_in_blocks_of_the_size_asked_for():
    # The mass lies on 100 keys: one block of 64 and part of another, where 128 would be one block.
    q = torch.ones(10 * B, 1, 8)
    k = torch.zeros(10 * B, 1, 8)
    k[3 * B + 10 : 3 * B + 110] = 10
    blocks = found(q, k, tau=0.0, gamma=0.9)
    assert blocks == wanted(q, k, tau=0.0, gamma=0.9)[0]
    assert {(9, 0), (9, 3)} <= blocks[0]


def test_chunks_of_heads_change_nothing(monkeypatch):
    q, k = inputs(8 * B)
    whole = found(q, k)
    monkeypatch.setattr("videonsa.ops.estimators.flexprefill.CHUNK_BYTES", 1)
    assert found(q, k) == whole


@pytest.mark.parametrize("num_tokens", [5, B, 2 * B])
def test_up_to_two_blocks_attention_is_dense(num_tokens):
    q, k = inputs(num_tokens)
    pairs = computed_pairs(flexprefill_lists(q, k, min_budget=1, block_size=B), num_tokens)
    assert pairs.tolist() == [num_tokens * (num_tokens + 1) // 2] * 4


def test_up_to_the_smallest_budget_attention_is_dense_whatever_the_largest():
    q, k = inputs(4 * B)
    options = {"min_budget": 3 * B + 1, "max_budget": B}
    assert found(q, k, **options) == wanted(q, k, **options)[0]
    assert len(found(q, k, **options)[0]) == 10


def test_every_row_has_the_first_column_and_its_own_block():
    q, k = inputs(8 * B)
    for blocks in found(q, k, gamma=1e-9):
        assert blocks >= {(row, column) for row in range(8) for column in (0, row)}


def test_the_mean_of_a_block_that_is_not_full_is_of_the_tokens_it_has():
    # With zeros counted in, the last row of means would be nearly flat and choose other blocks.
    q, k = torch.zeros(7 * B + 3, 1, 16), torch.zeros(7 * B + 3, 1, 16)
    k[2 * B : 3 * B, 0, 0] = 1.0
    q[-3:, 0, 0] = 12.0
    options = {"tau": 2.0, "gamma": 0.3}
    blocks, aware = wanted(q, k, **options)
    assert aware == [True]
    assert found(q, k, **options) == blocks
    assert (7, 2) in blocks[0]


def test_divergence_takes_0_log_0_as_0():
    p = torch.tensor([0.5, 0.5, 0.0, 0.0])
    q = torch.tensor([0.5, 0.0, 0.5, 0.0])
    torch.testing.assert_close(jensen_shannon(p, q), torch.tensor(0.5 * math.log(2)))
    assert jensen_shannon(p, p) == 0


def test_a_head_is_query_aware_where_softmax_is_0_in_float32():
    # exp(-200): the plain formula gives NaN, which is not below tau.
    q = torch.full((6 * B, 1, 16), 10.0)
    k = torch.zeros(6 * B, 1, 16)
    k[: 3 * B] = -5.0
    blocks, aware = wanted(q, k, tau=0.3)
    assert aware == [True]
    assert found(q, k, tau=0.3) == blocks


@pytest.mark.parametrize("tau", [0.0, 2.0], ids=["vertical-slash", "query-aware"])
def test_gamma_1_is_dense_attention(tau):
    # Sharp enough that float32 gives most blocks no mass at all.
    q, k = inputs(6 * B + 11, sharp=(30.0, FLAT, SHARP, FLAT))
    v = torch.randn(k.shape, generator=torch.Generator().manual_seed(1))
    lists = flexprefill_lists(q, k, gamma=1.0, tau=tau, min_budget=1, block_size=B)
    assert computed_pairs(lists, len(q)).tolist() == [len(q) * (len(q) + 1) // 2] * 4
    torch.testing.assert_close(block_sparse_attention(q, k, v, lists), dense(q, k, v))
