"""The prediction beside a measured stage."""

from dataclasses import replace

import pytest
import torch

from videonsa.bench.predicted_memory import prediction
from videonsa.bench.random_model import MODELS, random_model
from videonsa.models.methods import Dense
from videonsa.planning.memory import Workload, prefill_terms


@pytest.fixture(scope="module")
def model():
    return random_model(MODELS["tiny"], device=torch.device("cpu"), dtype=torch.float32)


def predict(model, name, peak, held=10**9, rows=None):
    stage = {"name": name, "peak_gb": peak}
    return prediction(
        stage, model, (16, 4, 4), prompt_tokens=128, rows_per_chunk=rows, held_bytes=held
    )


@pytest.mark.parametrize(
    "name", ["vision tower", "prefill, nsa, random", "next token after prefill, nsa, random"]
)
def test_the_ratio_is_of_predicted_to_measured(model, name):
    found = predict(model, name, 2.0)
    assert found["predicted_gb"] > 1.0  # the weights alone
    assert found["predicted_ratio"] == found["predicted_gb"] / 2.0


def test_the_prefill_is_the_plans(model):
    work = Workload(
        shape=replace(MODELS["tiny"], method=Dense()),
        grid=(16, 4, 4),
        prompt_tokens=128,
        max_new_tokens=1,
        kernels=False,
    )
    terms = prefill_terms(work)
    terms["weights"] = 0
    # A model of float32 has rows twice as large as the shape's bfloat16.
    found = predict(model, "prefill, dense", 1.0, held=0)["predicted_gb"]
    assert found == pytest.approx(2 * sum(terms.values()) / 1e9)


def test_rows_that_go_at_once_are_those_that_were_asked_for(model):
    few, whole, zero = (
        predict(model, "prefill, nsa, random", 1.0, rows=rows)["predicted_gb"]
        for rows in (32, 128, 0)
    )
    assert few < whole == zero


@pytest.mark.parametrize(("name", "peak"), [("prefill, dense", None), ("transformers: prefill", 1)])
def test_without_a_measurement_of_ours_there_is_no_prediction(model, name, peak):
    assert predict(model, name, peak) == {"predicted_gb": None, "predicted_ratio": None}


def test_weights_in_fp8_have_a_product_of_one_byte(model):
    stage = {"name": "vision tower", "peak_gb": 1.0}
    options = {"prompt_tokens": 128, "rows_per_chunk": None, "held_bytes": 0}
    full, fp8 = (
        prediction(stage, model, (16, 4, 4), **options, weights=kind)["predicted_gb"]
        for kind in ("full", "fp8")
    )
    # Of float32: 256 patches of 48 values, padded to 64.
    assert full - fp8 == pytest.approx(3 * 64 * 256 / 1e9)
