"""What the tests of the kernels share."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def memory_for_other_processes() -> Iterator[None]:
    """Give back what PyTorch keeps: `videonsa bench attention` runs these tests side by side."""
    yield
    torch.cuda.empty_cache()
