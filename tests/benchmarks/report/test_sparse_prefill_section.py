import json

from benchmarks.report.__main__ import render

MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0"}


def run(name, ms, **more):
    status = {"status": "measured", "error": None} if ms else {"status": "failed", "error": "why"}
    low, high = (None, None) if ms is None else (ms - 1, ms + 1)
    return {"name": name, "ms": ms, "ms_min": low, "ms_max": high, **status, **more}


def page(tmp_path, name, result):
    (tmp_path / "gpu").mkdir()
    about = {"shape": "128K tokens", "method": "in turn", "machine": MACHINE}
    (tmp_path / f"gpu/{name}.json").write_text(json.dumps(about | result))
    return render(tmp_path)


def test_block_sparse_times_stand_beside_their_share_of_dense(tmp_path):
    runs = [
        run("dense, cuDNN", 228.0, ratio=1.0),
        run("blocks of 128, 10%", 34.2, ratio=0.15, share=0.1, factor=1.5),
        run("blocks of 128, 30%", None, ratio=None),
    ]
    text = page(tmp_path, "block_sparse", {"runs": runs})
    assert "| dense, cuDNN | 228.00 (227.00-229.00) | 1.00 |  |  |" in text
    assert "| blocks of 128, 10% | 34.20 (33.20-35.20) | 0.15 | 10 | 1.50 |" in text
    assert "| blocks of 128, 30% | failed: why |  |  |  |" in text


def test_estimators_have_their_time_memory_and_density(tmp_path):
    random = [run("xattention, stride 16", 18.0, extra_gb=1.05, density=0.91)]
    dense = [run("dense, cuDNN", 228.0, extra_gb=0.0, density=None)]
    text = page(tmp_path, "estimators", {"regimes": {"random": random, "coherent": dense}})
    assert "| random | xattention, stride 16 | 18.00 (17.00-19.00) | 1.05 | 91 |" in text
    assert "| coherent | dense, cuDNN | 228.00 (227.00-229.00) | 0.00 |  |" in text
