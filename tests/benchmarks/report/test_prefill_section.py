import json

from benchmarks.report.__main__ import render
from benchmarks.report.prefill_section import render_prefill
from videonsa.cli.main import main

MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0"}


def stage(name, times, **more):
    found = {"name": name, "ms": sorted(times)[len(times) // 2], "times_ms": times, "error": None}
    return found | {"peak_gb": None} | more


def result(stages, video=None):
    return {
        "model": "7B",
        "dtype": "torch.bfloat16",
        "weights_gb": 16.58,
        "machine": MACHINE,
        "method": "wall time",
        "video": video,
        "lengths": [{"tokens": 131072, "frame": [168, 280], "stages": stages}],
    }


def test_a_stage_has_its_time_range_shares_of_its_parts_and_memory():
    prefill = stage(
        "prefill, nsa", [3900.0, 4100.0, 4000.0], attention_ms=1000.0, gates_ms=200.0
    ) | {"mean_unions": [40.0, 60.0], "peak_gb": 29.04, "predicted_gb": 29.1}
    text = render_prefill(result([prefill]))
    assert "### 131,072 video tokens, frames of 168x280" in text
    parts = "1000.0 (25 %) | 200.0 (5 %) | 2800.0 (70 %)"
    row = f"| 4000.0 (3900.0-4100.0) | {parts} | 50 (40-60) | 29.0 | 29.1 |"
    assert f"| prefill, nsa {row}" in text


def test_prefills_are_compared_with_the_dense_one_of_the_same_run():
    whole = [
        stage("prefill, dense", [8000.0], attention_share=1.0, attention_ms=6000.0, gates_ms=0.0),
        stage("prefill, nsa", [4000.0], attention_share=0.08, attention_ms=1000.0, gates_ms=0.0),
        stage("prefill, visionzip", [500.0], attention_share=0.012),
    ]
    text = render_prefill(result(whole))
    assert "| nsa | 8 | 2.00 | 6.00 |" in text and "| visionzip | 1.2 | 16.00 |" in text
    assert "Speed-up" not in render_prefill(result(whole[1:]))


def test_a_remark_on_the_machine_stands_before_its_numbers():
    text = render_prefill(result([stage("tower", [1.0])]) | {"remark": "Others ran beside it."})
    assert text.index("Others ran beside it.") < text.index("| tower |")


def test_a_stage_that_failed_has_its_reason():
    failed = {"name": "prefill, dense", "ms": None, "times_ms": [], "error": "out of memory"}
    assert "| prefill, dense | out of memory |" in render_prefill(result([failed]))


def test_a_file_that_was_read_comes_last():
    video = {
        "source": "1280x720 h264",
        "duration": 600.0,
        "frames": 600,
        "tokens": 18000,
        "workers": 8,
        "cores": 16,
        "workers_speedup": {"median": 6.5},
        "stages": [stage("decode + resize, 1 worker", [60000.0])],
    }
    text = render_prefill(result([], video))
    assert "8 workers on 16 cores read 6.50 times as fast as one." in text
    assert text.index("decode + resize") > text.index("131,072")


def test_what_the_command_writes_is_rendered(tmp_path):
    path = tmp_path / "cpu" / "prefill.json"
    options = ["--device", "cpu", "--video", "none", "--frame", "56x56", "--repeats", "1"]
    command = ["bench", "prefill", "--model", "tiny", "--tokens", "16", *options]
    assert main([*command, "--out", str(path)]) == 0
    result = json.loads(path.read_text())
    result["machine"]["dirty"] = False  # sources may be edited while tests run
    path.write_text(json.dumps(result))
    names = [stage["name"] for stage in result["lengths"][0]["stages"]]
    text = render(tmp_path)
    assert all(f"| {name} | " in text for name in names)
