"""The block-sparse kernel with real dtypes and lengths; it never waits for the device."""

import pytest
import torch
from block_list_cases import on, random_lists
from kernel_cases import no_waiting

from videonsa.ops.block_lists import Trim
from videonsa.ops.block_sparse import (
    BlockLists,
    block_sparse_attention,
    check_lists,
    from_mask,
)
from videonsa.ops.block_sparse_reference import attended, block_sparse_reference

pytestmark = pytest.mark.gpu

BF16, HALF = torch.bfloat16, torch.float16
CASES = {
    "7B, blocks of 128": {"tiles": (128, 128)},
    "7B, blocks of 64, float16": {"tiles": (64, 64), "dtype": HALF},
    "7B, vertical-slash": {"tiles": (64, 64), "columns": 700},
    "3B, columns beside tiles of 128": {"tiles": (128, 64), "columns": 90, "group": 8},
    "wide key tiles": {"tiles": (64, 128), "columns": 90},
    "dim 64": {"tiles": (128, 128), "dim": 64, "group": 1, "columns": 70},
    "dim 80, sixteen heads": {"tiles": (128, 128), "dim": 80, "group": 16, "columns": 70},
    "dim 256, float16": {"tiles": (128, 128), "dim": 256, "group": 3, "dtype": HALF},
    "dim 256, vertical-slash": {"tiles": (64, 64), "dim": 256, "group": 3, "columns": 300},
    "trimmed": {"tiles": (128, 128), "trim": Trim(100, 900, 77), "columns": 70},
}


def make(num_tokens, *, group=7, kv_heads=2, dim=128, dtype=BF16, seed=0):
    generator = torch.Generator("cuda").manual_seed(seed)
    heads = (group * kv_heads, kv_heads, kv_heads)
    how = {"generator": generator, "device": "cuda", "dtype": dtype}
    return [torch.randn(num_tokens, n, dim, **how) for n in heads]


def relative_error(found, wanted):
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("num_tokens", [1000, 3001])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_results_are_those_of_the_reference(case, num_tokens):
    case = dict(case)
    (query_tile, key_tile), columns = case.pop("tiles"), case.pop("columns", 0)
    trim = case.pop("trim", None)
    q, k, v = make(num_tokens, **case)
    sizes = {"query_tile": query_tile, "key_tile": key_tile, "columns": columns}
    lists = on("cuda", random_lists(num_tokens, heads=q.shape[1], room=3, **sizes))
    how = {"backend": "triton", "return_lse": True}
    how |= {} if trim is None else trim._asdict()
    out, lse = block_sparse_attention(q, k, v, lists, **how)
    wide = [x.double() for x in (q, k, v)]
    wanted, wanted_lse = block_sparse_reference(*wide, lists, trim=trim, scale=q.shape[2] ** -0.5)
    assert relative_error(out, wanted) < 2 * torch.finfo(q.dtype).eps
    torch.testing.assert_close(lse, wanted_lse, atol=2e-3, rtol=0)
    for found in block_sparse_attention(q, k, v, lists, **how):
        assert torch.equal(found, out if found.dim() == 3 else lse)


def test_the_host_never_waits_for_the_device():
    q, k, v = make(2000)
    lists = on("cuda", random_lists(2000, heads=14, columns=50))
    mask = torch.rand(14, 16, 16, device="cuda") < 0.5
    block_sparse_attention(q, k, v, lists, backend="triton")
    with no_waiting():
        block_sparse_attention(q, k, v, lists, backend="triton")
        block_sparse_attention(q, k, v, from_mask(mask, 128), backend="triton")


def test_a_full_mask_is_dense_attention():
    q, k, v = make(4097)
    lists = from_mask(torch.ones(14, 33, 33, dtype=torch.bool, device="cuda"), 128)
    found = block_sparse_attention(q, k, v, lists, backend="triton")
    dense = torch.nn.functional.scaled_dot_product_attention(
        *(x.float().transpose(0, 1)[None] for x in (q, k, v)), is_causal=True, enable_gqa=True
    )
    assert relative_error(found, dense[0].transpose(0, 1)) < 2 * torch.finfo(BF16).eps


def test_a_million_tokens_outgrow_offsets_of_32_bits():
    num_tokens = 2**20
    q, k, v = make(num_tokens, kv_heads=4)
    first = torch.arange(0, num_tokens, 128, dtype=torch.int32, device="cuda")
    num_tiles = len(first)
    tiles = torch.stack([(first // 3 - 1).clamp(min=0), first], 1)  # the first two overlap
    tiles[:2] = torch.tensor([[0, 0], [0, 128]])
    starts = torch.arange(num_tiles + 1, dtype=torch.int32, device="cuda") * 2
    starts[0] = 1
    heads = torch.arange(28, dtype=torch.int32, device="cuda")[:, None]
    lists = BlockLists(
        query_tile=128,
        key_tile=128,
        row_starts=starts + heads * 2 * num_tiles,
        tiles=tiles.flatten().repeat(28),
    )
    check_lists(lists, num_tokens)
    found = block_sparse_attention(q, k, v, lists, backend="triton")
    for head, tile in ((0, 0), (13, num_tiles // 2), (27, num_tiles - 1)):
        rows = slice(tile * 128, (tile + 1) * 128)
        mask = attended(lists, head, tile, tile + 1, num_tokens=num_tokens)
        scores = q[rows, head].double() @ k[:, head // 7].double().T / 128**0.5
        wanted = scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v[:, head // 7].double()
        assert relative_error(found[rows, head], wanted) < 2 * torch.finfo(BF16).eps
