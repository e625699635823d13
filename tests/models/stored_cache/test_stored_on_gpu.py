"""Through page-locked buffers and streams of their own, beside what else runs on the GPU."""

import pytest
import torch
from stored_caches import assert_equal
from tiny_models import SPEC, prompt, tiny

from videonsa.errors import BudgetError
from videonsa.models.cache import VideoNSACache
from videonsa.models.stored_cache.load import load_cache
from videonsa.models.stored_cache.save import save_cache

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def model():
    return tiny(spec=SPEC).cuda().bfloat16()


def long_cache(layers=2, rows=40_000):
    """More than a piece in every tensor."""
    cache = VideoNSACache()
    for index in range(layers):
        keys, values = torch.randn(2, 1, 4, rows, 128, device="cuda").bfloat16()
        cache.update(keys, values, index)
    return cache


def test_an_exact_cache_comes_back_bit_by_bit_and_goes_on_alike(model, tmp_path):
    cache, question = VideoNSACache(), torch.tensor([[40, 41]], device="cuda")
    inputs = {
        name: one.cuda() if isinstance(one, torch.Tensor) else one
        for name, one in prompt(6).items()
    }
    with torch.inference_mode():
        model(**inputs, past_key_values=cache)
        save_cache(tmp_path / "a", cache, model)
        loaded = load_cache(tmp_path / "a", model).cache
        assert_equal(loaded, cache)
        found, wanted = (model(question, past_key_values=one).logits for one in (loaded, cache))
    assert torch.equal(found, wanted)


@torch.inference_mode()
def test_pieces_are_right_while_the_gpu_works_on_other_things(model, tmp_path):
    cache, busy = long_cache(), torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        busy = torch.nn.functional.normalize(busy @ busy)
    save_cache(tmp_path / "a", cache, model)
    for _ in range(20):
        busy = torch.nn.functional.normalize(busy @ busy)
    loaded = load_cache(tmp_path / "a", model).cache
    assert_equal(loaded, cache)


@torch.inference_mode()
def test_8_bits_are_as_good_as_those_of_a_cpu(model, tmp_path):
    cache = long_cache(rows=9_000)
    save_cache(tmp_path / "a", cache, model, precision="int8")
    loaded = load_cache(tmp_path / "a", model).cache
    on_cpu = VideoNSACache()
    for index, layer in enumerate(cache.layers):
        on_cpu.update(layer.keys.cpu(), layer.values.cpu(), index)
    save_cache(tmp_path / "b", on_cpu, model, precision="int8")
    theirs = load_cache(tmp_path / "b", model).cache
    for ours, other, exact in zip(loaded.layers, theirs.layers, cache.layers, strict=True):
        wanted = exact.keys.float()
        for found in (ours.keys, other.keys):
            assert (found.float() - wanted).norm() / wanted.norm() < 0.01


@torch.inference_mode()
def test_the_gpu_holds_the_cache_once_while_it_is_loaded(model, tmp_path):
    cache = long_cache()
    save_cache(tmp_path / "a", cache, model)
    held = sum(one.keys.numel() + one.values.numel() for one in cache.layers) * 2
    del cache
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loaded = load_cache(tmp_path / "a", model)
    assert torch.cuda.max_memory_allocated() - before < 1.05 * held
    assert loaded.num_bytes >= held


@torch.inference_mode()
def test_a_cache_that_does_not_fit_the_gpu_is_refused(model, tmp_path):
    save_cache(tmp_path / "a", long_cache(layers=1, rows=100), model)
    with pytest.raises(BudgetError, match="does not fit the memory beside the model"):
        load_cache(tmp_path / "a", model, spare=10**9)
