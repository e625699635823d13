"""What `bench decode` gives, run by run, what it keeps, and what it makes of errors."""

import time
from dataclasses import replace

import pytest
import torch

from videonsa.bench import decode as decode_bench
from videonsa.bench import decode_baselines
from videonsa.bench.decode import OURS, PLAIN, DecodeRequest, bench_decode
from videonsa.bench.decode_baselines import BASELINES, STATIC, Baseline, baseline_run, time_limit
from videonsa.bench.decode_profile import StepKernels, covered
from videonsa.bench.filled_cache import decoding_bytes, filled_cache, row_bytes
from videonsa.bench.random_model import MODELS, random_model, random_qwen
from videonsa.inference import decoding
from videonsa.inference.decoding import decode
from videonsa.inference.sampling import GenerationSettings
from videonsa.models.decoding.capture import Graphs

CPU = torch.device("cpu")
REQUEST = DecodeRequest(
    model="tiny", tokens=(40,), batches=(1, 2), new_tokens=8, repeats=2, device=CPU
)


def measured(request, before=None):
    return list(bench_decode(request, before=before, progress=lambda _: None))


def keys(result):
    return [(run["what"], run["tokens"], run["batch"]) for run in result["runs"]]


@pytest.fixture(scope="module")
def model():
    return random_model(MODELS["tiny"], device=CPU, dtype=torch.float32)


@pytest.fixture
def uncompiled(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **_: model)


def test_every_run_has_times_of_all_its_tokens_and_a_bound():
    result = measured(REQUEST)[-1]
    assert keys(result) == [(PLAIN, 40, 1), (OURS, 40, 1), (OURS, 40, 2)]
    for run in result["runs"]:
        assert run["error"] is None, run
        assert min(run["times_ms"]) <= run["ms"] <= max(run["times_ms"])
        assert run["bound_ms"] > 0
    for run in result["runs"][1:]:
        assert len(run["times_ms"]) == 2 * 7
        assert len(run["first_times_ms"]) == 2
        assert run["tokens_per_s"] == pytest.approx(1e3 * run["batch"] / run["ms"])
        assert run["host_ms"] is None, "only captured steps have one"


def test_of_captured_steps_the_host_and_the_kernels_are_measured_too(monkeypatch):
    """As on a GPU, but that nothing is captured."""
    replayed = []

    def kernels(step, device):
        for _ in range(4):
            step()
        replayed.append(device)
        return StepKernels(kernels=400.0, busy_ms=1.5, span_ms=2.0)

    monkeypatch.setattr(decoding, "why_not_captured", lambda *_: None)
    monkeypatch.setattr(Graphs, "has", lambda *_: True)
    monkeypatch.setattr(decode_bench, "kernels_of_steps", kernels)
    plain, *runs = measured(REQUEST)[-1]["runs"]
    assert plain["host_ms"] is None
    for run in runs:
        assert (run["error"], run["how"]) == (None, "captured steps")
        assert run["host_ms"] > 0
        assert run["begin_ms"] > 0
        assert (run["kernels"], run["busy_ms"], run["span_ms"]) == (400.0, 1.5, 2.0)
    assert replayed == [CPU, CPU]


def test_runs_that_are_known_are_kept_and_those_that_failed_repeated(monkeypatch):
    before = measured(replace(REQUEST, batches=(1,)))[-1]
    before["runs"][1]["error"] = "out of memory"
    after = measured(REQUEST, before=before)[-1]
    assert keys(after) == [(PLAIN, 40, 1), (OURS, 40, 1), (OURS, 40, 2)]
    assert after["runs"][0] is before["runs"][0]
    assert after["runs"][1]["error"] is None


def test_a_cache_that_does_not_fit_is_a_line_of_its_runs_and_the_next_length_follows(monkeypatch):
    def filled(model, num_tokens, *, room):
        if num_tokens == 80:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return filled_cache(model, num_tokens, room=room)

    monkeypatch.setattr(decode_bench, "filled_cache", filled)
    runs = measured(replace(REQUEST, tokens=(80, 40), batches=(1,)))[-1]["runs"]
    errors = {(run["what"], run["tokens"]): run["error"] for run in runs}
    assert errors[PLAIN, 80] == errors[OURS, 80] == "OutOfMemoryError: CUDA out of memory."
    assert errors[PLAIN, 40] is errors[OURS, 40] is None


def test_transformers_runs_beside_and_what_it_raises_is_a_line(uncompiled, monkeypatch):
    def without_memory(model, run):
        if run.what == STATIC and run.batch == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return baseline_run(model, run)

    monkeypatch.setattr("videonsa.bench.decode.baseline_run", without_memory)
    result = measured(replace(REQUEST, tokens=(), baseline_tokens=(40,)))[-1]
    assert keys(result) == [(what, 40, batch) for what in BASELINES for batch in (1, 2)]
    *fine, failed = result["runs"]
    assert all(run["error"] is None and len(run["times_ms"]) == 4 for run in fine)
    assert failed["error"] == "OutOfMemoryError: CUDA out of memory."
    assert failed["ms"] is None


def test_both_caches_of_transformers_are_filled_and_grow(uncompiled):
    model = random_qwen(MODELS["tiny"], device=CPU, dtype=torch.float32)
    run = Baseline(what=STATIC, tokens=40, batch=2, new_tokens=3, seconds=60)
    with torch.no_grad():
        caches = [
            decode_baselines._dynamic_cache(model, run),
            decode_baselines._static_cache(model, run, 50),
        ]
        for cache in caches:
            assert int(cache.get_seq_length()) == 40
            decode_baselines._token_times(model, cache, run, CPU, count=3)
            assert int(cache.get_seq_length()) == 43


def test_a_run_that_takes_too_long_is_stopped_and_says_so():
    with pytest.raises(TimeoutError, match="stopped after"), time_limit(0.05):
        try:
            time.sleep(5)
        except TimeoutError as error:  # as a compiler wraps it
            raise RuntimeError("worker") from error


def test_an_error_in_time_stays_what_it_is():
    with pytest.raises(RuntimeError, match="worker"), time_limit(60):
        raise RuntimeError("worker")


def test_a_run_for_which_no_time_is_left_is_not_begun():
    run = Baseline(what=STATIC, tokens=40, batch=1, new_tokens=3, seconds=0.5)
    with pytest.raises(TimeoutError, match="not begun"):
        baseline_run(None, run)


def test_a_filled_cache_holds_its_tokens_and_is_decoded_after(model):
    cache = filled_cache(model, 40, room=20)
    memory = [layer.memory[0].data_ptr() for layer in cache.layers]
    settings = GenerationSettings(max_new_tokens=4)
    inputs = {"input_ids": torch.tensor([[20, 21]])}
    tokens = list(decode(model, inputs, cache, settings=settings, stop_ids=set()))
    assert len(tokens) == 4
    assert cache.get_seq_length() == 40 + 2 + 3
    assert cache.next_position == [45]
    assert [layer.memory[0].data_ptr() for layer in cache.layers] == memory, "nothing was copied"


def test_bytes_of_a_step_are_counted_once(model):
    shape = MODELS["tiny"]
    cache = filled_cache(model, 40, room=20)
    row = shape.num_layers * 2 * shape.num_kv_heads * shape.head_dim * 4
    held = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert row_bytes(model.config.get_text_config(), torch.float32) == row
    assert held == 40 * row
    count = decoding_bytes(model._language_model, model.lm_head)
    whole = sum(x.nbytes for x in model.parameters())
    tower = sum(x.nbytes for x in model.model.visual.parameters())
    embeddings = model.get_input_embeddings().weight.nbytes
    gates = sum(x.nbytes for name, x in model.named_parameters() if "g_proj" in name)
    assert gates > 0
    rotary = sum(x.nbytes for x in model._language_model.buffers())
    assert count == whole - tower - embeddings - gates + rotary


def test_spans_that_overlap_are_covered_once():
    assert covered([(0.0, 2.0), (1.0, 3.0), (1.5, 2.0), (5.0, 6.0)]) == 4.0
