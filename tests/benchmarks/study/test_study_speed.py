import json

from benchmarks.study import speed


def test_parts_are_trained_in_turn_and_back_and_their_rates_joined(tmp_path, monkeypatch):
    trained = []

    def train(part, source, scratch, args):
        trained.append((part.name, str(source)))
        rate = 100.0 * len(trained)
        return {
            "tokens_per_second": rate,
            "padding": 0.0,
            "every": [rate - 1, rate + 1],
            "mfu": None,
            "tokens_a_step": 7,
            "busy": 0.5,
        }

    monkeypatch.setattr(speed, "_trained", train)
    parts = [speed.Part(name="old", is_before=True), speed.Part(name="new")]
    out = tmp_path / "speed.json"
    assert speed.main(["--before", "OLD/src", "--out", str(out)], parts=parts) == 0
    assert [name for name, _ in trained] == ["old", "new", "new", "old"]
    assert [source == "OLD/src" for _, source in trained] == [True, False, False, True]
    old = json.loads(out.read_text())["parts"]["old"]
    assert (old["tokens_per_second"], old["lowest"], old["highest"]) == (250.0, 99.0, 401.0)
    assert old["mfu"] is None and old["busy"] == 0.5
