"""`NSASpec` refuses what is not implemented."""

import math

import pytest

from videonsa.ops import NSASpec


def test_default_is_the_paper():
    spec = NSASpec()
    assert spec == NSASpec.paper()
    assert (spec.block_size, spec.num_selected_blocks, spec.window_size) == (64, 32, 256)
    assert spec.attention_keys() == 32 * 64 + 256


def test_frame_blocks_count_keys_by_the_parts_of_a_frame():
    spec = NSASpec(block_size="frame", num_selected_blocks=3, window_size=10)
    assert spec.attention_keys(54) == 3 * 54 + 10
    assert spec.attention_keys(200) == 3 * 100 + 10
    for frame_size in (None, 0, -54, 54.0):
        with pytest.raises(ValueError, match=f"frame_size={frame_size}"):
            spec.attention_keys(frame_size)


def test_branches_may_come_as_a_list():
    assert NSASpec(branches=["window", "selected"]).branches == ("window", "selected")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block_size": 0}, "block_size=0"),
        ({"block_size": "frames"}, "block_size='frames'"),
        ({"block_size": 64.0}, "block_size=64.0"),
        ({"num_selected_blocks": True}, "num_selected_blocks=True"),
        ({"window_size": 0}, "window_size=0"),
        ({"num_init_blocks": -1}, "num_init_blocks=-1"),
        ({"num_selected_blocks": 3, "num_init_blocks": 1, "num_local_blocks": 2}, "= 4 forced"),
        ({"gate_temperature": 0.0}, "gate_temperature=0.0"),
        ({"branches": ("window", "dense")}, "subset"),
        ({"branches": ("window", "window")}, "subset"),
        ({"branches": None}, "branches=None"),
        ({"branches": "window"}, "branches='window': want a list"),
        ({"branches": [["window"]]}, "subset"),
        ({"block_size": 10**30}, "block_size=1000"),
        ({"block_size": None}, "block_size=None"),
        ({"num_selected_blocks": 10**12}, "want an int from 1 to 65536"),
        ({"window_size": 2**31}, "window_size=2147483648"),
        ({"window_size": "9"}, "window_size='9'"),
        ({"gate_temperature": math.inf}, "want a finite number above 0"),
        ({"gate_temperature": math.nan}, "gate_temperature=nan"),
        ({"gate_temperature": -1}, "gate_temperature=-1"),
        ({"gate_temperature": "0.3"}, "gate_temperature='0.3'"),
        ({"gate_temperature": None}, "gate_temperature=None"),
        ({"gate_temperature": True}, "gate_temperature=True"),
        ({"force_current_block": 1}, "force_current_block=1"),
        ({"pool_partial_block": None}, "pool_partial_block=None"),
        ({"stream": ["vision"]}, "stream="),
        ({"selection_scope": "frame"}, "selection_scope='frame'"),
        ({"temporal_ids": "float"}, "temporal_ids='float'"),
        ({"tie_order": "bitonic"}, "tie_order of the published code"),
        ({"head_map": "padded"}, "head_map of the published code"),
        ({"force_current_block": False}, "force_current_block of the published code"),
        ({"compressed_mask": "current_and_later"}, "want 'past_complete'"),
    ],
)
def test_value_outside_the_domain_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NSASpec(**fields)


@pytest.mark.parametrize(
    "fields", [{"block_size": 32}, {"num_selected_blocks": 33}, {"importance": "probability"}]
)
def test_released_preset_stays_whole(fields):
    with pytest.raises(ValueError, match=r"released|published"):
        NSASpec.released(**fields)


@pytest.mark.parametrize("mask", ["past_complete", "current_and_later", "past_and_current"])
def test_released_preset_has_all_three_compressed_masks(mask):
    assert NSASpec.released(compressed_mask=mask).compressed_mask == mask
