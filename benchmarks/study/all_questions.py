"""All questions about a video in one forward: each, with each of its options, as if asked alone.

Video and question are causal, so one cache of the video serves all questions, and one reading of a
question all of its options. The tokens of all of them are read together; a mask keeps them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
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
    """Dense attention of text to the cache, and to what `seen` lets it see of itself."""

    seen: Tensor
    """Bool `[T, T]`: what each token sees of all of them."""
    masks: dict[int, Tensor] = field(default_factory=dict)
    """By the number of keys, which layers may differ in: what is added to the scores."""
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
        num_keys = k.shape[1]
        if num_keys not in self.masks:
            self.masks[num_keys] = _mask(self.seen, num_keys=num_keys, dtype=q.dtype)
        mask = self.masks[num_keys].expand(*lines.shape[:2], -1, -1)
        out = F.scaled_dot_product_attention(lines, keys, values, attn_mask=mask)
        return out.permute(2, 1, 0, 3).flatten(1, 2)[None]


def _mask(seen: Tensor, *, num_keys: int, dtype: torch.dtype) -> Tensor:
    """`[T, S]`: 0 where a token sees a key, else -inf; the tokens are the last of the S keys."""
    room = -(-num_keys // _ALIGNED) * _ALIGNED
    mask = torch.zeros(len(seen), room, dtype=dtype, device=seen.device)
    mask[:, num_keys - len(seen) : num_keys].masked_fill_(~seen, float("-inf"))
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
    laid = _Laid(*(x.to(context.model.device) for x in _lay(asked)))
    return _scored(laid, _logits(context, laid)[laid.predictors], asked)


@torch.inference_mode()
def score_read(
    context: Context, logits: Tensor, options: Sequence[Sequence[int]], answer: int
) -> Scored:
    """Score the one question that was read last; the context stays as it is.

    Args:
        context: of a model whose text tokens attend densely once a prompt is read.
        logits: `[1, V]`, after the last token of the prompt.
        options: as in `Asked`.
        answer: likewise.

    Raises:
        ModelError: logits that are not finite.
    """
    asked = [Asked((), options, answer)]
    laid = _Laid(*(x.to(context.model.device) for x in _lay(asked)))
    # Its own tokens come behind the prompt's last, which is where -1 points to.
    rows = torch.cat([logits, _logits(context, laid)])
    return _scored(laid, rows[laid.predictors + 1], asked)[0]


def _logits(context: Context, laid: _Laid) -> Tensor:
    """`[T, V]`, of tokens that follow what was read; they do not stay."""
    (start,) = context.cache.next_position
    with context.aside():
        logits: Tensor = context.model(
            input_ids=laid.ids[None],
            position_ids=(start + laid.ages).expand(3, 1, -1),
            past_key_values=context.cache,
            method=_Apart(laid.own_keys()),
        ).logits
    return logits[0]


def _scored(laid: _Laid, logits: Tensor, asked: Sequence[Asked]) -> list[Scored]:
    """Scores from the logits `[P, V]` that predict the tokens of all options."""
    rows = logits.float().log_softmax(-1)
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
