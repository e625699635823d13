"""The reference: values that are not finite do not reach what may not see them."""

import pytest
import torch
from unseen import Stream

from videonsa.ops import NSASpec

NAN, INF = torch.nan, torch.inf
BLOCKS = NSASpec(block_size=8, num_selected_blocks=2, window_size=9)
STREAMS = {
    "causal": Stream((40,), spec=BLOCKS, backend="reference"),
    "packed": Stream((17, 23), kv_heads=2, spec=BLOCKS, backend="reference"),
    "packed frames": Stream(
        (17, 23),
        spec=BLOCKS.with_options(block_size="frame"),
        frame_sizes=(10, 7, 9, 8, 11),
        backend="reference",
    ),
}


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("token", [16, 17, 20, 39])
@pytest.mark.parametrize("names", [("k",), ("v",), ("q",), ("grad",), ("q", "k", "v")])
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
def test_rows_and_keys_keep_their_bits_whatever_an_unseen_token_holds(stream, names, token, value):
    stream.assert_unseen(names, token, value)
