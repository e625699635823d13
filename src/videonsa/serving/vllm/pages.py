"""Pages of vLLM's KV cache: what a request has in them, as one stretch.

A layer's cache is `[pages, H, page, 2 * D]`, in whatever order of memory. What vLLM calls a block
is a page here: a block is what NSA selects.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from videonsa.errors import UsageError

KeysAndValues = tuple[Tensor, Tensor]
Gather = Callable[[Tensor, Tensor, int], KeysAndValues]
"""From a layer's cache, the pages of a request in order, int `[n]`, and a number of tokens S to its
first S keys and values, `[1, S, H, D]` each."""

_WIDE = torch.complex128
"""Copied as such, 16 bytes at a time: a GPU copies element by element here."""


def gather_plain(cache: Tensor, pages: Tensor, num_tokens: int) -> KeysAndValues:
    """Of pages in which key and value of a token lie behind one another (FlashAttention)."""
    needed = _needed(pages, num_tokens, cache.shape[2])
    halves = cache.transpose(1, 2).view(_WIDE).chunk(2, dim=-1)
    k, v = (half[needed].view(cache.dtype) for half in halves)  # [n, page, H, D]
    return _stretch(k, num_tokens), _stretch(v, num_tokens)


def gather_transposed(cache: Tensor, pages: Tensor, num_tokens: int) -> KeysAndValues:
    """Of pages that hold all keys, a column each, and then all values (vLLM's CPU kernels)."""
    page, width = cache.shape[2], cache.shape[3] // 2
    found = cache[_needed(pages, num_tokens, page)].flatten(2)  # [n, H, 2 * D * page]
    columns, rows = found.split(page * width, dim=-1)
    k = columns.unflatten(-1, (width, page)).permute(0, 3, 1, 2)  # [n, page, H, D]
    v = rows.unflatten(-1, (page, width)).transpose(1, 2)
    return _stretch(k, num_tokens), _stretch(v, num_tokens)


GATHERS: Mapping[str, Gather] = MappingProxyType(
    {"FLASH_ATTN": gather_plain, "CPU_ATTN": gather_transposed}
)
"""By the name of vLLM's attention backend."""


def gather_of(backend: str) -> Gather:
    """What gathers from the pages of a backend.

    Raises:
        UsageError: one whose order of memory is not known.
    """
    if backend not in GATHERS:
        raise UsageError(
            f"attention backend {backend}: its pages cannot be read, want one of "
            f"{', '.join(sorted(GATHERS))} (vLLM's --attention-backend)"
        )
    return GATHERS[backend]


def _needed(pages: Tensor, num_tokens: int, page: int) -> Tensor:
    return pages[: -(-num_tokens // page)].long()


def _stretch(pages: Tensor, num_tokens: int) -> Tensor:
    """`[n, page, H, D]` to `[1, S, H, D]`."""
    return pages.flatten(0, 1)[:num_tokens].unsqueeze(0).contiguous()
