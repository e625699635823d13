"""What this package's attention cannot do in vLLM: refused where the model is loaded."""

from collections.abc import Mapping
from typing import Any

from videonsa.errors import UsageError
from videonsa.models.methods import AttentionMethod, Dense, parse_method
from videonsa.models.methods.minference import MInference
from videonsa.models.methods.reduction import TokenReduction
from videonsa.models.methods.sparse_prefill import SparsePrefill
from videonsa.serving.vllm.pages import gather_of

METHOD = "videonsa_method"
"""In vLLM's --additional-config: a method as text."""
PLAIN_CACHES = ("auto", "float16", "bfloat16", "float32")
CPU_ORDER = "vec"
"""The CPU kernels whose order of keys in a page is known."""


def chosen_method(config: Any, additional: Any) -> AttentionMethod:
    """How vision tokens attend: as `--additional-config` says, else as the checkpoint does.

    Args:
        config: of the model.
        additional: vLLM's.

    Raises:
        UsageError: a text of no method, or one that wants gates where the model has none.
    """
    text = additional.get(METHOD) if isinstance(additional, Mapping) else None
    if text is None:
        method: AttentionMethod = config.method
        return method
    method = parse_method(text, spec=config.nsa_spec).of_depth(config.text_config.num_hidden_layers)
    if method.uses_gates and not config.gates:
        raise UsageError(
            f"method {method.name!r} wants gates, which this checkpoint has not: choose another"
        )
    return method


def check_engine(options: Any, method: AttentionMethod) -> None:
    """Refuse what would be wrong, or never run.

    Args:
        options: vLLM's config.
        method: how vision tokens attend.

    Raises:
        UsageError: what came and what to ask for.
    """
    parallel = options.parallel_config
    stages, cache = parallel.pipeline_parallel_size, options.cache_config.cache_dtype
    shares = max(parallel.decode_context_parallel_size, parallel.prefill_context_parallel_size)
    came = {
        f"{stages} pipeline stages: want 1, --tensor-parallel-size divides a model": stages > 1,
        f"a context shared by {shares} processes: want --decode-context-parallel-size 1 and "
        "--prefill-context-parallel-size 1": shares > 1,
        "steps in two halves: want no --enable-dbo": parallel.use_ubatching,
        "compiled steps or CUDA graphs: vision tokens are attended to by rules of each step, want "
        "--enforce-eager": not options.model_config.enforce_eager,
        f"a KV cache of {cache}: want --kv-cache-dtype auto": cache not in PLAIN_CACHES,
        "keys and values from elsewhere: which of their tokens are vision is not known, want no "
        "--kv-transfer-config and no --kv-offloading-size": (
            options.kv_transfer_config is not None and not isinstance(method, Dense)
        ),
        "speculative decoding: it was never tried, want none": options.speculative_config
        is not None,
        "video pruning, which would do nothing: want no --video-pruning-rate": (
            options.model_config.multimodal_config.is_multimodal_pruning_enabled()
        ),
    }
    for what, is_there in came.items():
        if is_there:
            raise UsageError(f"vLLM with {what}")
    _check_method(options, method)


def _check_method(options: Any, method: AttentionMethod) -> None:
    if isinstance(method, TokenReduction) or method.leaves_after:
        raise UsageError(
            f"method {method.full_name!r} in vLLM: tokens that leave would have no keys in its "
            "pages, want one that changes attention alone"
        )
    why = method.why_at_once()
    if why is None:
        return
    if not isinstance(method, SparsePrefill):
        raise UsageError(f"method {method.full_name!r} in vLLM, which reads in parts: {why}")
    if isinstance(method, MInference) and options.parallel_config.tensor_parallel_size > 1:
        raise UsageError(
            f"method {method.name!r} over {options.parallel_config.tensor_parallel_size} processes:"
            " its patterns are those of all heads, want --tensor-parallel-size 1"
        )
    if wanted := _cuts_prompts(options):
        raise UsageError(f"method {method.name!r} in vLLM ({why}): want {', '.join(wanted)}")


def _cuts_prompts(options: Any) -> list[str]:
    """What to ask vLLM for so that it reads every prompt in one step.

    It cuts prompts before a video that has no room in its cache of features. That is as large as a
    step, and only where steps are planned ahead do features of the step before still lie in it.
    """
    scheduler = options.scheduler_config
    came = {
        "--no-enable-chunked-prefill": scheduler.enable_chunked_prefill,
        "--no-enable-prefix-caching": options.cache_config.enable_prefix_caching,
        "--no-async-scheduling": scheduler.async_scheduling,
        "--long-prefill-token-threshold 0": scheduler.long_prefill_token_threshold > 0,
    }
    return [wish for wish, is_there in came.items() if is_there]


def check_kernels(backend: str, isa: str | None) -> None:
    """Refuse attention whose pages cannot be read.

    Args:
        backend: vLLM's name of it.
        isa: which of its CPU kernels; None on a GPU.

    Raises:
        UsageError: a backend or CPU kernels whose order of memory is not known.
    """
    gather_of(backend)
    if isa not in (None, CPU_ORDER):
        raise UsageError(
            f"CPU kernels {isa!r}: the order of keys in their pages is not known, want "
            f"{CPU_ORDER!r}: --dtype float32, and --block-size a multiple of 32"
        )
