"""Which requests of a vLLM step attend by the method, and what it prepares for them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from videonsa.models.methods import AttentionMethod
from videonsa.models.step import AttentionStep, StepTokens, build_step
from videonsa.serving.vllm.marks import TEXT, frame_sizes, marks_of


class RequestStep(NamedTuple):
    """New tokens of one request that attend by the method."""

    rows: slice
    """Of the tokens of the step."""
    pages: Tensor
    """int `[n]`: its own, in order."""
    num_tokens: int
    """S: what it has read, these tokens too."""
    step: AttentionStep


@dataclass(frozen=True, slots=True)
class SparseStep:
    """A step of vLLM in which some requests attend by the method."""

    requests: tuple[RequestStep, ...]
    rest_rows: Tensor
    """int64: tokens of the other requests."""
    rest_metadata: Any
    """What vLLM's kernels need for these alone."""


def sparse_step(
    method: AttentionMethod,
    metadata: Any,
    *,
    marks: Tensor,
    page: int,
    positions: Tensor,
    is_vision: Tensor | None,
    metadata_of: Any,
) -> SparseStep | None:
    """What the layers need, worked out once; None where vLLM's own kernels do everything.

    Args:
        method: how vision tokens attend, or all of a prompt where it reads prompts at once.
        metadata: vLLM's, of any of its layers: they have the same requests and pages.
        marks: of the cache, those of this step too.
        page: tokens in one.
        positions: int64 `[3, T]`.
        is_vision: bool `[T]`, on the CPU; None: all is text.
        metadata_of: makes vLLM's metadata of some of the requests.
    """
    at_once = method.why_at_once() is not None
    if is_vision is None:
        if not at_once or metadata.max_query_len == 1:
            return None  # and the GPU was not waited for
        is_vision = torch.zeros(positions.shape[1], dtype=torch.bool)
    spans = [slice(*pair) for pair in pairwise(metadata.query_start_loc.tolist())]
    lengths = metadata.seq_lens.tolist()
    requests, rest = [], []
    for number, rows in enumerate(spans):
        has_vision = bool(is_vision[rows].any())
        if not has_vision and (rows.stop - rows.start == 1 or not at_once):
            rest.append(number)
            continue
        pages, num_tokens = metadata.block_table[number], lengths[number]
        tokens = _tokens(
            marks_of(marks, pages, num_tokens, page), positions[:, rows], has_vision=has_vision
        )
        requests.append(RequestStep(rows, pages, num_tokens, build_step(method, tokens)))
    return SparseStep(
        tuple(requests),
        _rows_of(spans, rest).to(positions.device),
        metadata_of(metadata, rest) if rest else None,
    )


def _tokens(marks: Tensor, positions: Tensor, *, has_vision: bool) -> StepTokens:
    return StepTokens(
        num_tokens=positions.shape[1],
        has_vision=has_vision,
        vision_mask=(marks != TEXT)[None],
        attention_mask=None,
        position_ids=positions[:, None],
        frame_sizes=lambda: frame_sizes(marks),
        is_last=False,
    )


def _rows_of(spans: Sequence[slice], numbers: Sequence[int]) -> Tensor:
    found = [torch.arange(spans[number].start, spans[number].stop) for number in numbers]
    return torch.cat(found) if found else torch.empty(0, dtype=torch.int64)


def some_requests(metadata: Any, numbers: Sequence[int], **changes: Any) -> Any:
    """Metadata of some requests, as vLLM would make it of these alone.

    Args:
        metadata: of all.
        numbers: of those wanted.
        changes: further fields.
    """
    starts = metadata.query_start_loc.tolist()
    spans = [slice(starts[number], starts[number + 1]) for number in numbers]
    lengths = torch.tensor([span.stop - span.start for span in spans])
    which = torch.tensor(numbers, device=metadata.seq_lens.device)
    rows = _rows_of(spans, range(len(spans))).to(metadata.slot_mapping.device)
    begins = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    seq_lens = metadata.seq_lens[which]
    return replace(
        metadata,
        num_actual_tokens=int(lengths.sum()),
        max_query_len=int(lengths.max()),
        query_start_loc=begins.to(metadata.query_start_loc),
        seq_lens=seq_lens,
        max_seq_len=int(seq_lens.max()),
        block_table=metadata.block_table[which],
        slot_mapping=metadata.slot_mapping[rows],
        **changes,
    )
