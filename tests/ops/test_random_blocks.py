"""`NSASpec(selection="random")`: what is drawn, that all agree, and that any cut is equal."""

import pytest
import torch
from nsa_cases import make_inputs, make_spec

from videonsa.errors import UsageError
from videonsa.ops import NSASpec, hybrid_attention, nsa_attention
from videonsa.ops.random_blocks import random_blocks

BLOCKS = torch.arange(100)
"""A row in each block."""


def draw(*, layer=0, rows=BLOCKS, current=BLOCKS, heads=2, **options):
    spec = make_spec(**{"n": 6} | options)
    return random_blocks(current, rows, num_kv_heads=heads, spec=spec, layer=layer)


@pytest.mark.parametrize(("init", "local"), [(0, 0), (1, 2), (2, 3), (0, 5)])
def test_a_row_takes_forced_blocks_and_one_of_each_stratum(init, local):
    selected = draw(num_init_blocks=init, num_local_blocks=local)
    assert selected.dtype == torch.int32
    for current, of_row in enumerate(selected.tolist()):
        for blocks in of_row:
            taken = blocks[: min(6, current + 1)]
            assert taken == sorted(set(taken)), "distinct and ascending"
            assert blocks[len(taken) :] == [-1] * (6 - len(taken))
            forced = {*range(min(init, current)), *range(max(current - local, 0), current + 1)}
            assert forced <= set(taken)
            first, last = min(init, current), max(current - local, min(init, current))
            free, count = sorted(set(taken) - forced), min(6 - init - local - 1, last - first)
            assert len(free) == count
            for i, block in enumerate(free):
                begin, end = (first + x * (last - first) // count for x in (i, i + 1))
                assert begin <= block < end


def test_every_block_of_a_stratum_is_drawn_about_equally_often():
    rows = torch.arange(20_000)
    selected = draw(rows=rows, current=torch.full_like(rows, 50), heads=1)[:, 0]
    counts = selected[:, :5].long().flatten().bincount(minlength=50)
    assert counts.sum() == 5 * 20_000
    # 2,000 expected, a standard deviation of 42.
    assert ((counts - 2000).abs() < 5 * 42).all()


def test_rows_heads_and_layers_draw_their_own():
    one, other = draw(layer=0), draw(layer=1)
    assert (one[50:] != other[50:]).any(-1).all()
    assert (one[50:, 0] != one[50:, 1]).any(-1).all()
    assert (draw(current=torch.full((100,), 99)).diff(dim=0) != 0).any(-1).all()


def test_the_draw_never_changes():
    """Trained models depend on it."""
    selected = draw(rows=torch.tensor([999, 5000]), current=torch.tensor([99, 99]), layer=3)
    assert selected.tolist() == [
        [[15, 28, 46, 73, 93, 99], [8, 34, 43, 59, 91, 99]],
        [[3, 29, 47, 70, 93, 99], [8, 33, 44, 65, 85, 99]],
    ]


@pytest.mark.parametrize("scope", ["token", "block"])
@pytest.mark.parametrize("s", [4, "frame"])
def test_the_reference_selects_what_is_drawn(s, scope):
    frames = (3, 5, 4, 4, 4, 4)
    spec = make_spec(s=s, n=3, selection="random", selection_scope=scope)
    inputs = make_inputs(24, batch=2, heads=4, kv_heads=2)
    options = {"spec": spec, "frame_sizes": frames * 2, "layer": 2}
    found = nsa_attention(*inputs, return_branches=True, **options)
    sizes = torch.tensor(frames if s == "frame" else (4,) * 6)
    current = torch.arange(6).repeat_interleave(sizes)
    drawn = random_blocks(current, torch.arange(24), num_kv_heads=2, spec=spec, layer=2)
    assert torch.equal(found.selected_blocks, drawn.expand(2, -1, -1, -1))
    if scope == "block":
        assert len(drawn.unique(dim=0)) == 6
    given = nsa_attention(*inputs, selected_blocks=drawn.expand(2, -1, -1, -1), **options)
    torch.testing.assert_close(found.output, given)


def test_chunks_and_packed_samples_select_as_one_sequence():
    spec = make_spec(n=3, selection="random")
    q, k, v, gates = make_inputs(40, heads=4, kv_heads=2)
    vision = torch.zeros(1, 40, dtype=torch.bool)
    vision[:, 2:37] = True
    options = {"spec": spec, "layer": 1}
    whole = hybrid_attention(q, k, v, gates, vision, **options)
    for start, stop in ((0, 7), (7, 23), (23, 40)):
        keys = slice(stop)
        rows = (q[:, start:stop], k[:, keys], v[:, keys], gates[:, start:stop], vision[:, keys])
        torch.testing.assert_close(hybrid_attention(*rows, **options), whole[:, start:stop])
    twice = [torch.cat([x, x], dim=1) for x in (q, k, v, gates, vision)]
    cu_seqlens = torch.tensor([0, 40, 80], dtype=torch.int32)
    packed = hybrid_attention(*twice, cu_seqlens_k=cu_seqlens, **options)
    torch.testing.assert_close(packed, torch.cat([whole, whole], dim=1))
    assert not torch.allclose(hybrid_attention(q, k, v, gates, vision, spec=spec), whole)


def test_the_released_preset_has_no_random_selection():
    with pytest.raises(UsageError, match=r"^selection='random' with the released preset: want"):
        NSASpec.released(selection="random")
