"""The highest use of memory."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from videonsa.evals.peak import forget_peak, peak_bytes
cpu = torch.device("cpu")
forget_peak(cpu)
before = peak_bytes(cpu)
large = torch.ones(50_000_000)
with_it = peak_bytes(cpu)
del large
print(with_it - before, peak_bytes(cpu) - before)
forget_peak(cpu)
print(with_it - peak_bytes(cpu))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_a_large_tensor_raises_the_peak_until_it_is_forgotten() -> None:
    """In a process of its own: what other tests held once may hide 200 MB."""
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    differences = [int(word) for word in run.stdout.split()]
    assert len(differences) == 3
    assert min(differences) > 150e6
