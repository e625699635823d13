"""`videonsa doctor`."""

import json
from types import SimpleNamespace

import pytest

from videonsa.cli import doctor
from videonsa.cli.main import main
from videonsa.inference.warm_up import WarmedUp


def test_doctor_looks_at_every_part(capsys):
    status = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    checks = {check["name"]: check for check in report["checks"]}
    for name in ("videonsa", "python", "torch", "transformers", "av", "triton", "torchvision"):
        assert name in checks
    for name in ("devices", "backends", "codecs"):
        assert checks[name]["status"] == "ok"
    missing = [check for check in checks.values() if check["status"] == "missing"]
    assert status == (2 if missing else 0)
    assert all(check["fix"] for check in missing), "what is missing has no command that fixes it"


def test_doctor_tells_what_cannot_be_imported_and_the_command_that_fixes_it(monkeypatch, capsys):
    def broken(name):
        raise ImportError(f"no {name}\nhere")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    assert main(["doctor"]) == 2
    lines = capsys.readouterr().out.splitlines()
    torch = next(line for line in lines if line.split()[1] == "torch")
    assert torch.startswith("missing")
    assert "no torch here" in torch
    assert "pip install torch" in torch


def test_a_check_that_breaks_hides_no_other(monkeypatch, capsys):
    def _codecs():
        raise RuntimeError("broken library")

    monkeypatch.setattr(doctor, "_codecs", _codecs)
    assert main(["doctor"]) == 2
    out = capsys.readouterr().out
    assert "RuntimeError: broken library" in out
    assert "embedded" in out


def test_variables_that_change_a_run_are_shown(monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    main(["doctor"])
    assert "TRITON_INTERPRET = 1" in capsys.readouterr().out


@pytest.fixture
def gpu(monkeypatch):
    """As if there were a GPU, on which the shape that is asked for compiles to so many kernels."""
    found = SimpleNamespace(kernels=83, shape=None)

    def model(shape, *, device):
        found.shape = shape
        return SimpleNamespace(device=device)

    def warm_up(model):
        return WarmedUp(kernels=found.kernels, seconds=12.34)

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr("videonsa.bench.random_model.one_layer_model", model)
    monkeypatch.setattr("videonsa.inference.warm_up.warm_up", warm_up)
    return found


def test_compiling_says_how_many_kernels_and_how_long_then_that_all_are_there(gpu, capsys):
    arguments = ["doctor", "--compile", "--model", "Enxin/VideoNSA"]
    assert main(arguments) == 0
    assert gpu.shape.method.spec.stream == "sequence"
    wanted = "compiled 83 kernels of Enxin/VideoNSA for NVIDIA H200 in 12.3 s\n"
    assert capsys.readouterr().out == wanted
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "model": "Enxin/VideoNSA",
        "gpu": "NVIDIA H200",
        "kernels": 83,
        "seconds": 12.34,
    }
    gpu.kernels = 0
    assert main(["doctor", "--compile"]) == 0
    wanted = "already compiled: the kernels of embedded for NVIDIA H200\n"
    assert capsys.readouterr().out == wanted


def test_compiling_without_a_gpu_is_refused(monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["doctor", "--compile"]) == 2
    assert "there is no GPU in this machine" in capsys.readouterr().err
    assert main(["doctor", "--compile", "--model", "no/such/model"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_model_is_for_compiling_only(capsys):
    assert main(["doctor", "--model", "embedded"]) == 2
    assert "--model without --compile" in capsys.readouterr().err
