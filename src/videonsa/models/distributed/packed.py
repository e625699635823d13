"""Packed samples: several in one row of ids, one behind the other, that do not see each other."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models._hf import Cache
from videonsa.models.call import ModelCall
from videonsa.video.chat import IGNORED_LABEL


def sample_lengths(cu_seqlens: Tensor, shape: Sequence[int]) -> list[int]:
    """Rows of each packed sample.

    Args:
        cu_seqlens: int32 `[N + 1]`, where each sample begins, and the end.
        shape: of the ids, `[1, T]`.

    Raises:
        UsageError: lengths that do not describe the ids.
    """
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1:
        raise UsageError(
            f"cu_seqlens is {cu_seqlens.dtype} {list(cu_seqlens.shape)}: want int32 [N + 1]"
        )
    bounds: list[int] = cu_seqlens.tolist()
    lengths = [stop - start for start, stop in pairwise(bounds)]
    rising = min(lengths, default=0) >= 1
    if not rising or shape[0] != 1 or bounds[0] != 0 or bounds[-1] != shape[1]:
        raise UsageError(
            f"cu_seqlens is {bounds} for ids of {list(shape)}: want one row of ids, and where each "
            "sample begins, rising from 0, then the end of the row"
        )
    return lengths


def check_goes_whole(
    what: str,
    call: ModelCall,
    attention_mask: Tensor | None,
    cache: Cache | None,
    use_cache: bool | None,
) -> None:
    """Refuse what a call asks for beside packed samples, or beside other processes.

    Args:
        what: `cu_seqlens` or `cp_group`.
        call: what it asks for.
        attention_mask: as it was given.
        cache: as it was given.
        use_cache: as it was given.

    Raises:
        UsageError: naming it.
    """
    method, recorder, kept = call.method, call.recorder, call.logits_to_keep
    came = {
        "attention_mask": attention_mask is not None,
        "a cache": cache is not None or bool(use_cache),
        "rows_per_chunk": bool(call.rows_per_chunk),
        "a recorder": recorder is not None and not recorder.takes_packed,
        "logits_to_keep": what == "cp_group" and (isinstance(kept, Tensor) or kept > 0),
        "the released preset": method.takes_packed and not method.is_causal,
        f"method {method.name!r}, which takes no packed samples": not method.takes_packed,
        "tokens that leave": bool(method.leaves_after),
    }
    found = [what for what, given in came.items() if given]
    if found:
        raise UsageError(
            f"{what} with {' and '.join(found)}: the rows have no padding then and go through the "
            "layers once, whole; leave it out"
        )


def labels_within(labels: Tensor, lengths: Sequence[int]) -> Tensor:
    """Labels `[1, T]` without the first token of each sample.

    In the loss every row predicts the next, and before that token stands another sample.
    """
    firsts = torch.tensor([0, *accumulate(lengths[:-1])]).to(labels.device)
    return labels.index_fill(1, firsts, IGNORED_LABEL)
