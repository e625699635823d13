"""Attention sinks: what each key received in each branch, and which keys are sinks by that.

Paper: a key is a sink if alpha > 0.1 and ||v|| < median(||v||) - 2 IQR(||v||), alpha being "the
average attention score received by the key". That leaves alpha open; two readings are kept.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.methods import Attended
from videonsa.models.recorder.protocol import Recorder, check_one_sample
from videonsa.models.step import StepTokens
from videonsa.ops import masks
from videonsa.ops.reference import compute_dtype, pool_blocks
from videonsa.ops.spec import BRANCHES, NSAResult, NSASpec
from videonsa.ops.varlen import BlockTable, block_borders, block_table

Reading = Literal["mean", "largest"]
READINGS: tuple[Reading, ...] = ("mean", "largest")
COMBINED, DENSE = "combined", "dense"
LEAST_ALPHA = 0.1
"""A sink's alpha is above it."""
IQRS = 2.0
"""So many interquartile ranges below the median lies the norm of a sink's value."""
FEWEST_QUERIES = 8
"""A key that fewer queries see has no average."""
SCORES_PER_CHUNK = 2**24
"""Probabilities of all query heads held at a time: 64 MiB in float32; about six times that is."""


@dataclass(kw_only=True, slots=True)
class Received:
    """What the S keys of a layer received from the queries that were looked at, in one branch.

    Of the compressed branch a key is a complete block, and its value the block's mean.
    """

    is_vision: Tensor
    """bool `[S]`."""
    norms: Tensor
    """float32 `[H, S]`: of the values."""
    total: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))
    """float64 `[H, S]`: sum over queries of the mean over the query heads of a KV head."""
    queries: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.int64))
    """int64 `[H, S]`: how many queries see the key in this branch."""
    largest: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    """float32 `[H, S]`: the most that one query gave it, the key's own left out, summed over the
    query heads of a KV head."""

    def alpha(self, reading: Reading) -> Tensor:
        """`[H, S]` float32; NaN where too few queries see a key.

        Args:
            reading: "mean": the mean over the queries that see the key, at most 1. "largest": see
                `largest`, at most G. With "mean", and all queries in the denominator, no head could
                have more than 10 sinks, and none an alpha above 1; the paper shows up to 147 and
                6.9 for dense attention with G = 7, which only "largest" allows.
        """
        alpha = self.largest if reading == "largest" else self.total.float() / self.queries
        seen: Tensor = alpha.where(self.queries >= FEWEST_QUERIES, torch.nan)
        return seen

    def norm_limit(self) -> Tensor:
        """`[H, 1]`: the norm below which a key may be a sink. Where it is 0 or less, none can."""
        low, middle, high = self.norms.quantile(torch.tensor([0.25, 0.5, 0.75]), dim=1)
        limit: Tensor = middle - IQRS * (high - low)
        return limit[:, None]

    def sinks(self, reading: Reading) -> Tensor:
        """Which keys are sinks, bool `[H, S]`."""
        return (self.alpha(reading) > LEAST_ALPHA) & (self.norms < self.norm_limit())

    def add(self, found: "Sums") -> None:
        """Add what some queries gave to the first keys."""
        size = self.norms.shape
        self.total = _widened(self.total, size) + _widened(found.total.cpu(), size)
        self.queries = _widened(self.queries, size) + _widened(found.queries.cpu(), size)
        largest = _widened(found.largest.float().cpu(), size)
        self.largest = torch.maximum(_widened(self.largest, size), largest)


class Sums(NamedTuple):
    """What some queries gave to S keys: as in `Received`."""

    total: Tensor
    queries: Tensor
    largest: Tensor


class SinkRecorder(Recorder):
    """Sums up what each key receives from vision tokens, branch by branch, exactly.

    Time grows with queries times keys, memory with the keys alone. Text tokens attend densely with
    either method and are few: what they give is left out. `combined` is the weight with which a
    token's value enters the gated sum, that of its block's mean included: exact, as the branches
    are linear in the values; it sums up to the sum of the gates. `dense` has all keys, text too.
    """

    wants_branches = True

    def __init__(self, *, stride: int = 1) -> None:
        """Args: stride: one of so many vision tokens is looked at as a query; all are as keys."""
        self._stride = stride
        self._layers: dict[int, dict[str, Received]] = {}
        self._tokens: StepTokens | None = None
        self._frame_sizes: list[int] = []

    def received(self) -> list[dict[str, Received]]:
        """Layer by layer, by branch; "combined" beside NSA's three, or "dense" alone."""
        return [self._layers[layer] for layer in sorted(self._layers)]

    def begin_step(self, tokens: StepTokens) -> None:
        """Take note of the keys of a step.

        Raises:
            UsageError: more than one sample.
        """
        check_one_sample(tokens)
        self._tokens = tokens if tokens.has_vision else None
        self._frame_sizes = [size for size in tokens.frame_sizes() if size]

    @torch.no_grad()
    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add what the vision tokens of a step give.

        Raises:
            UsageError: attention that is neither dense nor NSA over the vision stream.
        """
        if self._tokens is None or attended.values is None:
            return
        if attended.lists is not None or (attended.spec and attended.spec.stream != "vision"):
            raise UsageError(
                "sinks are counted for dense attention and paper NSA: name one of them"
            )
        q, k, v = q[0], k[0], attended.values[0]
        is_vision = self._tokens.vision_mask[0].to(q.device)
        number = is_vision.cumsum(0) - 1
        first = len(is_vision) - len(q)
        looked_at = is_vision[first:] & (number[first:] % self._stride == 0)
        rows = looked_at.nonzero()[:, 0]
        if not len(rows):
            return
        known = self._layers.setdefault(layer, {})
        if attended.result is None or attended.spec is None:
            parts = dense_sums(q, k, rows, first)
            self._add(known, DENSE, parts, v, is_vision)
            return
        stream = Stream(
            rows=rows,
            places=number[first:][rows],
            k=k[is_vision],
            v=v[is_vision],
            blocks=_blocks(attended.spec, self._frame_sizes, int(is_vision.sum()), q.device),
        )
        v_cmp = pool_blocks(stream.v[None], stream.blocks)[0]
        ones = torch.ones(len(stream.v), dtype=torch.bool)
        for sums in nsa_sums(q, attended.result, attended.gates, stream, spec=attended.spec):
            for name, found in sums.items():
                values = v_cmp if name == "compressed" else stream.v
                self._add(known, name, iter([found]), values, ones[: len(values)])

    def _add(
        self,
        known: dict[str, Received],
        name: str,
        parts: Iterator[Sums],
        values: Tensor,
        is_vision: Tensor,
    ) -> None:
        norms = values.float().norm(dim=-1).mT.cpu()  # [H, S]
        one = known.setdefault(name, Received(is_vision=is_vision.cpu(), norms=norms))
        one.is_vision, one.norms = is_vision.cpu(), norms
        for found in parts:
            one.add(found)


class Stream(NamedTuple):
    """The vision keys of a step, M of them, and which rows are looked at."""

    rows: Tensor
    """int64 `[R]`, ascending, among the T rows."""
    places: Tensor
    """int64 `[R]`: theirs among the M keys."""
    k: Tensor  # [M, H, D]
    v: Tensor  # [M, H, D]
    blocks: BlockTable


def nsa_sums(
    q: Tensor, result: NSAResult, gates: Tensor | None, stream: Stream, *, spec: NSASpec
) -> Iterator[dict[str, Sums]]:
    """What rows give in each branch and in the gated sum, chunk by chunk.

    Args:
        q: `[T, HQ, D]`.
        result: of the layer, with LSEs and selection.
        gates: `[1, T, HQ, 3]`.
        stream: the keys, and which rows.
        spec: of the result.
    """
    assert gates is not None, "NSA has gates"
    num_keys, num_heads, _ = stream.k.shape
    k_cmp = pool_blocks(stream.k[None], stream.blocks)[0]
    sizes = stream.blocks.offsets[0].diff()[: len(k_cmp)]
    block = masks.block_of(stream.blocks.offsets, torch.arange(num_keys, device=q.device))[0]
    on = torch.tensor([name in spec.branches for name in BRANCHES], device=q.device)
    for chosen in _chunks(len(stream.rows), num_keys * q.shape[1]):
        rows, places = stream.rows[chosen], stream.places[chosen]
        stop = int(places[-1]) + 1
        keys, of_key = torch.arange(stop, device=q.device), block[:stop]
        before = masks.causal(places, keys)  # [R, S]
        grouped = _queries(q[rows], num_heads)
        lses = [_grouped(x[0, rows], num_heads) for x in (result.lse_cmp, result.lse_slc)]
        lses.append(_grouped(result.lse_win[0, rows], num_heads))
        scores = grouped @ _heads(stream.k[:stop]).mT  # [H, G, R, S]
        seen_cmp = masks.visible(stream.blocks.offsets, places)[0, :, : len(k_cmp)]
        cmp = _weights(grouped @ _heads(k_cmp).mT, lses[0], seen_cmp)
        member = masks.membership(result.selected_blocks[0, rows], stream.blocks.num_blocks)
        seen_slc = member.transpose(0, 1)[..., of_key] & before  # [H, R, S]
        seen_win = masks.windowed(places, keys, spec.window_size)
        slc = _weights(scores, lses[1], seen_slc[:, None])
        win = _weights(scores, lses[2], seen_win)
        own = keys == places[:, None]
        weight = _grouped(gates[0, rows] * on, num_heads).to(cmp.dtype)  # [H, G, R, 3]
        padded = torch.nn.functional.pad(cmp / sizes, (0, stream.blocks.num_blocks - len(k_cmp)))
        combined = weight[..., 1, None] * slc + weight[..., 2, None] * win
        combined += weight[..., 0, None] * padded[..., of_key]
        yield {
            "compressed": _sums(cmp, seen_cmp, None),
            "selected": _sums(slc, seen_slc, own),
            "window": _sums(win, seen_win, own),
            COMBINED: _sums(combined, before, own),
        }


def dense_sums(q: Tensor, k: Tensor, rows: Tensor, first: int) -> Iterator[Sums]:
    """What rows give in dense causal attention, chunk by chunk.

    Args:
        q: `[T, HQ, D]`.
        k: `[S, H, D]`.
        rows: int64 `[R]`, ascending, among the T.
        first: place of the first of the T among the S keys.
    """
    num_keys, num_heads, _ = k.shape
    for chosen in _chunks(len(rows), num_keys * q.shape[1]):
        places = rows[chosen] + first
        keys = torch.arange(int(places[-1]) + 1, device=q.device)
        before = masks.causal(places, keys)
        scores = _queries(q[rows[chosen]], num_heads) @ _heads(k[: len(keys)]).mT
        weights = scores.masked_fill_(~before, -torch.inf).softmax(-1)
        yield _sums(weights, before, keys == places[:, None])


def _chunks(num_rows: int, scores_per_row: int) -> Iterator[slice]:
    size = max(1, SCORES_PER_CHUNK // scores_per_row)
    return (slice(start, start + size) for start in range(0, num_rows, size))


def _weights(scores: Tensor, lse: Tensor, seen: Tensor) -> Tensor:
    """Probabilities `[H, G, R, S]`: 0 where a row does not see a key."""
    return (scores - lse[..., None]).masked_fill_(~seen, -torch.inf).exp_()


def _sums(weights: Tensor, seen: Tensor, own: Tensor | None) -> Sums:
    """Over rows; `weights` `[H, G, R, S]`, `seen` and `own` broadcast to `[H, R, S]`."""
    queries = seen.sum(-2).expand(len(weights), -1)
    others = weights.sum(1)
    total = others.sum(1, dtype=torch.float64) / weights.shape[1]
    if own is not None:
        others = others.masked_fill_(own, 0)
    return Sums(total, queries, others.amax(1))


def _blocks(spec: NSASpec, frames: list[int], num_keys: int, device: torch.device) -> BlockTable:
    sizes = frames if spec.block_size == "frame" else None
    return block_table(block_borders(spec.block_size, sizes, [num_keys]), num_keys, device=device)


def _heads(x: Tensor) -> Tensor:
    """`[S, H, D]` -> `[H, 1, S, D]` in the compute dtype."""
    return x.to(compute_dtype(x)).transpose(0, 1)[:, None]


def _queries(q: Tensor, num_heads: int) -> Tensor:
    """`[R, HQ, D]` -> `[H, G, R, D]` in the compute dtype, scaled."""
    return _grouped(q.to(compute_dtype(q)) * q.shape[-1] ** -0.5, num_heads)


def _grouped(x: Tensor, num_heads: int) -> Tensor:
    """`[R, HQ, ...]` -> `[H, G, R, ...]`."""
    grouped: Tensor = x.unflatten(1, (num_heads, -1))
    return grouped.movedim(0, 2)


def _widened(x: Tensor, size: torch.Size) -> Tensor:
    """Zeros for the keys that came after."""
    return torch.nn.functional.pad(x, (0, size[1] - x.shape[1], 0, size[0] - x.shape[0]))
