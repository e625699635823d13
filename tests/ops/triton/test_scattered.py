"""Scattered pairs give the same bits in one chunk, in several, and in several passes."""

import pytest
import torch

from videonsa.ops.masks import ascending
from videonsa.ops.triton import lists, scattered
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
    return nsa_forward(*problem, options=OPTIONS, tuning=tuning, keep=()).output


@pytest.fixture(scope="module")
def in_one_chunk(problem):
    return attend(problem)


@pytest.mark.parametrize("chunks_per_pass", [16, 2], ids=["one pass", "several passes"])
def test_chunks_and_passes_do_not_change_the_bits(
    problem, in_one_chunk, chunks_per_pass, monkeypatch
):
    made = []
    original = lists.make_lists

    def make_lists(plan, *arguments, first_chunk):
        original(plan, *arguments, first_chunk=first_chunk)
        made.append((first_chunk, int(plan.tile_pairs.sum())))

    monkeypatch.setattr(scattered, "make_lists", make_lists)
    monkeypatch.setattr(lists, "CHUNKS_PER_PASS", chunks_per_pass)
    assert torch.equal(attend(problem, pairs=10), in_one_chunk)
    last_chunk, num_pairs = made[-1]
    assert num_pairs > 3 * 10, "the pairs do not fill more than a pass of two chunks"
    assert (last_chunk > 0) == (chunks_per_pass == 2)


@pytest.mark.parametrize("min_shared", [1, 4])
def test_sharing_changes_nothing_but_rounding(problem, in_one_chunk, min_shared):
    found = attend(problem, min_shared=min_shared)
    # Each rounds partial outputs, their sum and the product with the gate, of values up to 4.
    assert (found - in_one_chunk).abs().max() < 4 * 4 * torch.finfo(torch.float16).eps
