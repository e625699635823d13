"""Every method that lets tokens leave, with every method that attends, on the embedded model."""

import re
from pathlib import Path

import pytest
import torch

import videonsa
from videonsa.errors import UsageError
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.methods.pairs import causal_pairs
from videonsa.models.methods.registry import METHODS, has_behind

REDUCTIONS = [name for name, entry in METHODS.items() if has_behind(entry.load())]
ATTENTIONS = [name for name in METHODS if name not in REDUCTIONS]
SMALL = {
    "tri_shape": "tri_shape:n_init=4,n_local=24,n_last=8",
    "minference": "minference:vertical=30,slash=50",
    "flexprefill": "flexprefill:min_budget=1,gamma=0.3,block_size=64",
    "xattention": "xattention:stride=4,threshold=0.2,block_size=64",
}
"""Attention that is sparse in so short a prompt."""
REFUSED: dict[str, str] = {}
"""Combinations that do not run, and why."""
PAGE = Path(__file__).parents[3] / "docs/methods.md"


@pytest.fixture(scope="module")
def qa():
    return videonsa.load("embedded", device="cpu", dtype="float32")


def answered(qa, text):
    """A short answer about a short clip; what the layers hold afterwards."""
    method = qa.model.config.method_of(text)
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (16, 3, 112, 168), dtype=torch.uint8, generator=generator)
    with torch.inference_mode():
        features, kept = qa.model.encode_kept([frames], method=method)
    config, context = qa.model.config, Context(qa.model, method=method)
    pads = [config.video_token_id] * len(features)
    ids = [20, config.vision_start_token_id, *pads, config.vision_end_token_id, *range(40, 60)]
    clip = EncodedVision("video", features, (8, 8, 12), tuple(map(float, range(8))), kept)
    settings = GenerationSettings(max_new_tokens=3)
    passage = context.passage(ids, [clip])
    answer = [token for (token,) in context.answer(passage, settings=settings, stop_ids=set())]
    return method, answer, context.cache


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_it_runs_or_is_refused_with_the_reason(qa, reduction, attention):
    text = f"{reduction}+{SMALL.get(attention, attention)}"
    if (why := REFUSED.get(f"{reduction}+{attention}")) is not None:
        with pytest.raises(UsageError, match=why):
            answered(qa, text)
        return
    method, answer, cache = answered(qa, text)
    assert method.full_name == (reduction if attention == "dense" else f"{reduction}+{attention}")
    assert len(answer) == 3
    held = [int(record.vision_mask.sum()) for record in cache.records]
    assert held == sorted(held, reverse=True)
    assert held[-1] < 192, "some of the 8 x 24 tokens left"
    assert cache.next_position == [2 + 7 * 4 + 1 + 21 + 2], (
        "positions are those of the whole prompt"
    )
    lengths = [layer.get_seq_length() for layer in cache.layers]
    branches = max(len(method.branches), 1)  # of NSA: a key in two of them counts twice
    assert 0 < cache.computed.total() <= branches * sum(map(causal_pairs, lengths))


def test_the_page_shows_what_runs():
    table = re.search(r"\| tokens leave by \|(.*?)\n\n", PAGE.read_text(), re.DOTALL)
    assert table is not None
    heads, _, *lines = (line.strip(" |").split("|") for line in table[0].split("\n") if line)
    shown = {
        f"{name.strip(' `')}+{attention.strip(' `')}": cell.strip()
        for name, *cells in lines
        for attention, cell in zip(heads[1:], cells, strict=True)
    }
    assert shown == {
        f"{reduction}+{attention}": "refused" if f"{reduction}+{attention}" in REFUSED else "runs"
        for reduction in REDUCTIONS
        for attention in ATTENTIONS
    }
