"""How many blocks neighbouring tokens select together."""

import pytest
import torch
from tiny_models import prompt, tiny

from videonsa.models.cache import VideoNSACache
from videonsa.models.methods import NSA
from videonsa.models.recorder import unions as unions_module
from videonsa.models.recorder.protocol import Recorder, Recorders
from videonsa.models.recorder.unions import SelectionUnions, mean_union, union_bounds
from videonsa.ops.spec import NSASpec


def counted(selected, rows):
    """The mean union, with Python sets."""
    num_samples, num_rows, num_heads, _ = selected.shape
    sizes = [
        len({x for x in selected[b, t : t + rows, h].flatten().tolist() if x >= 0})
        for b in range(num_samples)
        for t in range(0, num_rows - rows + 1, rows)
        for h in range(num_heads)
    ]
    return sum(sizes) / len(sizes)


@pytest.mark.parametrize("chunk", [1, 2**24])
@pytest.mark.parametrize(("num_rows", "rows"), [(16, 16), (50, 16), (7, 3)])
def test_the_mean_union_is_what_sets_count(monkeypatch, chunk, num_rows, rows):
    monkeypatch.setattr(unions_module, "ENTRIES_PER_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    selected = torch.randint(-1, 9, (2, num_rows, 3, 4), generator=generator, dtype=torch.int32)
    assert mean_union(selected, rows=rows) == pytest.approx(counted(selected, rows))


def test_rows_without_any_block_count_as_none():
    assert mean_union(torch.full((1, 16, 2, 4), -1)) == 0


def test_fewer_rows_than_a_tile_are_refused():
    with pytest.raises(ValueError, match="15 rows: want at least 16"):
        mean_union(torch.zeros(1, 15, 1, 1, dtype=torch.int32))


def test_unions_of_chunks_of_whole_tiles_are_those_of_one_go():
    model, inputs = (
        tiny(spec=NSASpec(block_size=4, num_selected_blocks=3, window_size=6)),
        prompt(16),
    )
    inputs["input_ids"] = inputs["input_ids"][:, 1:]  # the video begins at token 1
    found = []
    for rows in (17, 0):  # text, then tiles of 16
        recorder = SelectionUnions()
        with torch.no_grad():
            model(**inputs, past_key_values=VideoNSACache(), recorder=recorder, rows_per_chunk=rows)
        found.append(recorder.unions)
    assert len(found[0]) == 2
    assert min(found[0]) > 1
    assert found[0][0] == pytest.approx(found[1][0], rel=0.2)


def test_vision_tokens_alone_are_counted():
    recorder, model, inputs = SelectionUnions(), tiny(), prompt(6)
    with torch.no_grad():
        model(**inputs, recorder=recorder, method=NSA(NSASpec(block_size=2, num_selected_blocks=1)))
    assert all(1 <= union <= 8 for union in recorder.unions)
    dense = SelectionUnions()
    model(**inputs, recorder=dense, method="dense")
    assert dense.unions == []


def test_sizes_overlaps_and_bounds_are_what_sets_count():
    spec = NSASpec(block_size=4, num_selected_blocks=3, window_size=6)
    recorder, kept = SelectionUnions(), []

    class Keeps(Recorder):
        wants_branches = True

        def record(self, layer, q, k, attended):
            kept.append(attended.result.selected_blocks[0, 2:66].tolist())

    with torch.no_grad():
        tiny(spec=spec)(**prompt(16), recorder=Recorders(recorder, Keeps()))
    rows = [[{x for x in head if x >= 0} for head in row] for row in kept[0]]
    sizes = [
        len(set().union(*(rows[t + i][h] for i in range(16))))
        for t in (0, 16, 32, 48)
        for h in (0, 1)
    ]
    assert recorder.sizes[0].tolist() == [sizes.count(u) for u in range(49)]
    assert recorder.unions[0] == pytest.approx(sum(sizes) / 8)
    pairs = [(rows[t][h], rows[t - 1][h]) for t in range(1, 64) for h in (0, 1)]
    shared = sum(len(a & b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
    assert recorder.overlaps[0] == pytest.approx(shared)
    bounds = recorder.bounds
    assert bounds.least <= recorder.unions[0] <= bounds.chance + 1
    assert bounds.union(bounds.disorder(5.0)) == pytest.approx(5.0)


def test_bounds_are_those_of_rows_that_agree_and_of_rows_that_draw():
    current = torch.arange(320) // 10
    alike = torch.stack([torch.zeros(320), torch.ones(320), current], 1).int()
    generator = torch.Generator().manual_seed(0)
    drawn = [
        torch.stack([*(torch.randperm(int(c), generator=generator)[:2]), c]) for c in current[160:]
    ]
    bounds = union_bounds(current[160:], num_selected=3)
    assert mean_union(alike[None, 160:, None]) == bounds.least
    drawn = torch.stack(drawn)[None, :, None]
    assert mean_union(drawn) == pytest.approx(bounds.chance, rel=0.05)
