"""What the numbers hold for."""

import json

import pytest
import torch

from videonsa.bench import machine as machine_module
from videonsa.bench.machine import comparable, machine, slug

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "folder"),
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")],
)
def test_a_device_name_becomes_a_folder_name(name, folder):
    assert slug(name) == folder


def test_the_versions_and_the_code_are_named():
    found = machine(CPU)
    assert found["torch"] == torch.__version__
    assert found["device"].startswith("cpu")
    assert len(found["sources_sha256"]) == 16
    assert json.loads(json.dumps(found)) == found


def test_outside_a_checkout_the_code_is_still_named(monkeypatch, tmp_path):
    package = tmp_path / "site" / "videonsa"
    (package / "ops").mkdir(parents=True)
    source = package / "ops" / "x.py"
    source.write_text("x = 1\n")
    monkeypatch.setattr(machine_module.videonsa, "__file__", str(package / "__init__.py"))
    first = machine(CPU)
    source.write_text("x = 2\n")
    second = machine(CPU)
    assert first["commit"] is None
    assert first["dirty"] is None
    assert first["sources_sha256"] != second["sources_sha256"]


def test_numbers_of_another_day_or_commit_are_comparable_and_those_of_other_code_not():
    one = {"device": "a", "sources_sha256": "1", "date": "2026-01-01", "commit": "c"}
    assert comparable(one, one | {"date": "2026-01-02", "commit": "d"})
    assert not comparable(one, one | {"sources_sha256": "2"})


def test_a_program_that_is_missing_or_fails_gives_nothing():
    assert machine_module._output("no-such-program-here") is None
    assert machine_module._output("false") is None
    assert machine_module._output("echo", "text") == "text"
    assert machine_module._output("printf", r"one GPU\nanother") == "one GPU"
