import json

import pytest
from tiny_models import config_fields

from videonsa.errors import ModelError
from videonsa.models.config import VideoNSAConfig
from videonsa.ops.spec import NSASpec


def test_config_survives_the_disk(tmp_path):
    spec = NSASpec(block_size=16, branches=("window",))
    config = VideoNSAConfig(nsa=spec, gate_init="released", **config_fields())
    config.save_pretrained(tmp_path)
    read = VideoNSAConfig.from_pretrained(tmp_path)
    assert read.to_dict() == config.to_dict()
    assert read.nsa_spec == spec
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "videonsa"


def test_default_is_the_paper():
    config = VideoNSAConfig(**config_fields())
    assert (config.nsa_spec, config.attention, config.gate_init) == (NSASpec(), "nsa", "half")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"attention": "sparse"}, "attention='sparse'"),
        ({"gate_init": "zero"}, "gate_init='zero'"),
        ({"nsa": {"blocks": 3}}, r"has \['blocks'\]"),
        ({"nsa": {"window_size": 0}}, "window_size=0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ModelError, match=message):
        VideoNSAConfig(**config_fields() | fields)
