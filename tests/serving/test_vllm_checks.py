"""What is refused at load in vLLM, and which method it runs, without vLLM."""

from types import SimpleNamespace

import pytest

from videonsa.errors import UsageError
from videonsa.models.config import VideoNSAConfig
from videonsa.models.methods import parse_method
from videonsa.models.methods.nsa import ReleasedNSA
from videonsa.serving.vllm.checks import check_engine, check_kernels, chosen_method


def engine(**changes):
    """vLLM's config, as far as it is read, with fields by their own name."""
    said = {
        "pipeline_parallel_size": 1, "tensor_parallel_size": 1, "decode_context_parallel_size": 1,
        "prefill_context_parallel_size": 1, "use_ubatching": False, "enforce_eager": True,
        "cache_dtype": "auto", "enable_prefix_caching": True, "enable_chunked_prefill": True,
        "async_scheduling": True, "long_prefill_token_threshold": 0, "kv_transfer_config": None,
        "speculative_config": None, "is_multimodal_pruning_enabled": lambda: False,
    } | changes  # fmt: skip
    one = SimpleNamespace(**said)
    one.multimodal_config = one
    return SimpleNamespace(
        parallel_config=one, cache_config=one, model_config=one, scheduler_config=one,
        speculative_config=one.speculative_config, kv_transfer_config=one.kv_transfer_config,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"pipeline_parallel_size": 2}, "2 pipeline stages: want 1"),
        ({"decode_context_parallel_size": 2}, "shared by 2 processes"),
        ({"cache_dtype": "fp8"}, "KV cache of fp8: want --kv-cache-dtype auto"),
        ({"enforce_eager": False}, "want --enforce-eager"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"prefill_context_parallel_size": 2}, "shared by 2 processes"),
        ({"use_ubatching": True}, "want no --enable-dbo"),
        ({"kv_transfer_config": object()}, "want no --kv-transfer-config"),
        ({"is_multimodal_pruning_enabled": lambda: True}, "want no --video-pruning-rate"),
    ],
)
def test_an_engine_that_cannot_attend_so_is_refused(changes, line):
    with pytest.raises(UsageError, match=line):
        check_engine(engine(**changes), parse_method("nsa"))


@pytest.mark.parametrize("name", ["nsa", "dense"])
def test_methods_that_read_in_parts_run(name):
    check_engine(engine(tensor_parallel_size=2), parse_method(name))


def test_keys_from_elsewhere_are_no_matter_to_dense_attention():
    check_engine(engine(kv_transfer_config=object()), parse_method("dense"))


@pytest.mark.parametrize("name", ["fastv", "visionzip", "evs+nsa", "vscan"])
def test_methods_whose_tokens_leave_are_refused(name):
    with pytest.raises(UsageError, match="tokens that leave"):
        check_engine(engine(), parse_method(name))


def test_what_needs_the_whole_sequence_is_refused():
    for method in (ReleasedNSA(), parse_method("nsa:selection_scope=block")):
        with pytest.raises(UsageError, match="which reads in parts"):
            check_engine(engine(), method)


WHOLE = {
    "enable_chunked_prefill": False, "enable_prefix_caching": False, "async_scheduling": False,
}  # fmt: skip


@pytest.mark.parametrize("name", ["tri_shape", "minference", "flexprefill", "xattention"])
def test_methods_of_whole_prompts_run_where_prompts_are_not_cut(name):
    check_engine(engine(**WHOLE), parse_method(name))
    wishes = ", ".join(f"--no-{option.replace('_', '-')}" for option in WHOLE)
    with pytest.raises(UsageError, match=f"{name} chooses keys .* want {wishes}$"):
        check_engine(engine(), parse_method(name))


@pytest.mark.parametrize(
    ("changes", "wish"),
    [
        ({"enable_chunked_prefill": True}, "--no-enable-chunked-prefill"),
        ({"enable_prefix_caching": True}, "--no-enable-prefix-caching"),
        ({"async_scheduling": True}, "--no-async-scheduling"),
        ({"long_prefill_token_threshold": 64}, "--long-prefill-token-threshold 0"),
    ],
)
def test_whatever_may_cut_a_prompt_is_named(changes, wish):
    with pytest.raises(UsageError, match=f"want {wish}$"):
        check_engine(engine(**WHOLE | changes), parse_method("tri_shape"))


def test_patterns_of_heads_are_not_shared_out():
    with pytest.raises(UsageError, match="--tensor-parallel-size 1"):
        check_engine(engine(tensor_parallel_size=2), parse_method("minference"))


@pytest.mark.parametrize(
    ("backend", "isa", "line"),
    [("FLEX", None, "pages cannot be read"), ("CPU_ATTN", "amx", "CPU kernels 'amx'")],
)
def test_pages_that_cannot_be_read_are_refused(backend, isa, line):
    check_kernels("FLASH_ATTN", None)
    check_kernels("CPU_ATTN", "vec")
    with pytest.raises(UsageError, match=line):
        check_kernels(backend, isa)


def test_the_method_is_that_of_the_checkpoint_or_one_that_is_named():
    config = VideoNSAConfig(attention="nsa", nsa={"block_size": 16})
    assert chosen_method(config, {}).spec.block_size == 16
    named = chosen_method(config, {"videonsa_method": "nsa:window_size=8"})
    assert (named.spec.block_size, named.spec.window_size) == (16, 8)
    assert chosen_method(config, {"videonsa_method": "tri_shape"}).name == "tri_shape"
    with pytest.raises(UsageError, match="wants gates"):
        chosen_method(VideoNSAConfig(attention="dense"), {"videonsa_method": "nsa"})
