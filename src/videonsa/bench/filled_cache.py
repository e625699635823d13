"""What a decode step reads: a cache of random keys and values, weights; and how fast it may."""

import statistics
import time
from typing import Any

import torch
from torch import nn

from videonsa.bench.stopwatch import wait_for
from videonsa.models.cache import RowMajorLayer, VideoNSACache
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.models.rows import text_rows

COPY_BYTES = {"cuda": 2**32, "cpu": 2**26}
COPIES = 7
NOT_DECODING = ("g_proj_1", "g_proj_2")
"""Of a decoder layer: the gates of video tokens."""


@torch.inference_mode()
def filled_cache(
    model: VideoNSAForConditionalGeneration, num_tokens: int, *, room: int
) -> VideoNSACache:
    """A cache of one sample that holds so many text tokens, with random normal keys and values.

    Nothing is prefilled: how long a step takes does not depend on what the keys are.

    Args:
        model: whose layers will read it.
        num_tokens: it holds.
        room: rows of memory behind them.
    """
    config, cache = model.config.get_text_config(), VideoNSACache()
    heads = config.num_key_value_heads
    shape = 1, num_tokens + room, heads, config.hidden_size // config.num_attention_heads
    generator = torch.Generator(model.device).manual_seed(0)
    for _ in range(config.num_hidden_layers):
        keys, values = (
            torch.randn(shape, generator=generator, device=model.device, dtype=model.dtype)
            for _ in range(2)
        )
        cache.layers.append(RowMajorLayer.holding(keys, values, num_rows=num_tokens))
    cache.tokens.append(
        text_rows(torch.zeros(1, dtype=torch.int64, device=model.device), num_tokens)
    )
    return cache


def row_bytes(config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers of a text config."""
    size = config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * config.num_key_value_heads * size * dtype.itemsize)


def decoding_bytes(language_model: nn.Module, head: nn.Module) -> int:
    """Weights that every decode step reads: layers, last norm and head, without embeddings."""
    named = {**dict(language_model.named_parameters()), **dict(language_model.named_buffers())}
    layers = [
        x
        for name, x in named.items()
        if not name.startswith("embed_tokens") and not set(name.split(".")) & set(NOT_DECODING)
    ]
    return sum(x.nbytes for x in (*layers, *head.parameters()))


def copy_tb_per_s(device: torch.device) -> float:
    """How fast memory is copied, bytes read and bytes written together, the median of a few."""
    source = torch.empty(COPY_BYTES[device.type], dtype=torch.int8, device=device)
    target = torch.zeros_like(source)
    times = []
    for _ in range(COPIES):
        wait_for(device)
        begin = time.perf_counter()
        target.copy_(source)
        wait_for(device)
        times.append(time.perf_counter() - begin)
    return 2 * source.nbytes / statistics.median(times) / 1e12
