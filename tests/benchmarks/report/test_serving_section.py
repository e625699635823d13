import json

from benchmarks.report.__main__ import render

MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0"}


def page(tmp_path, name, result):
    (tmp_path / "gpu").mkdir()
    (tmp_path / f"gpu/{name}.json").write_text(json.dumps(result | {"machine": MACHINE}))
    return render(tmp_path)


def run(ms):
    status = {"status": "measured", "error": None} if ms else {"status": "failed", "error": "why"}
    low, high = (None, None) if ms is None else (ms - 1, ms + 1)
    return {"ms": ms, "ms_min": low, "ms_max": high, **status}


def test_pages_stand_beside_one_stretch_and_a_guess_is_called_one(tmp_path):
    whole = {"rows": 4096, "runs": {"one stretch": run(8.0), "both": run(9.0)}, "ratio": 1.125}
    last = {"rows": 512, "runs": {"one stretch": run(2.0), "both": run(None)}, "ratio": None}
    guess = {"regime": "random", "steps": 8.0, "engine_ms": 4000.0, "vllm_ms": 4100.4}
    shape = {
        "shape": "4K tokens",
        "regimes": {"random": {"whole prompt": whole, "last step": last}},
        "prediction": [guess | {"is": "a prediction", "without": "the tower"}],
    }
    text = page(tmp_path, "vllm_pieces", {"page": 16, "shapes": [shape], "method": "in turn"})
    wanted = "| 4K tokens | random | whole prompt (4,096) | 8.00 (7.00-9.00) | 9.00 (8.00-10.00) |"
    assert f"{wanted} 1.125 |" in text
    assert "| last step (512) | 2.00 (1.00-3.00) | failed: why |  |" in text
    assert "8 steps: 4,100 ms, the engine 4,000 ms (a prediction; without the tower)" in text


def test_the_server_stands_beside_its_engine(tmp_path):
    found = {"engine": [10.0, 12.0], "server": [10.5, 12.25], "server_to_engine": 1.034}
    times = ("first_question_first_text_seconds", "second_question_first_text_seconds")
    result = dict.fromkeys((*times, "together_tokens_per_second"), found)
    about = {"model": "7B", "clients": 16, "new_tokens": 64, "minutes": 8, "video_tokens": 121_000}
    text = page(tmp_path, "serve_speed", result | about)
    assert "| a first question to its first text, s | 10, 12 | 10.5, 12.2 | 1.034 |" in text
    assert "121,000 tokens of a video file of 8 minutes; 16 clients ask 64 tokens" in text
