"""Tests in the environment of lmms-eval: its own tasks on fixtures, without a network."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from videonsa.evals.field.fixtures.hub_cache import offline_variables, write_fixtures

HUB = Path(tempfile.mkdtemp(prefix="videonsa-fixtures-"))
# The libraries below lmms-eval read these when they are imported, which the tests do.
os.environ.update(offline_variables(HUB))


def pytest_configure(config: pytest.Config) -> None:
    """What lmms-eval and its libraries warn of is not ours to mend."""
    config.addinivalue_line("filterwarnings", "ignore")


@pytest.fixture(scope="session", autouse=True)
def hub() -> Iterator[Path]:
    """A `HF_HOME` with all fixtures."""
    write_fixtures(HUB)
    yield HUB
    shutil.rmtree(HUB)
