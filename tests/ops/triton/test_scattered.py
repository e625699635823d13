"""Scattered pairs give the same bits in one chunk, in several, and in several passes of chunks."""

import pytest
import torch

from videonsa.ops.masks import ascending
from videonsa.ops.triton import lists
from videonsa.ops.triton.forward import Options, nsa_forward
from videonsa.ops.triton.index import uniform_index
from videonsa.ops.triton.tuning import tuning_for

NUM_ROWS, GROUP, DIM, N, SIZE = 32, 16, 16, 4, 4
PAIR_BYTES = GROUP * (DIM * 2 + 4)
OPTIONS = Options(
    num_selected=N, window_size=1, num_init=0, num_local=0, per_block=False, branches=("selected",)
)


@pytest.fixture(scope="module")
def problem(device):
    """q, k, v, gates, index and a selection that rows hardly share."""
    generator = torch.Generator().manual_seed(0)

    def normal(heads, last):
        return torch.randn(NUM_ROWS, heads, last, generator=generator).to(device, torch.float16)

    index = uniform_index(
        SIZE, num_samples=1, num_rows=NUM_ROWS, first_row=0, num_keys=NUM_ROWS, device=device
    )
    own = index.row_block.cpu()[:, None, None]
    chosen = (torch.rand(NUM_ROWS, 1, N, generator=generator) * (own + 1)).int()
    inputs = (normal(GROUP, DIM), normal(1, DIM), normal(1, DIM), normal(GROUP, 3))
    return (*inputs, index, ascending(chosen).to(device))


def attend(problem, *, pairs=2**20, min_shared=33):
    """The gated selected branch; chunks of about `pairs` pairs."""
    tuning = tuning_for(SIZE, device=problem[0].device)
    tuning = tuning._replace(partial_bytes=pairs * PAIR_BYTES, min_shared=min_shared)
    return nsa_forward(*problem, options=OPTIONS, tuning=tuning, return_branches=False).output


def test_chunks_do_not_change_the_bits(problem):
    assert torch.equal(attend(problem, pairs=30), attend(problem))


def test_passes_do_not_change_the_bits(problem, monkeypatch):
    monkeypatch.setattr(lists, "CHUNKS_PER_PASS", 3)
    num_chunks = NUM_ROWS * N // 16
    assert num_chunks > 3
    assert torch.equal(attend(problem, pairs=16), attend(problem))


@pytest.mark.parametrize("min_shared", [1, 4])
def test_sharing_changes_nothing_but_rounding(problem, min_shared):
    found, scattered = attend(problem, min_shared=min_shared), attend(problem)
    # Each rounds partial outputs, their sum and the product with the gate, of values up to 4.
    assert (found - scattered).abs().max() < 4 * 4 * torch.finfo(torch.float16).eps
