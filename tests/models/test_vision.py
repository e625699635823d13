import pytest
import torch
from tiny_models import qwen, tiny

from videonsa.errors import ModelError, UsageError
from videonsa.models import features
from videonsa.models.vision import frame_chunks, plan_vision

GRIDS = [(3, 6, 10), (2, 6, 10), (1, 4, 4), (1, 2, 2), (4, 8, 8), (1, 2, 14)]


@pytest.fixture(scope="module")
def towers():
    reference, model = qwen(), tiny(attention="dense")
    model.load_state_dict(reference.state_dict())
    return reference.model.visual, model


@pytest.mark.parametrize("grids", [GRIDS, GRIDS[4:5] * 3, GRIDS[:1], GRIDS[3:4]])
def test_features_equal_transformers(towers, grids):
    tower, model = towers
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), 1176)
    theirs = tower(pixels, grid_thw=torch.tensor(grids)).pooler_output
    torch.testing.assert_close(model.encode_vision(pixels, grids), theirs, atol=1e-5, rtol=1e-5)


def test_tower_called_without_a_plan_gives_the_same(towers):
    _, model = towers
    pixels = torch.randn(sum(t * h * w for t, h, w in GRIDS), 1176)
    alone = model.model.visual(pixels, grid_thw=torch.tensor(GRIDS)).pooler_output
    torch.testing.assert_close(alone, model.encode_vision(pixels, GRIDS), atol=1e-6, rtol=1e-6)


def test_gradients_equal_transformers(towers):
    tower, model = towers
    grids = GRIDS[:3]
    pixels = torch.randn(sum(t * h * w for t, h, w in grids), 1176)
    weight = tower.blocks[0].attn.qkv.weight
    (theirs,) = torch.autograd.grad(
        tower(pixels, grid_thw=torch.tensor(grids)).pooler_output.pow(2).sum(), weight
    )
    weight = model.model.visual.blocks[0].attn.qkv.weight
    (ours,) = torch.autograd.grad(model.encode_vision(pixels, grids).pow(2).sum(), weight)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("max_patches", [1, 60, 70, 200])
def test_features_do_not_depend_on_how_frames_are_cut(towers, max_patches, monkeypatch):
    _, model = towers
    pixels = torch.randn(sum(t * h * w for t, h, w in GRIDS), 1176)
    whole = model.encode_vision(pixels, GRIDS)
    monkeypatch.setattr(features, "PATCHES_PER_CHUNK", max_patches)
    torch.testing.assert_close(model.encode_vision(pixels, GRIDS), whole, atol=1e-6, rtol=1e-6)


def test_chunks_hold_every_frame_once_and_no_more_than_fits():
    chunks = list(frame_chunks(GRIDS, 130))
    assert chunks == [
        [(2, 6, 10)],
        [(1, 6, 10), (1, 6, 10)],
        [(1, 6, 10), (1, 4, 4), (1, 2, 2)],
        [(2, 8, 8)],
        [(2, 8, 8)],
        [(1, 2, 14)],
    ]
    assert list(frame_chunks(GRIDS[:1], 1)) == [[(1, 6, 10)]] * 3


def test_plan_covers_every_patch_once():
    plan = plan_vision(GRIDS, merge_size=2, window_tokens=2)
    patches = sum(t * h * w for t, h, w in GRIDS)
    assert plan.window_index.sort().values.tolist() == list(range(patches // 4))
    assert (
        plan.window_lengths.sum() == plan.frame_lengths.sum() == len(plan.position_ids) == patches
    )


def test_grid_that_merging_does_not_divide_is_refused():
    with pytest.raises(ModelError, match="3 x 4 patches"):
        plan_vision([(1, 3, 4)], merge_size=2, window_tokens=2)


def test_pixels_that_do_not_fit_the_grids_are_refused(towers):
    with pytest.raises(UsageError, match="15 patches of pixels but the 1 grids describe 16"):
        towers[1].encode_vision(torch.zeros(15, 1176), [(1, 4, 4)])


def test_adapters_in_the_mlp_are_used(towers):
    """What stands in place of a Linear computes in its place."""

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    _, model = towers
    mlp = model.model.visual.blocks[0].mlp
    rows = torch.randn(5, mlp.hidden_size)
    wanted = mlp.down_proj(mlp.act_fn(mlp.gate_proj(rows)) * 2 * mlp.up_proj(rows))
    torch.testing.assert_close(
        mlp(rows), mlp.down_proj(mlp.act_fn(mlp.gate_proj(rows)) * mlp.up_proj(rows))
    )
    plain, mlp.up_proj.__class__ = mlp.up_proj.__class__, Doubled
    try:
        torch.testing.assert_close(mlp(rows), wanted)
    finally:
        mlp.up_proj.__class__ = plain
