"""What cannot be is refused where the model is loaded."""

import pytest
from conversations import start


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"enforce_eager": False}, "want --enforce-eager"),
        ({"additional_config": {"videonsa_method": "fastv"}}, "tokens that leave"),
        ({"additional_config": {"videonsa_method": "tri_shape"}}, "--no-enable-chunked-prefill"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, line):
    with pytest.raises(Exception, match=line):
        start(**options)
