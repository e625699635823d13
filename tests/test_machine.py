"""What the numbers hold for."""

import json

import pytest
import torch

from videonsa import machine
from videonsa.machine import (
    checkout,
    cpu_model,
    device_name,
    evaluation_facts,
    measurement_facts,
    package_versions,
    slug,
)

CPU = torch.device("cpu")


@pytest.fixture
def installed(monkeypatch, tmp_path):
    """A package that is in no checkout, and a source file of it."""
    source = tmp_path / "site" / "videonsa" / "ops" / "x.py"
    source.parent.mkdir(parents=True)
    source.write_text("x = 1\n")
    monkeypatch.setattr(
        machine.videonsa, "__file__", str(tmp_path / "site" / "videonsa" / "__init__.py")
    )
    return source


@pytest.mark.parametrize(
    ("name", "folder"),
    [("NVIDIA H200", "nvidia-h200"), ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-hbm3")],
)
def test_a_device_name_becomes_a_folder_name(name, folder):
    assert slug(name) == folder


def test_measurements_name_versions_and_code():
    found = measurement_facts(CPU)
    assert found["torch"] == torch.__version__
    assert found["device"] == device_name(CPU)
    assert found["device"].startswith("cpu")
    assert len(found["sources_sha256"]) == 16
    assert json.loads(json.dumps(found)) == found


def test_facts_have_the_keys_of_the_committed_results():
    assert set(measurement_facts(CPU)) == {
        *("device", "memory_gb", "driver", "cuda", "cudnn", "python", "torch", "triton"),
        *("fla-core", "videonsa", "commit", "dirty", "sources_sha256", "date"),
    }
    assert list(evaluation_facts(CPU)) == [
        *("device", "threads", "python", "torch", "transformers", "commit")
    ]


def test_outside_a_checkout_the_code_is_still_named(installed):
    assert checkout() == (None, None)
    first = measurement_facts(CPU)
    installed.write_text("x = 2\n")
    second = measurement_facts(CPU)
    assert first["commit"] is None
    assert first["dirty"] is None
    assert first["sources_sha256"] != second["sources_sha256"]
    assert evaluation_facts(CPU)["commit"] == "unknown"


def test_a_package_that_is_not_installed_has_no_version():
    assert package_versions("torch", "no-such-package-here") == {
        "torch": torch.__version__,
        "no-such-package-here": None,
    }


def test_a_processor_has_the_name_that_linux_gives_it(monkeypatch, tmp_path):
    cpus = tmp_path / "cpuinfo"
    cpus.write_text("processor : 0\nmodel name : One 5000 @ 2 GHz\n\nmodel name : Other\n")
    monkeypatch.setattr(machine, "_CPUS", cpus)
    assert cpu_model() == "One 5000 @ 2 GHz"
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "absent")
    assert cpu_model() == machine.platform.machine()


def test_a_program_that_is_missing_or_fails_gives_nothing():
    assert machine._output("no-such-program-here") is None
    assert machine._output("false") is None
    assert machine._output("echo", "text") == "text"
    assert machine._output("printf", r"one GPU\nanother") == "one GPU"
