"""`PatternSearch`: which vertical-slash sizes keep most of the attention of each head."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.recorder.protocol import Recorder, check_one_sample
from videonsa.ops.estimators.vertical_slash import NUM_PROBES, kept_columns, line_scores

if TYPE_CHECKING:
    from videonsa.models.methods import Attended
    from videonsa.models.methods.head_patterns import Sizes
    from videonsa.models.step import StepTokens

FIRST_ROW = 2500
"""Rows before it attend to few keys, and are not scored."""
VERTICAL_SLASH = ((30, 800), (100, 750), (500, 700), (3500, 100))
A_SHAPE = (100, 800)
"""First keys, and how far back a row sees; where it keeps most, its sizes are taken."""
BLOCK, BLOCK_SHARE = 32, 8
"""Of block-sparse attention: its tokens, and that one of so many key blocks is kept."""
BLOCK_SIZES = (1000, 6096)
"""What is taken where block-sparse attention keeps most."""
NUM_LOCAL = 30
"""Nearest offsets that are kept while searching."""
SCORES_PER_CHUNK = 2**25
"""Scores held at a time: 128 MiB in float32."""


class PatternSearch(Recorder):
    """Searches the sizes of each head while a prompt is read densely (MInference, section 3.2).

    Each candidate keeps some pairs, to the token. Of the rows from `first_row` on, the mean sum of
    their attention to these is its score: the highest wins, the first of equals.
    """

    def __init__(self, *, first_row: int = FIRST_ROW) -> None:
        """Args: first_row: of those that are scored."""
        self._first_row = first_row
        self._sizes: dict[int, tuple[Sizes, ...]] = {}
        self._is_prompt = False

    @property
    def sizes(self) -> "tuple[tuple[Sizes, ...], ...]":
        """Of each layer and head."""
        return tuple(self._sizes[layer] for layer in sorted(self._sizes))

    def begin_step(self, tokens: "StepTokens") -> None:
        """Look at the prompt alone.

        Raises:
            UsageError: more than one sample, or a prompt read in parts or too short to be scored.
        """
        check_one_sample(tokens)
        self._is_prompt = not self._sizes
        if not self._is_prompt:
            return
        num_keys = tokens.vision_mask.shape[1]
        if tokens.num_tokens < num_keys or not tokens.is_last:
            raise UsageError("a prompt read in parts: patterns are searched in one step")
        if num_keys <= self._first_row:
            raise UsageError(
                f"a prompt of {num_keys} tokens: rows are scored from {self._first_row} on; take a "
                "longer video or more frames"
            )

    def record(self, layer: int, q: Tensor, k: Tensor, attended: "Attended") -> None:
        """See `Recorder`."""
        if not self._is_prompt:
            return
        group = q.shape[2] // k.shape[2]
        heads = range(q.shape[2])
        self._sizes[layer] = tuple(
            best_sizes(q[0, :, head], k[0, :, head // group], first_row=self._first_row)
            for head in heads
        )


@torch.no_grad()
def best_sizes(q: Tensor, k: Tensor, *, first_row: int) -> "Sizes":
    """The sizes of one head; see `PatternSearch`.

    Args:
        q: `[T, D]`.
        k: `[T, D]`, T > first_row.
        first_row: of those that are scored.
    """
    vertical, slash = line_scores(q[-NUM_PROBES:, None], k[:, None])
    slash[:, :NUM_LOCAL] = torch.inf
    blocks = _kept_blocks(q, k)
    kept = torch.zeros(len(VERTICAL_SLASH) + 2, device=q.device, dtype=torch.float64)
    lines = [
        (kept_columns(vertical, [columns])[0], _largest(slash[0], offsets))
        for columns, offsets in VERTICAL_SLASH
    ]
    keys = torch.arange(len(k), device=q.device)
    for rows, attention in _attention(q, k, first_row):
        init, back = A_SHAPE
        masks = [(keys < init) | (rows[:, None] - keys <= back)]
        masks += [columns | _diagonals(offsets, rows) for columns, offsets in lines]
        masks += [blocks[rows // BLOCK][:, keys // BLOCK]]
        kept += torch.stack([(attention * mask).sum() for mask in masks]).double()
    best = int(kept.argmax())
    return (A_SHAPE, *VERTICAL_SLASH, BLOCK_SIZES)[best]


def _attention(q: Tensor, k: Tensor, first_row: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows from the first one on, some at a time: their numbers, and `[rows, T]` float32."""
    at_once = max(1, SCORES_PER_CHUNK // len(k))
    keys = torch.arange(len(k), device=q.device)
    q, k = q.float() * q.shape[-1] ** -0.5, k.float()
    for rows in keys[first_row:].split(at_once):
        scores = q[rows] @ k.mT
        yield rows, scores.masked_fill_(keys > rows[:, None], -torch.inf).softmax(-1)


def _largest(scores: Tensor, size: int) -> Tensor:
    """Bool: the largest of `[T]`."""
    found = scores.topk(min(size, len(scores))).indices
    return torch.zeros_like(scores, dtype=torch.bool).scatter(0, found, True)


def _diagonals(offsets: Tensor, rows: Tensor) -> Tensor:
    """Which pairs lie on the offsets kept, bool `[n, T]`; of rows that follow one another."""
    keys = torch.arange(len(offsets), device=rows.device)
    back = rows[:, None] - keys
    return offsets[back.clamp(min=0)] & (back >= 0)


def _kept_blocks(q: Tensor, k: Tensor) -> Tensor:
    """Bool `[R, R]`: the key blocks whose mean key suits the mean query of a query block best."""
    padding = -len(k) % BLOCK
    means = [F.pad(x.float(), (0, 0, 0, padding)).unflatten(0, (-1, BLOCK)).mean(1) for x in (q, k)]
    scores = means[0] @ means[1].mT
    later = torch.ones_like(scores, dtype=torch.bool).triu(1)
    scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    size = max(len(scores) // BLOCK_SHARE, 1)
    found = scores.topk(size, dim=1).indices
    return torch.zeros_like(later).scatter(1, found, True)
