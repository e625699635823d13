"""Why tokens are not decoded by captured steps."""

import pytest
import torch
from tiny_models import left_padded, prompt, tiny

from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding import reasons
from videonsa.models.decoding.reasons import why_not_captured, why_not_static
from videonsa.models.methods import NSA, AttentionMethod, Dense, ReleasedNSA
from videonsa.models.recorder.protocol import Recorder


@pytest.fixture(autouse=True)
def with_kernels(monkeypatch):
    monkeypatch.setattr(reasons, "why_not_cached", lambda _: None)


class OnAGPU:
    """A model that says that it is on one."""

    device = torch.device("cuda")

    def __init__(self, model, **attributes):
        self._model = model
        vars(self).update(attributes)

    def __getattr__(self, name):
        return getattr(self._model, name)


class Nearby(AttentionMethod):
    name = "nearby"

    def attend(self, layer, hidden, q, k, v, step):
        return q


class Leaving(Dense):
    name = "leaving"
    leaves_after = (0,)


def test_text_after_a_video_can_be_captured_by_every_method_that_is_dense_there():
    model = tiny()
    for cache in (VideoNSACache(), model(**prompt(3)).past_key_values):
        for method in (None, Dense(), NSA(), ReleasedNSA()):
            assert why_not_captured(OnAGPU(model), cache, method) is None


def test_what_cannot_be_static_is_named():
    model, cache = tiny(), VideoNSACache()
    for method, reason in (
        (Nearby(), "method 'nearby' need not be dense attention after the video"),
        (Leaving(), "tokens leave inside its layers"),
    ):
        assert why_not_static(model, cache, method) == reason
    spread = OnAGPU(model, hf_device_map={"a": 0, "b": 1})
    assert why_not_static(spread, cache, None) == "its layers are on several devices"
    assert why_not_static(OnAGPU(model, hf_device_map={"": 0}), cache, None) is None
    batch = model(**left_padded([prompt(3), prompt(2)])).past_key_values
    assert why_not_static(model, batch, None).startswith("a batch of 2 prompts")
    batch.batch_select_indices(torch.tensor([1]))
    assert why_not_static(model, batch, None) == "a prompt with padding"


def test_autocast_is_a_reason():
    """Memory and what was captured have the dtypes of a call without it."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert why_not_static(tiny(), VideoNSACache(), None) == "autocast is on"


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_only_a_cuda_gpu_has_graphs(device):
    reason = why_not_captured(OnAGPU(tiny(), device=torch.device(device)), VideoNSACache(), None)
    assert reason == f"it runs on {'a CPU' if device == 'cpu' else device}, not on a CUDA GPU"


def test_without_kernels_the_plain_forward_attends_faster(monkeypatch):
    monkeypatch.setattr(reasons, "why_not_cached", lambda q: f"no {q.dtype} of {q.shape[-1]}")
    reason = why_not_captured(OnAGPU(tiny()), VideoNSACache(), None)
    assert reason == "no kernels for attention over a cache: no torch.float32 of 16"


def test_who_looks_on_from_the_host_would_see_nothing_of_a_graph():
    model, cache = OnAGPU(tiny()), VideoNSACache()
    assert why_not_captured(model, cache, None, Recorder()) == "a recorder looks on"
    with model.lm_head.register_forward_hook(lambda *_: None):
        assert why_not_captured(model, cache, None) == "its modules have forward hooks"
    assert why_not_captured(model, cache, None) is None
