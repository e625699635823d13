import pytest
import torch
from torch import nn

from videonsa.train.meters import GateMeter, RateMeter


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Module(), nn.Module()
        for layer in (self.first, self.second):
            layer.g_proj_2 = nn.Identity()


def test_gates_are_means_over_vision_rows_and_heads():
    model = Layers()
    meter = GateMeter(model, temperature=0.5)
    logits = torch.randn(1, 6, 12)  # 4 heads, 3 branches
    model.first.g_proj_2(logits)  # nobody said which rows count
    meter.rows = torch.tensor([1, 4])
    for part in (logits, 2 * logits):
        model.first.g_proj_2(part)
    model.second.g_proj_2(torch.zeros(1, 6, 12))
    both = torch.stack([logits, 2 * logits])[:, 0, [1, 4]]
    expected = torch.sigmoid(both / 0.5).unflatten(-1, (4, 3)).mean((0, 1, 2))
    found = meter.read()
    own = [found[f"gates/layer_00/{name}"] for name in ("compressed", "selected", "window")]
    torch.testing.assert_close(torch.tensor(own), expected)
    assert found["gates/layer_01/window"] == 0.5
    assert meter.read() == {}


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
