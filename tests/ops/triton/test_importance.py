"""Importance and the two-level ranking, where a whole stream would be too long."""

import pytest
import torch

from videonsa.ops import masks
from videonsa.ops.triton.importance import MAX_RANKED, importance, score_buffers, top_blocks
from videonsa.ops.triton.index import Tiles
from videonsa.ops.triton.tuning import tuning_for

BEGIN = 5000
"""First block of the sample among the blocks of all."""


def rank(values, end, current, *, n, num_init=0, num_local=0, device):
    """The kernels' choice `[R, H, n]` among blocks of importance `[R, H, C]`, counted from 0."""
    num_rows, num_heads, num_blocks = values.shape
    scores = score_buffers(
        num_rows, num_heads, max_blocks=num_blocks, num_selected=n, device=device
    )
    # No candidate of any row: what the kernel of the importance leaves unwritten.
    seen = torch.arange(num_blocks, device=device) < end[:, None, None]
    scores.importance.copy_(values.masked_fill(~seen, torch.nan))
    if scores.group > 1:
        padded = torch.nn.functional.pad(
            values.masked_fill(~seen, -1), (0, -num_blocks % scores.group), value=-1
        )
        scores.highest.copy_(padded.unflatten(-1, (-1, scores.group)).amax(-1))
        scores.groups.fill_(2**30)
    selected = torch.full((num_rows, num_heads, n), 2**30, dtype=torch.int32, device=device)
    tiles = Tiles(None, 1, num_rows, num_rows)
    top_blocks(
        scores,
        selected,
        tiles,
        range(1),
        (torch.full_like(end, BEGIN), end + BEGIN, current + BEGIN),
        num_init=num_init,
        num_local=num_local,
    )
    return torch.where(selected >= 0, selected - BEGIN, -1)


def wanted_rank(values, end, current, *, n, num_init=0, num_local=0):
    num_blocks = values.shape[-1]
    candidates = torch.arange(num_blocks, device=values.device) < end[:, None]
    taken = masks.forced(current, num_blocks, num_init=num_init, num_local=num_local)
    return masks.ascending(masks.top_blocks(values, candidates[:, None], taken[:, None], n))


LEVELS = {"all equal": 1, "three values": 3, "few ties": 10**6}


@pytest.mark.parametrize(
    ("num_blocks", "n", "forced"),
    [(40, 5, {}), (700, 1, {}), (700, 8, {"num_init": 2, "num_local": 3}), (600, 64, {})],
    ids=str,
)
@pytest.mark.parametrize("levels", LEVELS.values(), ids=LEVELS)
def test_highest_blocks_are_ranked_with_ties_to_the_lower_index(
    num_blocks, n, forced, levels, device
):
    generator = torch.Generator().manual_seed(num_blocks + n)
    values = torch.randint(0, levels, (8, 1, num_blocks), generator=generator) / levels
    current = torch.randint(0, num_blocks, (8,), generator=generator, dtype=torch.int32)
    current[:4] = torch.tensor([0, 1, num_blocks // 2, num_blocks - 1])
    # The current block itself is a candidate where the row ends it.
    end = current + torch.randint(0, 2, (8,), generator=generator, dtype=torch.int32)
    values, end, current = (x.to(device) for x in (values, end, current))
    found = rank(values, end, current, n=n, **forced, device=device)
    assert torch.equal(found, wanted_rank(values, end, current, n=n, **forced))


def test_blocks_are_ranked_by_groups_where_they_are_many(device):
    def buffers(num_blocks):
        return score_buffers(1, 1, max_blocks=num_blocks, num_selected=4, device=device)

    assert buffers(MAX_RANKED).group == 1
    assert buffers(MAX_RANKED + 1).group > 1


@pytest.mark.parametrize("num_blocks", [45, MAX_RANKED + 40])
def test_importance_is_the_probability_summed_over_heads(num_blocks, device):
    row_end = torch.linspace(0, num_blocks, 40).int().to(device)
    inputs, wanted, seen = probabilities(row_end, num_blocks)
    out = score_buffers(64, 2, max_blocks=num_blocks, num_selected=4, device=device)
    write_importance(inputs, row_end, out, sum_rows=False)
    found = out.importance[:40]
    assert (found - wanted).abs()[seen[:, None].expand_as(found)].max() < 2e-6
    if out.group > 1:
        fill = (0, -num_blocks % out.group)
        padded = torch.nn.functional.pad(found.masked_fill(~seen[:, None], -1), fill, value=-1)
        highest = padded.unflatten(-1, (-1, out.group)).amax(-1)
        assert torch.equal(out.highest[:40][highest >= 0], highest[highest >= 0])


def test_importance_of_a_block_of_rows_is_the_sum_over_them(device):
    row_end = torch.tensor([20] * 32 + [45] * 8, dtype=torch.int32, device=device)
    inputs, wanted, _ = probabilities(row_end, 45)
    out = score_buffers(2, 2, max_blocks=45, num_selected=4, device=device)
    write_importance(inputs, row_end, out, sum_rows=True)
    for tile, (rows, end) in enumerate(((slice(0, 32), 20), (slice(32, 40), 45))):
        total = wanted[rows, :, :end].sum(0).float()
        torch.testing.assert_close(out.importance[tile, :, :end], total, rtol=1e-5, atol=1e-6)


def probabilities(row_end, num_blocks):
    """Random q, k_cmp and their LSE; importance `[R, H, C]` in float64; the blocks rows see."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(len(row_end), 6, 16, generator=generator).to(row_end.device, torch.float16)
    k_cmp = torch.randn(num_blocks, 2, 16, generator=generator).to(row_end.device, torch.float16)
    seen = torch.arange(num_blocks, device=row_end.device) < row_end[:, None]
    scores = torch.einsum("rhgd,chd->hgrc", q.double().unflatten(1, (2, 3)), k_cmp.double()) / 4
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(-1).flatten(0, 1).T.float().contiguous()
    return (q, k_cmp, lse), scores.softmax(-1).nan_to_num(0).sum(1).transpose(0, 1), seen


def write_importance(inputs, row_end, out, *, sum_rows):
    """Two tiles of 32 rows, into buffers that hold NaN."""
    out.importance.fill_(torch.nan)
    importance(
        *inputs,
        (torch.zeros_like(row_end), row_end),
        Tiles(None, 2, 32, len(row_end)),
        range(2),
        out,
        sum_rows=sum_rows,
        config=tuning_for(16, device=row_end.device).importance._replace(block_m=32),
    )
