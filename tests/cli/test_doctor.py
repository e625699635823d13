"""`videonsa doctor`."""

import json

from videonsa.cli import doctor
from videonsa.cli.main import main


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
