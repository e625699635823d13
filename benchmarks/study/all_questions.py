"""All questions about a video in one forward: each, with each of its options, as if asked alone.

Video and question are causal, so one cache of the video serves all questions, and one reading of a
question all of its options. The tokens of all of them are read together; a mask keeps them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.inference.context import Context
from videonsa.inference.generation import not_finite
from videonsa.models.attention import HybridAttention
from videonsa.models.methods import AttentionMethod
from videonsa.models.step import AttentionStep

_ALIGNED = 16
"""Elements that a row of a mask begins at a multiple of: fused attention copies others."""


class Asked(NamedTuple):
    """A question in tokens."""

    question: Sequence[int]
    """From the end of the video up to where the answer begins."""
    options: Sequence[Sequence[int]]
    """Tokens of each, with the one that ends an answer."""
    answer: int
    """Which of the options is right."""


class Scored(NamedTuple):
    """What a model makes of a question."""

    free: bool
    """Whether greedy decoding writes the right answer, and ends there."""
    likeliest: int
    """The option that is written, and ended, with the highest probability; the first of equals."""


class _Laid(NamedTuple):
    """T tokens: of each question its own, then those of its options but for their last."""

    ids: Tensor  # int64 [T]
    ages: Tensor  # int64 [T]: tokens since the end of the video, as if asked alone
    question: Tensor  # int64 [T]: number of the question
    option: Tensor  # int64 [T]: number of the option among all; -1 in a question
    predictors: Tensor  # int64 [P]: the token behind which each token of an option comes
    targets: Tensor  # int64 [P]: those tokens
    owners: Tensor  # int64 [P]: numbers of their options among all

    def own_keys(self) -> Tensor:
        """Bool [T, T]: what each token sees of all of them."""
        order = torch.arange(len(self.ids), device=self.ids.device)
        same = self.question[:, None] == self.question
        shared = (self.option == -1) | (self.option[:, None] == self.option)
        return same & shared & (order[:, None] >= order)


def _lay(asked: Sequence[Asked]) -> _Laid:
    ids: list[int] = []
    rows: list[tuple[int, int, int]] = []
    told: list[tuple[int, int, int]] = []
    number = 0
    for index, (question, options, _) in enumerate(asked):
        rows += [(age, index, -1) for age in range(len(question))]
        ids += question
        last = len(ids) - 1
        for option in options:
            before = [last, *range(len(ids), len(ids) + len(option) - 1)]
            told += [(row, token, number) for row, token in zip(before, option, strict=True)]
            rows += [(len(question) + age, index, number) for age in range(len(option) - 1)]
            ids += option[:-1]
            number += 1
    return _Laid(torch.tensor(ids), *torch.tensor(rows).T, *torch.tensor(told).T)


@dataclass(frozen=True, eq=False)
class _Apart(AttentionMethod):
    """Dense attention of text to the cache, and to what `mask` lets it see of itself."""

    mask: Tensor
    """Added to the scores, `[T, S]`."""
    name = "dense"

    def attend(
        self,
        layer: HybridAttention,
        hidden: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        step: AttentionStep,
    ) -> Tensor:
        """See `AttentionMethod`; B = 1."""
        num_kv_heads = k.shape[2]
        lines = q[0].unflatten(1, (num_kv_heads, -1)).permute(2, 1, 0, 3)  # [G, H, T, D]
        keys, values = (x.transpose(1, 2).expand(len(lines), -1, -1, -1) for x in (k, v))
        mask = self.mask.expand(*lines.shape[:2], -1, -1)
        out = F.scaled_dot_product_attention(lines, keys, values, attn_mask=mask)
        return out.permute(2, 1, 0, 3).flatten(1, 2)[None]


def _mask(laid: _Laid, *, num_read: int, dtype: torch.dtype) -> Tensor:
    """`[T, num_read + T]`: 0 where a token sees a key, else -inf."""
    num_keys = num_read + len(laid.ids)
    room = -(-num_keys // _ALIGNED) * _ALIGNED
    mask = torch.zeros(len(laid.ids), room, dtype=dtype, device=laid.ids.device)
    mask[:, num_read:num_keys].masked_fill_(~laid.own_keys(), float("-inf"))
    return mask[:, :num_keys]


@torch.inference_mode()
def score_all(context: Context, asked: Sequence[Asked]) -> list[Scored]:
    """Score questions about what one sample has read; the context stays as it is.

    Args:
        context: of a model whose text tokens attend densely; a video was read last.
        asked: the questions.

    Raises:
        ModelError: logits that are not finite.
    """
    model, cache = context.model, context.cache
    laid = _Laid(*(x.to(model.device) for x in _lay(asked)))
    (start,) = cache.next_position
    with context.aside():
        logits = model(
            input_ids=laid.ids[None],
            position_ids=(start + laid.ages).expand(3, 1, -1),
            past_key_values=cache,
            method=_Apart(_mask(laid, num_read=context.num_tokens, dtype=model.dtype)),
        ).logits[0]
    rows = logits[laid.predictors].float().log_softmax(-1)
    of_tokens = rows.gather(1, laid.targets[:, None])[:, 0]
    is_first = rows.argmax(-1) == laid.targets
    counts = [len(one.options) for one in asked]
    sums = torch.zeros(sum(counts), device=rows.device).index_add_(0, laid.owners, of_tokens)
    missed = torch.zeros(sum(counts), device=rows.device).index_add_(
        0, laid.owners, (~is_first).float()
    )
    if not bool(sums.isfinite().all()):
        raise not_finite("an answer to weigh")
    scores, misses = sums.cpu().split(counts), missed.cpu().split(counts)
    return [
        Scored(free=bool(lost[one.answer] == 0), likeliest=int(score.argmax()))
        for one, score, lost in zip(asked, scores, misses, strict=True)
    ]
