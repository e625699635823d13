import numpy as np
import pytest

from videonsa.models.methods import NSA
from videonsa.models.shape import published_shape
from videonsa.ops.spec import NSASpec
from videonsa.train.flops import attended_pairs, step_flops

SPEC = NSASpec(block_size=4, num_selected_blocks=2, window_size=3)
MASK = np.array([False] * 2 + [True] * 20 + [False] * 3)


def test_dense_rows_see_all_before_them():
    assert attended_pairs(MASK, None, tokens_per_frame=4) == 25 * 26 // 2


def test_pairs_of_nsa_are_those_of_each_row_counted_one_by_one():
    text = 1 + 2 + 23 + 24 + 25
    vision = sum(t // 4 + min(t, 8) + min(t, 3) for t in range(1, 21))
    assert attended_pairs(MASK, SPEC, tokens_per_frame=9) == text + vision


def test_branches_that_are_off_cost_nothing_and_frames_are_blocks():
    spec = SPEC.with_options(branches=("selected",), block_size="frame")
    text = 1 + 2 + 23 + 24 + 25
    assert attended_pairs(MASK, spec, tokens_per_frame=5) == text + sum(
        min(t, 10) for t in range(1, 21)
    )


@pytest.mark.parametrize(
    "options",
    [{"selection": "random"}, {"branches": ("window",), "window_size": 11}],
    ids=["random selection", "window alone"],
)
def test_controls_of_nsa_attend_to_as_many_keys(options):
    spec = SPEC.with_options(**options)
    assert NSA(spec).attended_keys(9) == NSA(SPEC).attended_keys(9) == 11
    found, wanted = (attended_pairs(MASK, x, tokens_per_frame=9) for x in (spec, SPEC))
    compressed = sum(t // 4 for t in range(1, 21))
    # Where blocks and window reach beyond the first token, both count what is there.
    short = sum(min(t, 8) + min(t, 3) - min(t, 11) for t in range(1, 21))
    assert found == wanted - (compressed + short) * ("branches" in options)


def test_a_step_of_text_costs_six_operations_a_weight_and_token():
    shape = published_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    mask = np.zeros(1, dtype=bool)
    flops = step_flops(shape, None, vision_masks=[mask] * 10, frame_patches=[], num_labels=10)
    embeddings = shape.vocab_size * shape.hidden_size
    weights = shape.num_parameters - shape.vision.num_parameters - embeddings
    assert flops == pytest.approx(6 * 10 * weights, rel=1e-3)


def test_the_tower_costs_six_operations_a_weight_and_patch():
    shape = published_shape("Qwen/Qwen2.5-VL-7B-Instruct")
    flops = step_flops(shape, None, vision_masks=[], frame_patches=[4] * 10, num_labels=0)
    vision = shape.vision
    merged = vision.hidden_size * vision.merge_size**2
    merger = merged * merged + merged * vision.out_hidden_size
    expected = 40 * (vision.num_parameters - merger) + 10 * merger
    assert flops == pytest.approx(6 * expected, rel=1e-2)
