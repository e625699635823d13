"""The search of head patterns: each candidate's mass, and heads that are made for one of them."""

import pytest
import torch
from tiny_models import tiny

from videonsa.errors import UsageError
from videonsa.models.recorder import head_patterns as module
from videonsa.models.recorder.head_patterns import PatternSearch, best_sizes


@pytest.fixture
def small(monkeypatch):
    """Candidates that differ in 300 tokens."""
    monkeypatch.setattr(module, "VERTICAL_SLASH", ((30, 40), (60, 31)))
    monkeypatch.setattr(module, "A_SHAPE", (8, 35))


def by_hand(q, k, *, first_row):
    """The mass that each candidate keeps, with masks of all pairs."""
    num_tokens = len(k)
    i, j = torch.arange(num_tokens)[:, None], torch.arange(num_tokens)
    scores = (q @ k.T / q.shape[1] ** 0.5).masked_fill(j > i, -torch.inf)
    attention = scores.softmax(-1).double()
    vertical = attention[-64:].sum(0)
    slash = torch.stack([attention.diagonal(-o)[-64:].sum() for o in range(num_tokens)])
    for o in range(num_tokens):  # of the last 64 rows, also where the diagonal is short
        rows = range(max(num_tokens - 64, o), num_tokens)
        slash[o] = sum(attention[row, row - o] for row in rows)
    vertical[:30], slash[:30] = 9e9, 9e9
    masks = [(j < 8) | (i - j <= 35)]
    for columns, offsets in ((30, 40), (60, 31)):
        is_column = torch.isin(j, vertical.topk(columns).indices)
        is_offset = torch.isin(i - j, slash.topk(offsets).indices)
        masks.append(is_column | is_offset)
    blocks = -(-num_tokens // 32)
    means = torch.zeros(2, blocks * 32, q.shape[1])
    means[0, :num_tokens], means[1, :num_tokens] = q, k
    means = means.view(2, blocks, 32, -1).mean(2)
    block_scores = (means[0] @ means[1].T).masked_fill(
        ~torch.ones(blocks, blocks).tril().bool(), -9e9
    )
    kept = torch.zeros(blocks, blocks, dtype=torch.bool)
    for row in range(blocks):
        kept[row, block_scores[row].topk(blocks // 8).indices] = True
    masks.append(kept[i // 32, j // 32])
    return [float((attention * mask)[first_row:].sum()) for mask in masks]


@pytest.mark.parametrize("seed", range(4))
def test_the_candidate_that_keeps_most_wins(small, seed, monkeypatch):
    monkeypatch.setattr(module, "SCORES_PER_CHUNK", 300 * 17)
    generator = torch.Generator().manual_seed(seed)
    q, k = 2 * torch.randn(2, 300, 16, generator=generator)
    masses = by_hand(q, k, first_row=100)
    wanted = ((8, 35), (30, 40), (60, 31), (1000, 6096))[masses.index(max(masses))]
    assert best_sizes(q, k, first_row=100) == wanted


def test_heads_made_for_a_pattern_get_it(small, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_SHARE", 4)
    num_tokens = 400
    generator = torch.Generator().manual_seed(0)
    topics = 3 * torch.randn(4, 32, generator=generator)[torch.arange(num_tokens) // 32 % 4]
    assert best_sizes(topics, topics, first_row=200) == (1000, 6096)  # blocks of one topic
    q, k = torch.zeros(2, num_tokens, 32)
    q[:, 0], k[40::12, 0] = 9.0, 9.0
    assert best_sizes(q, k, first_row=200) == (60, 31)  # thirty columns
    period = 3 * torch.randn(39, 32, generator=generator)
    frames = period[torch.arange(num_tokens) % 39]
    assert best_sizes(frames, frames, first_row=200) == (30, 40)  # offsets a frame apart


def test_all_layers_are_searched_in_one_pass_and_later_steps_are_not(small):
    model, search = tiny(attention="dense"), PatternSearch(first_row=100)
    with torch.inference_mode():
        cache = model(
            torch.arange(140)[None] % 80 + 20, use_cache=True, recorder=search
        ).past_key_values
        found = search.sizes
        model(torch.tensor([[30]]), past_key_values=cache, recorder=search)
    assert [len(layer) for layer in found] == [4, 4]
    assert search.sizes == found


def test_a_prompt_that_is_too_short_or_in_parts_is_refused():
    model = tiny(attention="dense")
    ids = torch.arange(40)[None] + 20
    with pytest.raises(UsageError, match="a prompt of 40 tokens: rows are scored from 2500 on"):
        model(ids, recorder=PatternSearch())
    with pytest.raises(UsageError, match="in parts"):
        model(ids, recorder=PatternSearch(first_row=5), rows_per_chunk=32)
