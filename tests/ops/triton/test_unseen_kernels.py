"""The kernels: values that are not finite do not reach what may not see them."""

import pytest
import torch
from unseen import Stream

from videonsa.ops import NSASpec

pytestmark = pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # NumPy
NAN, INF = torch.nan, torch.inf
EACH = (("k",), ("v",), ("q",), ("grad",), ("q", "k", "v"))
SMALL = {"num_selected_blocks": 2, "window_size": 12}
LAYER_7B = {"group": 7, "kv_heads": 4, "dim": 128}


@pytest.fixture(scope="module")
def small(device):
    """Two packed samples in blocks of frames: tiles of keys reach beyond blocks and samples."""
    frames = (10, 7, 9, 8, 11)
    spec = NSASpec(block_size="frame", **SMALL)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Stream(
        (17, 23), spec=spec, frame_sizes=frames, backend="triton", device=device, dtype=dtype
    )


@pytest.mark.parametrize(
    ("names", "token", "value"),
    [(("k",), 25, NAN), (("v",), 16, INF), (("grad",), 20, NAN), (("q", "k", "v"), 20, INF)],
)
def test_rows_and_keys_keep_their_bits_whatever_an_unseen_token_holds(small, names, token, value):
    small.assert_unseen(names, token, value)


GPU_STREAMS = {
    "causal": ((4096,), {}, LAYER_7B),
    "packed": ((1500, 1277, 1319), {}, LAYER_7B),
    "3B": ((1000, 3096), {}, {"group": 8, "kv_heads": 2, "dim": 128}),
    "packed frames of 60": ((1500, 1260, 1336), {"frames": 60}, LAYER_7B),
    "packed frames of 150": ((1500, 1250, 1346), {"frames": 150}, LAYER_7B),
    "dim 80": ((1500, 2596), {}, {"group": 16, "kv_heads": 1, "dim": 80}),
    "blocks of 16": ((1500, 2596), {"block_size": 16}, LAYER_7B),
}


@pytest.fixture(scope="module", params=GPU_STREAMS.values(), ids=GPU_STREAMS)
def long(request, device):
    """4,096 tokens in bfloat16."""
    lengths, options, heads = request.param
    if size := options.get("frames"):
        frames = [size for n in lengths for _ in range(-(-n // size))]
        spec, options = NSASpec(block_size="frame"), {"frame_sizes": frames}
    else:
        spec, options = NSASpec(**options), {}
    arguments = {**heads, **options, "backend": "triton", "device": device}
    return Stream(lengths, spec=spec, dtype=torch.bfloat16, **arguments)


@pytest.mark.gpu
@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("token", [1499, 1500, 1535, 2047, 2500])
@pytest.mark.parametrize("names", EACH, ids="+".join)
def test_4096_rows_keep_their_bits_whatever_an_unseen_token_holds(long, names, token, value):
    long.assert_unseen(names, token, value)
