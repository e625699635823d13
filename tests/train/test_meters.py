import pytest

from videonsa.train.meters import RateMeter, gate_log


def test_gates_stand_in_the_log_by_layer_and_branch():
    means = {3: {"compressed": 0.25, "window": 0.5}}
    assert gate_log(means) == {
        "gates/layer_03/compressed": 0.25,
        "gates/layer_03/window": 0.5,
    }


def test_mfu_is_the_share_of_the_peak(monkeypatch):
    clock = iter([10.0, 12.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    meter = RateMeter(peak_flops=1e12)
    meter.add(tokens=100, flops=3 * 10**11)
    meter.add(tokens=50, flops=10**11)
    assert meter.rates(meter.taken()) == {
        "tokens_per_second": 75.0,
        "mfu": pytest.approx(0.2),
    }


def test_without_a_peak_there_is_no_mfu():
    meter = RateMeter(peak_flops=None)
    meter.add(tokens=1, flops=1)
    assert list(meter.rates(meter.taken())) == ["tokens_per_second"]
