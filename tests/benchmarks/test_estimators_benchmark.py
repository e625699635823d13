"""The benchmark of the estimators, on a CPU: what its file holds, and what it prints last."""

import json
import sys

from benchmarks import estimators


def test_times_have_their_spread_and_lists_their_density(tmp_path, monkeypatch, capsys):
    out = tmp_path / "estimators.json"
    options = ["--device", "cpu", "--shape", "tiny-256", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["estimators.py", *options])
    estimators.main()
    found = json.loads(out.read_text())
    assert list(found["regimes"]) == ["random", "coherent"]
    for runs in found["regimes"].values():
        assert [run["status"] for run in runs] == ["measured"] * 6
        assert all(0 < run["ms_min"] <= run["ms"] <= run["ms_max"] for run in runs)
        assert all(run["density"] == 1 for run in runs), "256 tokens are too few to leave any out"
    assert capsys.readouterr().out.count(" ms (") == 12
