"""Memory of the estimators of blocks, counted with fake tensors at the shape of a 7B layer."""

import pytest
import torch
from allocations import allocations
from torch._subclasses.fake_tensor import FakeTensorMode

from videonsa.ops.estimators.flexprefill import flexprefill_lists
from videonsa.ops.estimators.pooling import estimate_bytes
from videonsa.ops.estimators.xattention import xattention_lists


@pytest.mark.parametrize("num_tokens", [2**14, 2**16], ids=["16K", "64K"])
@pytest.mark.parametrize("estimator", [flexprefill_lists, xattention_lists])
def test_an_estimate_holds_no_more_than_plans_count(estimator, num_tokens):
    with FakeTensorMode():
        q, k = (torch.empty(num_tokens, heads, 128, dtype=torch.bfloat16) for heads in (28, 4))
        with allocations() as counted:
            estimator(q, k)
    planned = estimate_bytes(num_tokens, 28, 128)
    assert planned / 8 < counted.peak <= planned
