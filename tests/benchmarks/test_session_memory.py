"""Memory of a long session: counted while it is asked, and shown in docs/results.md."""

import pytest

from benchmarks.report.session_section import render_session_memory
from benchmarks.session_memory import PARTS, measure


@pytest.fixture(scope="module")
def result():
    return measure(PARTS, warm_up=1, follow_ups=2)


def test_no_tensor_is_left_by_questions(result):
    first, *later = result["counts"]
    assert len(later) == PARTS
    assert {one["tensors"] for one in later} == {first["tensors"]}
    assert {one["tensor_bytes"] for one in later} == {first["tensor_bytes"]}
    assert later[-1]["questions"] == result["questions"] >= PARTS


def test_objects_do_not_grow_with_questions(result):
    half, last = result["counts"][PARTS // 2], result["counts"][-1]
    assert last["objects"] - half["objects"] < PARTS


def test_every_count_has_a_row(result):
    text = render_session_memory({**result, "machine": {"device": "cpu"}})
    assert text.count("\n| ") == len(result["counts"]) + 5  # head, rule, two conversations, end
