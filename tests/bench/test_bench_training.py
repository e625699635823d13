"""Training steps that fail, and the arithmetic of what is measured."""

import pytest
import torch

from videonsa.bench import training_steps
from videonsa.bench.training import TrainRequest, bench_train, run_line

REQUEST = TrainRequest(
    model="tiny", tokens=(64, 128), parts=("layers",), repeats=1, on_gpu=torch.cuda.is_available()
)


@pytest.fixture
def result(monkeypatch):
    """Dense attention runs out of memory at 128 tokens."""
    model_inputs = training_steps.TimedBatch.model_inputs

    def short_of_memory(batch, *arguments, **named):
        if (batch.setting.tokens, batch.setting.attention) == (128, "dense"):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return model_inputs(batch, *arguments, **named)

    monkeypatch.setattr(training_steps.TimedBatch, "model_inputs", short_of_memory)
    lines, results = [], []
    assert bench_train(REQUEST, progress=lines.append, save=results.append)
    assert len(results) == 4  # one a measurement
    return results[-1] | {"lines": lines}


def test_what_runs_out_of_memory_has_its_line_and_the_others_go_on(result):
    found = {(run["tokens"], run["attention"]): run for run in result["runs"]}
    assert list(found) == [(64, "nsa"), (64, "dense"), (128, "nsa"), (128, "dense")]
    failed = found.pop((128, "dense"))
    assert failed["error"] == "OutOfMemoryError: CUDA out of memory."
    assert failed["ms"] is failed["mfu"] is failed["efficiency"] is None
    assert failed["times_ms"] == failed["peak_gb"] == []
    assert all(run["error"] is None and run["ms"] > 0 for run in found.values())
    assert [ratio["tokens"] for ratio in result["ratios"]] == [64]
    assert "layers, 128 tokens, dense: OutOfMemoryError: CUDA out of memory." in result["lines"]


def test_a_line_says_all_that_is_known():
    run = {
        "part": "step",
        "tokens": 131072,
        "attention": "nsa",
        "error": None,
        "ms": 1000.0,
        "forward_backward_ms": 900.0,
        "tokens_per_second": 131136.0,
        "mfu": 0.4,
        "peak_gb": [70.0, 71.0],
        "efficiency": 0.85,
    }
    assert run_line(run) == (
        "step, 131072 tokens, nsa: 1000.0 ms, 131136 tokens/s, forward + backward 900.0 ms, "
        "MFU 40.0 %, peak 70.0 and 71.0 GB, efficiency 85 %"
    )
