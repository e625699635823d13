"""The kernels run on a CUDA device where there is one, and in Triton's interpreter where not."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
# The interpreter reads scalars out of arrays of one element, which numpy discourages.
OF_THE_INTERPRETER = (
    "ignore:Conversion of an array with ndim > 0 to a scalar is deprecated:DeprecationWarning"
)

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["test_*.py"]

# Triton decides when it decorates a kernel: this must come before any kernel module is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings(OF_THE_INTERPRETER))
            if item.get_closest_marker("gpu") and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where kernels run. On the CPU they must have been imported as interpreted kernels."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    from triton.runtime.interpreter import InterpretedFunction

    from videonsa.ops.triton.pool import _pool_kernel

    assert isinstance(_pool_kernel, InterpretedFunction), (
        "kernels were imported before tests/ops/triton/conftest.py set TRITON_INTERPRET"
    )
    return torch.device("cpu")
