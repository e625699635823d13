"""The ops by name, and what keeps one from running."""

import pytest
import torch

from videonsa.bench import op_registry
from videonsa.bench.op_registry import BASELINE, OPS, hindrance, pick
from videonsa.errors import UsageError

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def test_the_ops_are_these():
    assert list(OPS) == ["videonsa", "videonsa-block", BASELINE, "sdpa-flash", "fla-nsa"]
    assert {name for name, op in OPS.items() if not op.sparse} == {BASELINE, "sdpa-flash"}
    assert {name: op.scope for name, op in OPS.items() if op.scope} == {
        "videonsa": "token",
        "videonsa-block": "block",
    }


def test_an_op_without_its_gpu_or_packages_says_so(monkeypatch):
    monkeypatch.setattr(op_registry, "_installed", lambda module: module == "triton")
    competitor = OPS["fla-nsa"]
    assert hindrance(competitor, CPU) == ("needs a GPU", "fla-nsa needs a CUDA GPU, this is cpu")
    assert hindrance(competitor, GPU) == (
        "not installed",
        "fla-core einops not found: pip install fla-core einops",
    )


def test_nothing_hinders_an_op_whose_needs_are_met(monkeypatch):
    monkeypatch.setattr(op_registry, "_installed", lambda _: True)
    assert hindrance(OPS["fla-nsa"], GPU) is None
    assert hindrance(OPS["videonsa"], CPU) is None


def test_names_are_picked_in_order_and_once():
    known = {"a": 1, "b": 2, "c": 3}
    assert pick(["c", " a", "c"], known, "letters") == (3, 1)


@pytest.mark.parametrize(
    ("names", "came"), [(["a", "x", "y"], "x, y"), ([], "nothing"), ([""], "nothing")]
)
def test_unknown_names_and_no_name_are_refused_in_one_line(names, came):
    with pytest.raises(UsageError, match=f"--letters {came}: want some of a,b"):
        pick(names, {"a": 1, "b": 2}, "letters")
