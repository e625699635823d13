"""The comparison of two versions finds what differs, down to one bit."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.same_outputs import __main__ as same_outputs
from benchmarks.same_outputs.cases import CASES, Place
from benchmarks.same_outputs.comparing import compare, digest
from benchmarks.same_outputs.worker import run_case

X = torch.tensor([1.0, -2.0, 0.0, float("nan")])
PLACE = Place(device=torch.device("cpu"), dtype=torch.float32)


def in_this_process(source, names, out, setting, *, nudged=()):
    """Instead of processes with the code of two versions: twice that of this one."""
    out.mkdir()
    for name in names:
        run_case(name, replace(PLACE, nudged=name in nudged), out)


@pytest.fixture
def one_version(monkeypatch, tmp_path):
    monkeypatch.setattr(same_outputs, "run_version", in_this_process)
    monkeypatch.setattr(same_outputs, "extract", lambda commit, trees: tmp_path)


def test_the_same_bits_are_equal_also_where_they_are_nan():
    assert compare({"x": X}, {"x": X.clone()}) == (None, "")
    assert digest({"x": X}) == digest({"x": X.clone()})


@pytest.mark.parametrize(
    ("other", "largest"),
    [
        (X.nextafter(torch.tensor(9.0)), 2.0**-23),
        (torch.where(X == 0, -X, X), 0.0),  # only the sign of a zero
        (X.double(), float("inf")),
        (X[None], float("inf")),
    ],
)
def test_one_bit_a_dtype_or_a_shape_is_a_difference(other, largest):
    known = X.nan_to_num(), other.nan_to_num()
    assert compare({"x": known[0], "y": X}, {"x": known[1], "y": X}) == (largest, "x")
    assert digest({"x": X}) != digest({"x": other})


def test_a_tensor_that_one_version_lacks_is_a_difference():
    assert compare({"x": X}, {"x": X, "gradient": X}) == (float("inf"), "only one has gradient")


def test_a_number_that_became_nan_is_the_largest_difference():
    worst, where = compare({"a": X[:1], "b": X[:1]}, {"a": X[:1] + 9, "b": X[3:]})
    assert worst != worst
    assert where == "b"


def test_one_version_is_equal_to_itself_and_the_nudged_control_is_not(one_version, tmp_path):
    out = tmp_path / "same.json"
    cases = "plain/frame/text,decode/dense/video,generate/3 beams,control"
    assert same_outputs.main(["--cases", cases, "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["as_expected"]
    assert [row["equal"] for row in found["cases"]] == [True, True, True, False]
    assert found["cases"][-1]["max_difference"] > 0


def test_the_self_test_wants_every_case_to_differ(one_version):
    assert same_outputs.main(["--cases", "plain/frame/text,recorder/dense", "--self-test"]) == 0


def test_a_case_that_differs_is_told_with_exit_status_1(one_version, monkeypatch, capsys):
    versions = iter([PLACE, replace(PLACE, nudged=True), replace(PLACE, nudged=True)])

    def run(source, names, out, setting, **_):
        out.mkdir()
        place = next(versions)
        for name in names:
            run_case(name, place, out)

    monkeypatch.setattr(same_outputs, "run_version", run)
    assert same_outputs.main(["--cases", "plain/frame/text"]) == 1
    assert "DIFFERS: " in capsys.readouterr().out


def test_a_case_that_fails_is_told_with_exit_status_1(one_version, monkeypatch, capsys):
    def fail(place):
        raise RuntimeError("no such\nkernel")

    monkeypatch.setitem(CASES, "plain/frame/text", replace(CASES["plain/frame/text"], run=fail))
    assert same_outputs.main(["--cases", "plain/frame/text"]) == 1
    assert "failed: RuntimeError: no such kernel (both)" in capsys.readouterr().out


def test_a_process_that_ended_early_is_no_equality(tmp_path):
    row = same_outputs.row_of("packed/frame", tmp_path, tmp_path, dtype="float32", against="old")
    assert not row.as_expected
    assert row.note == "failed: its process ended early (both)"


def test_a_case_that_one_version_alone_can_run_is_no_equality(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    run_case("recorder/dense", PLACE, new)
    row = same_outputs.row_of("recorder/dense", old, new, dtype="float32", against="old")
    assert not row.as_expected
    assert row.note == "failed: old code: its process ended early; new code: it ran"


def test_cases_are_chosen_by_name_beginning_or_pattern():
    assert same_outputs.chosen_cases("packed/frame,control") == [
        "packed/frame",
        "packed/frame/loss alone",
        "control/one weight nudged",
    ]
    with pytest.raises(SystemExit, match="--cases nothing: want some of plain/"):
        same_outputs.chosen_cases("nothing")
