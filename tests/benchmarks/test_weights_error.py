"""Errors of quantised weights: nothing for float32, more for fewer bits, and a section of both."""

import pytest
import torch

from benchmarks.report.weights_section import render_products, render_weights
from benchmarks.weights_error import KINDS, measure
from videonsa.rendered.suite import SuiteSpec, make_script, suite_seed

SPEC = SuiteSpec(num_frames=64, kinds=("needle", "direction"))


@pytest.fixture(scope="module")
def kinds():
    script = make_script(suite_seed("test", 0), spec=SPEC)
    return measure("embedded", [script], torch.device("cpu"))


def test_float32_has_no_error_and_agrees_with_itself(kinds):
    row = kinds["float32"]
    assert row["text_error_largest"] == row["answer_error_largest"] == 0
    assert row["agreeing_tokens"] == row["answer_tokens"] >= row["questions"] == 2
    assert row["same_answers"] == 2


def test_others_have_errors_and_fp8_has_more_than_bfloat16(kinds):
    assert set(kinds) == {"float32", *KINDS}
    assert 0 < kinds["bfloat16"]["text_error_median"] < kinds["fp8"]["text_error_median"] < 0.1
    assert 0 < kinds["int8"]["text_error_median"] < kinds["fp8"]["text_error_median"]


def test_every_kind_of_weights_has_a_row(kinds):
    result = {
        "models": {"embedded": kinds},
        "machine": {"device": "NVIDIA H200"},
        "method": "both",
        "tokens": 512,
        "videos": 1,
    }
    text = render_weights(result)
    assert all(f"| embedded | {kind} | " in text for kind in kinds)
    assert "0.00 (0.00) | 0.00 (0.00)" in text


def test_products_have_their_sums_and_few_rows():
    ways = dict.fromkeys(("bf16", "scaled", "exact", "own", "torchao"), 2.0)
    few = dict.fromkeys(("bf16", "bf16, few rows", "scaled", "own"), 26.0)
    result = {
        "machine": {"device": "NVIDIA H200"},
        "sums": {"16384": {"decoder": {}}, "131072": {"decoder": ways, "tower": ways}},
        "few_rows": {"1": {"o": few}},
    }
    text = render_products(result)
    assert "131,072 rows at a time" in text
    assert "| tower | 2.00 | 2.00 | 2.00 | 2.00 | 2.00 |" in text
    assert "| 1 | o | 26.0 | 26.0 | 26.0 | 26.0 |" in text
