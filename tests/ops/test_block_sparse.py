"""Block lists and what they mean, against pairs written out one by one."""

import pytest
import torch
from block_list_cases import pairs_of, random_lists, written_out
from torch._subclasses.fake_tensor import FakeTensorMode

from videonsa.errors import UsageError
from videonsa.ops import block_sparse_reference
from videonsa.ops.block_sparse import (
    BlockLists,
    block_sparse_attention,
    check_lists,
    computed_pairs,
    from_mask,
)
from videonsa.ops.block_sparse_reference import attended

TILES = [(64, 64), (128, 64), (64, 128)]
LENGTHS = [1, 50, 64, 203]


def make(num_tokens, *, group=2, kv_heads=1, dim=8, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    heads = (group * kv_heads, kv_heads, kv_heads)
    return [torch.randn(num_tokens, n, dim, generator=generator).to(dtype) for n in heads]


def assert_equal_to(found, wanted):
    for x, y in zip(found, wanted, strict=True):
        torch.testing.assert_close(x.double(), y, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("columns", [0, 1, 20])
@pytest.mark.parametrize("num_tokens", LENGTHS)
@pytest.mark.parametrize(("query_tile", "key_tile"), TILES)
def test_rows_attend_to_their_tiles_and_to_columns_once(query_tile, key_tile, num_tokens, columns):
    columns = min(columns, num_tokens)
    sizes = {"query_tile": query_tile, "key_tile": key_tile, "columns": columns}
    lists = random_lists(num_tokens, heads=2, room=3, **sizes)
    check_lists(lists, num_tokens)
    q, k, v = make(num_tokens)
    found = block_sparse_attention(q, k, v, lists, return_lse=True)
    mask = pairs_of(lists, num_tokens)
    assert_equal_to(found, written_out(q, k, v, mask))
    assert computed_pairs(lists, num_tokens).tolist() == mask.sum((1, 2)).tolist()


def test_pairs_of_columns_are_counted_in_chunks_of_tiles(monkeypatch):
    lists = random_lists(203, heads=3, columns=20, room=3)
    wanted = computed_pairs(lists, 203)
    monkeypatch.setattr("videonsa.ops.block_lists.ENTRIES_PER_CHUNK", 7)
    assert torch.equal(computed_pairs(lists, 203), wanted)


def test_a_column_counts_before_between_and_behind_tiles_and_not_inside_them():
    lists = BlockLists(
        query_tile=64,
        key_tile=64,
        row_starts=torch.tensor([[0, 1, 2, 4]], dtype=torch.int32),
        tiles=torch.tensor([0, 64, 20, 120], dtype=torch.int32),
        columns=torch.tensor([3, 30, 90, 130, 187], dtype=torch.int32),
        column_starts=torch.tensor([0, 5], dtype=torch.int32),
    )
    found = attended(lists, 0, 0, 3, num_tokens=192)
    assert found[150].nonzero().flatten().tolist() == [3, *range(20, 84), 90, *range(120, 151)]
    assert found[191, 187] and not found[186, 187]
    assert computed_pairs(lists, 192).tolist() == [found.sum()]


def test_pairs_of_two_wide_tiles_that_reach_behind_the_first_row():
    lists = BlockLists(
        query_tile=64,
        key_tile=128,
        row_starts=torch.tensor([[0, 1, 2, 4]], dtype=torch.int32),
        tiles=torch.tensor([0, 0, 30, 158], dtype=torch.int32),
    )
    assert computed_pairs(lists, 190).tolist() == [pairs_of(lists, 190).sum()]


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("group", [1, 3])
def test_query_heads_read_the_kv_head_of_their_group(group, kv_heads):
    lists = random_lists(100, heads=group * kv_heads, columns=5)
    q, k, v = make(100, group=group, kv_heads=kv_heads)
    found = block_sparse_attention(q, k, v, lists, return_lse=True)
    assert_equal_to(found, written_out(q, k, v, pairs_of(lists, 100)))


@pytest.mark.parametrize(("num_init", "window", "num_last"), [(0, 1, 0), (5, 40, 0), (10, 64, 20)])
def test_a_window_trims_tiles_to_the_token(num_init, window, num_last):
    lists = random_lists(150, heads=1, density=1, columns=9)
    q, k, v = make(150, group=1)
    how = {"num_init": num_init, "window": window, "num_last": num_last}
    found = block_sparse_attention(q, k, v, lists, return_lse=True, **how)

    def keeps(i, j):
        return (j < num_init) | (i - j < window) | (i >= 150 - num_last)

    mask = pairs_of(lists, 150, keeps=keeps)
    assert not torch.equal(mask, pairs_of(lists, 150))
    assert_equal_to(found, written_out(q, k, v, mask))


def test_a_row_without_keys_gives_zero():
    empty = torch.zeros(1, 3, dtype=torch.int32)
    lists = BlockLists(query_tile=64, key_tile=64, row_starts=empty, tiles=empty[0, :0])
    q, k, v = make(100, group=1)
    out, lse = block_sparse_attention(q, k, v, lists, return_lse=True)
    assert not out.any() and (lse == -torch.inf).all()
    assert computed_pairs(lists, 100).tolist() == [0]


def test_the_scale_is_that_of_the_scores():
    lists = random_lists(70, heads=2)
    q, k, v = make(70)
    found = block_sparse_attention(q, k, v, lists, return_lse=True, scale=0.7)
    assert_equal_to(found, written_out(q, k, v, pairs_of(lists, 70), scale=0.7))


def test_chunks_of_query_tiles_change_nothing(monkeypatch):
    lists = random_lists(203, heads=2, columns=7)
    q, k, v = make(203)
    wanted = block_sparse_attention(q, k, v, lists, return_lse=True)
    monkeypatch.setattr(block_sparse_reference, "SCORES_PER_CHUNK", 203 * 64 * 3)
    found = block_sparse_attention(q, k, v, lists, return_lse=True)
    assert_equal_to(found, [x.double() for x in wanted])


@pytest.mark.parametrize("per_chunk", [1, 50, 10**6])
@pytest.mark.parametrize("num_blocks", [1, 4])
def test_a_mask_is_the_blocks_up_to_the_diagonal(num_blocks, per_chunk, monkeypatch):
    monkeypatch.setattr("videonsa.ops.block_lists.ENTRIES_PER_CHUNK", per_chunk)
    mask = torch.rand(3, num_blocks, num_blocks, generator=torch.Generator().manual_seed(0)) < 0.5
    num_tokens = 64 * num_blocks - 7
    lists = from_mask(mask, 64)
    check_lists(lists, num_tokens)
    blocks = torch.arange(num_tokens) // 64
    wanted = mask[:, blocks][:, :, blocks].tril()
    assert torch.equal(pairs_of(lists, num_tokens), wanted)


def test_more_blocks_than_lists_can_count_are_refused():
    with FakeTensorMode(), pytest.raises(UsageError, match=r"^3758325760 key tiles .* 2147483647"):
        from_mask(torch.empty(28, 2**14, 2**14, dtype=torch.bool), 64)


def test_a_full_mask_is_dense_attention():
    q, k, v = make(203)
    lists = from_mask(torch.ones(2, 2, 2, dtype=torch.bool), 128)
    found = block_sparse_attention(q, k, v, lists, return_lse=True)
    assert_equal_to(found, written_out(q, k, v, torch.ones(203, 203, dtype=torch.bool).tril()))
    assert computed_pairs(lists, 203).tolist() == [203 * 204 // 2] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_result_has_the_dtype_of_the_queries_and_is_rounded_once(dtype):
    lists = random_lists(100, heads=2)
    q, k, v = make(100, dtype=dtype)
    out, lse = block_sparse_attention(q, k, v, lists, return_lse=True)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    wanted, _ = written_out(q, k, v, pairs_of(lists, 100))
    noise = torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), wanted, atol=noise, rtol=noise)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(1, 70, 2, 8)}, r"want \[T, HQ, D\] and twice"),
        ({"q": torch.zeros(69, 2, 8)}, "the same T and D"),
        ({"q": torch.zeros(70, 2, 8).half()}, "torch.float16, torch.float32"),
        ({"q": torch.zeros(70, 1, 8)}, "2 heads and 2 tiles of 64 rows"),
        ({"lists": random_lists(200, heads=2, query_tile=128)}, "2 tiles of 128 rows.*2 and 1"),
        ({"num_init": 4}, "num_init is 4, window None"),
        ({"num_last": -1, "window": 3}, "num_last is -1"),
        ({"window": 0}, "window is 0"),
        ({"lists": None}, "lists is None"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    q, k, v = make(70)
    given = {"q": q, "k": k, "v": v, "lists": random_lists(70, heads=2)} | change
    with pytest.raises(ValueError, match=message) as caught:
        block_sparse_attention(**given)
    assert "\n" not in str(caught.value)


def test_entries_that_no_row_claims_are_not_looked_at():
    lists = BlockLists(
        query_tile=64,
        key_tile=64,
        row_starts=torch.tensor([[1, 2, 3], [5, 5, 6]], dtype=torch.int32),
        tiles=torch.tensor([0, 0, 64, -5, 999, 64, 7], dtype=torch.int32),
    )
    check_lists(lists, 99)
    assert computed_pairs(lists, 99).tolist() == [64 * 65 // 2 + 35 * 36 // 2, 35 * 36 // 2]


LISTS = {
    "row_starts": torch.tensor([[0, 1, 3]], dtype=torch.int32),
    "tiles": torch.tensor([0, 0, 64], dtype=torch.int32),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query_tile": 32}, "32 and 64: want 64 or 128"),
        ({"tiles": torch.zeros(3)}, "tiles is torch.float32"),
        ({"row_starts": torch.zeros(3, dtype=torch.int32)}, "int32 of 2 dimensions"),
        ({"columns": torch.zeros(3, dtype=torch.int32)}, "go together"),
        (
            {name: torch.zeros(3, dtype=torch.int32) for name in ("columns", "column_starts")},
            "column_starts has 3 entries: want 2",
        ),
    ],
)
def test_lists_of_wrong_sizes_are_refused(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        BlockLists(**({"query_tile": 64, "key_tile": 64} | LISTS | change))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tiles": [0, 0, 63]}, "ascend without overlapping"),
        ({"tiles": [64, 0, 64]}, "to the last row of their query tile"),
        ({"tiles": [0, -1, 64]}, "from 0"),
        ({"row_starts": [[0, 2, 1]]}, "row_starts"),
        ({"row_starts": [[0, 1, 4]]}, "row_starts"),
        ({"row_starts": [[0, 1]]}, "1 query tiles: want 2"),
        ({"columns": [5, 7], "column_starts": [0, 1]}, "from 0 to 2"),
        ({"columns": [5, 5], "column_starts": [0, 2]}, "ascend within a head"),
        ({"columns": [5, 99], "column_starts": [0, 2]}, "below 99"),
    ],
)
def test_lists_that_break_the_rules_are_told(change, message):
    change = {name: torch.tensor(x, dtype=torch.int32) for name, x in change.items()}
    lists = BlockLists(query_tile=64, key_tile=64, **(LISTS | change))
    with pytest.raises(ValueError, match=message):
        check_lists(lists, 99)
