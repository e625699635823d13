"""The benchmark of what vLLM's pages cost, on a CPU: what its file holds and what it predicts."""

import json
import sys

import pytest

from benchmarks import vllm_pieces
from videonsa.bench.attention_shapes import SHAPES


def test_two_ways_are_timed_for_a_whole_prompt_and_its_last_step(tmp_path, monkeypatch, capsys):
    out, prefill = tmp_path / "pieces.json", tmp_path / "prefill.json"
    stages = [{"name": f"prefill, nsa, {regime}", "ms": 100.0} for regime in ("random", "coherent")]
    prefill.write_text(json.dumps({"lengths": [{"tokens": 256, "stages": stages}]}))
    options = ["--device", "cpu", "--shapes", "tiny-256", "--prefill", str(prefill)]
    monkeypatch.setattr(sys, "argv", ["vllm_pieces.py", *options, "--out", str(out)])
    vllm_pieces.main()
    (found,) = json.loads(out.read_text())["shapes"]
    for parts in found["regimes"].values():
        assert [part["rows"] for part in parts.values()] == [256, 64]
        for part in parts.values():
            runs = part["runs"].values()
            assert all(0 < run["ms_min"] <= run["ms"] <= run["ms_max"] for run in runs)
            ratio = (
                part["runs"]["gathering and attention"]["ms"] / part["runs"]["one stretch"]["ms"]
            )
            assert part["ratio"] == ratio
    assert [guess["steps"] for guess in found["prediction"]] == [1, 4, 1, 4]
    printed = capsys.readouterr().out
    assert (
        printed.count("want 1.15 at most") == printed.count("a prediction: vLLM was not run") == 4
    )


def test_steps_gather_what_was_read_before_each_of_them():
    def part(gathering):
        runs = {"one stretch": {"ms": 10.0}, "gathering and attention": {"ms": 10.0 + gathering}}
        return {"runs": runs, "ratio": 1.0}

    shape = SHAPES["7b-32k"]
    prefill = {"tokens": shape.tokens, "stages": [{"name": "prefill, nsa, random", "ms": 1000.0}]}
    found = {"random": {"whole prompt": part(0.5), "last step": part(0.25)}}
    one, four = vllm_pieces.guesses_of(found, [prefill], shape)
    assert one["vllm_ms"] == pytest.approx(1000 + 28 * 0.5)
    assert four["vllm_ms"] == pytest.approx(1000 + 28 * 0.25 * (1 + 2 + 3 + 4) / 4)
