import pytest
import torch
from tiny_models import SPEC, prompt, tiny

from videonsa.models.methods import Attended
from videonsa.models.recorder.patterns import AttentionPattern, Keys, attended_keys
from videonsa.models.recorder.protocol import Recorder, Recorders
from videonsa.ops.block_lists import Trim
from videonsa.ops.block_sparse_reference import attended as attended_by_reference
from videonsa.ops.estimators.vertical_slash import vertical_slash_lists

LENGTH = 2 + 5 * 4 + 4
"""Tokens of `prompt(5)`: text, five frames of four tokens, text."""


class Selections(Recorder):
    """What layer 1 selected."""

    wants_branches = True

    def record(self, layer, q, k, attended):
        if layer == 1:
            self.blocks = attended.result.selected_blocks[0]


def test_dense_attention_fills_every_cell_and_what_is_not_causal_has_none():
    pattern = AttentionPattern(1, num_tokens=LENGTH, cells=6)
    tiny()(**prompt(5), recorder=pattern, method="dense")
    shares = pattern.shares()
    assert torch.all(shares[torch.ones(6, 6).tril().bool()] == 1)
    assert torch.all(shares[torch.ones(6, 6).triu(1).bool()].isnan())


def test_cells_of_one_token_are_the_pairs_of_selected_blocks_and_window():
    spec = SPEC.with_options(num_selected_blocks=2, window_size=3)
    pattern, chosen = AttentionPattern(1, num_tokens=LENGTH, cells=99), Selections()
    tiny(spec=spec)(**prompt(5), recorder=Recorders(pattern, chosen))
    expected = torch.zeros(LENGTH, LENGTH)
    for row in range(LENGTH):
        for key in range(row + 1):
            if not 2 <= row < 22:  # text
                expected[row, key] = 1
            elif key >= 2:
                frame, near = (key - 2) // 4, row - key < 3
                often = [near or frame in chosen.blocks[row, head].tolist() for head in (0, 1)]
                expected[row, key] = sum(often) / 2
    shares = pattern.shares().nan_to_num(0)
    torch.testing.assert_close(shares, expected.double())
    assert ((expected > 0) & (expected < 1)).any()  # the two heads differ


@pytest.mark.parametrize("chunk", [0, 7])
def test_chunks_add_up_and_branches_that_are_off_attend_to_nothing(chunk):
    every = torch.arange(LENGTH)
    pattern = AttentionPattern(0, num_tokens=LENGTH, cells=LENGTH, places=lambda: every)
    spec = SPEC.with_options(branches=("window",), window_size=1)
    tiny(spec=spec)(**prompt(5), recorder=pattern, rows_per_chunk=chunk)
    vision = pattern.shares()[2:22].nan_to_num(0)
    torch.testing.assert_close(vision, torch.eye(LENGTH).double()[2:22])


def test_tokens_that_left_the_prompt_attend_to_nothing_and_nothing_to_them():
    kept = torch.tensor([0, 1, 2, 5, *range(6, 22)])  # 20 tokens of 22 that a longer prompt has
    pattern = AttentionPattern(0, num_tokens=22, cells=22, places=lambda: kept)
    inputs = prompt(4)
    inputs["input_ids"] = inputs["input_ids"][:, :20].contiguous()
    tiny()(**inputs, recorder=pattern, method="dense")
    shares = pattern.shares()
    gone = torch.tensor([3, 4])
    assert torch.all(shares[gone].nan_to_num(0) == 0)
    assert torch.all(shares[:, gone].nan_to_num(0) == 0)
    assert pattern.kept().tolist() == [float(place in kept) for place in range(22)]
    left = shares[kept][:, kept]
    assert torch.all(left[torch.ones(20, 20).tril().bool()] == 1)


@pytest.mark.parametrize("trim", [None, Trim(num_init=5, window=70, num_last=20)])
def test_rows_of_lists_are_those_of_the_reference(trim):
    torch.manual_seed(0)
    length, rows = 300, torch.tensor([0, 1, 63, 64, 130, 255, 256, 299])
    q, k = torch.randn(length, 4, 16), torch.randn(length, 2, 16)
    lists = vertical_slash_lists(q, k, [(35, 60)] * 4)
    found = Attended(q[None], lists=lists, trim=trim)
    keys = Keys(torch.ones(length, dtype=torch.bool), [length])
    masks = list(attended_keys(found, rows, num_rows=length, keys=keys))
    assert len(masks) == 4
    for head, mask in enumerate(masks):
        whole = attended_by_reference(lists, head, 0, 5, num_tokens=length, trim=trim)
        assert torch.equal(mask, whole[rows])
    assert not masks[0].equal(masks[1])
