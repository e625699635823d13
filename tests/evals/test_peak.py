"""The highest use of memory."""

import sys

import pytest
import torch

from videonsa.evals.peak import forget_peak, peak_bytes

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_large_tensor_raises_the_peak_until_it_is_forgotten() -> None:
    forget_peak(CPU)
    before = peak_bytes(CPU)
    large = torch.ones(50_000_000)
    with_it = peak_bytes(CPU)
    del large
    assert with_it - before > 150e6
    assert peak_bytes(CPU) - before > 150e6
    forget_peak(CPU)
    assert with_it - peak_bytes(CPU) > 150e6
