"""What cannot be is refused where the model is loaded."""

import pytest
from conversations import start


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"enforce_eager": False}, "want --enforce-eager"),
        ({"video_pruning_rate": 0.5}, "want no --video-pruning-rate"),
        ({"kv_offloading_size": 1.0}, "want no --kv-transfer-config"),
        ({"additional_config": {"videonsa_method": "fastv"}}, "tokens that leave"),
        ({"additional_config": {"videonsa_method": "tri_shape"}}, "--no-enable-chunked-prefill"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, line):
    with pytest.raises(Exception, match=line):
        start(**options)
