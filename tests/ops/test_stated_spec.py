"""Specs as files and recipes state them."""

import json

import pytest

from videonsa.errors import ModelError, UsageError
from videonsa.ops.spec import NSASpec
from videonsa.ops.stated_spec import spec_from_dict, spec_to_dict


@pytest.mark.parametrize(
    "spec",
    [
        NSASpec(),
        NSASpec(block_size="frame", num_selected_blocks=4, branches=("selected", "window")),
        NSASpec(branches=()),
        NSASpec(selection="random"),
        NSASpec.released(temporal_ids="truncated"),
    ],
)
def test_spec_survives_json(spec):
    assert spec_from_dict(json.loads(json.dumps(spec_to_dict(spec)))) == spec


def test_a_younger_field_is_stated_only_where_it_is_not_its_default():
    """Configs and records that were written before it stay equal."""
    assert "selection" not in spec_to_dict(NSASpec())
    assert spec_to_dict(NSASpec(selection="random"))["selection"] == "random"


def test_what_is_left_out_is_the_papers():
    assert spec_from_dict({}) == NSASpec()


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"blocks": 3}, r"^nsa has \['blocks'\]: want only \['block_size', "),
        ({"window_size": 0}, "^nsa.window_size=0: want an int from 1 to 16777216$"),
        ({"window_size": 2**24 + 1}, "^nsa.window_size=16777217: want "),
        ({"window_size": True}, "^nsa.window_size=True: want "),
        ({"block_size": "tile"}, "^nsa.block_size='tile': want an int from 1 to 65536 or 'frame'$"),
        ({"block_size": 10**5000}, "^nsa.block_size=a number of too many digits: want "),
        ({"num_init_blocks": -1}, "^nsa.num_init_blocks=-1: want an int from 0 to 4096$"),
        ({"gate_temperature": float("nan")}, "^nsa.gate_temperature=nan: want a number above 0"),
        ({"branches": 5}, "^nsa: branches=5: want a list"),
        ({"head_map": "padded"}, "^nsa: .* are implemented, each as a whole$"),
    ],
)
def test_what_no_spec_has_is_refused_in_one_line(stated, message):
    with pytest.raises(ModelError, match=message):
        spec_from_dict(stated)


def test_messages_name_where_the_fields_stand():
    with pytest.raises(UsageError, match=r"^attention\.window_size=0: want"):
        spec_from_dict({"window_size": 0}, where="attention", error=UsageError)
