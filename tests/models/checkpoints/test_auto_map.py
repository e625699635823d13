"""Transformers' Auto classes find this package from what it saved."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from tiny_models import tiny

from videonsa.models.checkpoints.loading import load_model

MODULE = "modeling_videonsa.py"
LOADS = """
import sys
from transformers import AutoModelForImageTextToText
assert not any(name.split(".")[0] == "videonsa" for name in sys.modules)
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
model.save_pretrained(sys.argv[2])
print(type(model).__module__, model.config.method.name)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_process_that_has_not_imported_this_package_loads_and_saves_a_model(saved, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(saved), str(tmp_path / "again")],
        env=os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode() == "videonsa.models.families.qwen2_5_vl nsa\n"
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        path.name for path in saved.iterdir()
    }


def test_the_module_says_in_one_line_that_the_package_is_missing(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "videonsa.models.config", None)
    with pytest.raises(ImportError, match=r"needs the package videonsa .*pip install videonsa"):
        runpy.run_path(str(saved / MODULE))


def test_our_own_module_is_no_code_to_warn_of_and_is_not_run_here(saved):
    (saved / MODULE).write_text("raise SystemError\n")
    assert json.loads((saved / "config.json").read_text())["auto_map"]
    assert load_model(saved).notes == ()
