"""Which frames are selected, and whether the frames that hold some evidence are among them."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.methods import Attended
from videonsa.models.recorder.frames import FrameRecorder
from videonsa.models.step import StepTokens
from videonsa.ops import masks
from videonsa.ops.reference import compute_dtype, pool_blocks
from videonsa.ops.spec import NSASpec
from videonsa.ops.varlen import BlockTable, block_borders, block_table

RANKINGS = ("chance", "selected", "compressed", "attention")
"""What chooses the free blocks of a row, as many as it selects beside its own: chance; NSA; each
query head by its own compressed scores alone; the exact attention to all vision keys before the
row, its query heads together."""
SCORES_PER_CHUNK = 2**24
"""Scores of all query heads held at a time."""


class StreamRecorder(FrameRecorder):
    """Knows the vision stream of a step and its blocks."""

    wants_branches = True

    def __init__(self, spec: NSASpec) -> None:
        """Args: spec: of the blocks.

        Raises:
            UsageError: blocks over the whole sequence.
        """
        super().__init__()
        if spec.stream != "vision":
            raise UsageError("selections are recorded for paper NSA: its blocks hold vision tokens")
        self._spec = spec
        self._sizes: list[int] = []

    def begin_step(self, tokens: StepTokens) -> None:
        """See `FrameRecorder`."""
        super().begin_step(tokens)
        self._sizes = [size for size in tokens.frame_sizes() if size]

    def _blocks(self, device: torch.device) -> BlockTable:
        num_keys, size = int((self._key_frame >= 0).sum()), self._spec.block_size
        borders = block_borders(size, self._sizes if size == "frame" else None, [num_keys])
        return block_table(borders, num_keys, device=device)

    def _coverage(self, blocks: BlockTable) -> Tensor:
        """Share of each frame's tokens that each block covers, float32 `[C, F]`."""
        frame = self._key_frame[self._key_frame >= 0]
        block = masks.block_of(blocks.offsets.cpu(), torch.arange(len(frame)))[0]
        coverage = torch.zeros(blocks.num_blocks, self._num_frames)
        coverage.index_put_((block, frame.cpu()), torch.ones(()), accumulate=True)
        return coverage / coverage.sum(0).clamp(min=1)


class SelectedFrames(StreamRecorder):
    """How often each KV head selects each frame, and how often it would by chance."""

    def __init__(self, spec: NSASpec) -> None:
        """Args: spec: of the blocks."""
        super().__init__(spec)
        self._chosen: dict[int, Tensor] = {}
        self._rows: dict[int, Tensor] = {}
        self._expected: dict[int, Tensor] = {}
        """Of the first layer alone: it holds for all."""

    def frequency(self) -> Tensor:
        """How often the vision tokens of later frames selected each frame, `[layers, H, F]`.

        A frame of several blocks counts by the tokens selected; NaN where no frame is later.
        """
        layers = sorted(self._chosen)
        return torch.stack([self._chosen[x] / self._rows[x] for x in layers])

    def by_chance(self) -> Tensor:
        """The same, `[F]`, if every row drew its free blocks at random among those before it."""
        (expected,) = self._expected.values()
        return expected / self._rows[min(self._rows)]

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add what the vision tokens of a step selected."""
        if attended.result is None:
            return
        blocks, selected = self._blocks(torch.device("cpu")), attended.result.selected_blocks[0]
        frames = self._key_frame[len(self._key_frame) - len(selected) :].cpu()
        rows = frames >= 0
        if not rows.any():
            return
        selected, frames = selected[rows.to(selected.device)].cpu().long(), frames[rows]
        coverage, size = self._coverage(blocks), self._num_frames
        of_head = torch.arange(selected.shape[1])[:, None] * size + frames[:, None, None]
        pairs = (of_head * len(coverage) + selected)[selected >= 0]
        counts = pairs.bincount(minlength=selected.shape[1] * size * len(coverage))
        chosen = counts.view(-1, size, len(coverage)).float() @ coverage  # [H, row's frame, frame]
        later = torch.ones(size, size).tril(-1)
        _grow(self._chosen, layer, (chosen * later).sum(1))
        _grow(self._rows, layer, frames.bincount(minlength=size).float() @ later)
        if layer == min(self._chosen):
            current = selected.amax((1, 2))
            counts = (frames * len(coverage) + current).bincount(minlength=coverage.numel())
            expected = counts.view(size, -1).float() @ self._odds(len(coverage)) @ coverage
            _grow(self._expected, layer, (expected * later).sum(0))

    def _odds(self, num_blocks: int) -> Tensor:
        """With which a row of each block selects each block, if it draws: `[C, C]`."""
        block = torch.arange(num_blocks)
        free = (self._spec.num_selected_blocks - 1) / block.clamp(min=1)
        odds = free.clamp(max=1)[:, None] * (block < block[:, None])
        return odds + torch.eye(num_blocks)


class Recall(NamedTuple):
    """Shares of the evidence's tokens that are in the chosen blocks: of one layer and set."""

    video: dict[str, float] | None
    """By ranking, of vision tokens behind the evidence; None where none had to choose."""
    text: dict[str, float] | None
    """Of text tokens, which select nothing: what they would choose."""


class EvidenceRecall(StreamRecorder):
    """Whether what holds some evidence is chosen, by selection, by chance, and by other rankings.

    A row counts for a set of frames if it has more blocks to choose from than it can take, and if
    all of the evidence is in these: what is forced or must be taken tells nothing. Vision tokens
    never see a question: that theirs select its evidence is not to be expected of a model that was
    never asked about the like.
    """

    def __init__(
        self, evidence: Mapping[str, Sequence[int]], *, spec: NSASpec, stride: int = 1
    ) -> None:
        """Look at nothing yet.

        Args:
            evidence: sets of frames by name, each set not empty.
            spec: of the blocks, and of how many are selected.
            stride: one of so many vision tokens is looked at; all text tokens are.
        """
        super().__init__(spec)
        self._evidence, self._stride = evidence, stride
        self._sums: dict[tuple[int, str, bool], Tensor] = {}
        """`[rankings + 1]`, the last is the number of rows; by layer, name, and whether vision."""

    def recall(self, name: str) -> list[Recall]:
        """Of a set, layer by layer."""
        layers = sorted({layer for layer, _, _ in self._sums})
        return [
            Recall(self._shares(layer, name, True), self._shares(layer, name, False))
            for layer in layers
        ]

    def _shares(self, layer: int, name: str, is_vision: bool) -> dict[str, float] | None:
        sums = self._sums.get((layer, name, is_vision))
        if sums is None:
            return None
        shares = dict(zip(RANKINGS, (sums[:-1] / sums[-1]).tolist(), strict=True))
        if not is_vision:
            del shares["selected"]
        return shares

    @torch.no_grad()
    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add the rows of a step."""
        q, k, is_vision = q[0], k[0], (self._key_frame >= 0).to(q.device)
        if not is_vision.any():
            return
        blocks = self._blocks(q.device)
        number, first = is_vision.cumsum(0) - 1, len(is_vision) - len(q)
        k = k[is_vision]
        k_cmp = pool_blocks(k[None], blocks)[0]
        weights = self._weights(blocks)
        for vision in (True, False):
            if vision and attended.result is None:
                continue
            own = is_vision[first:] if vision else ~is_vision[first:]
            if vision:
                own = own & (number[first:] % self._stride == 0)
            rows = own.nonzero()[:, 0]
            places = number[first:][rows]  # of a text row, of the last vision token before it
            before = masks.visible(blocks.offsets, places)[0]
            if vision:  # its own block is forced
                current = masks.block_of(blocks.offsets, places)[0][:, None]
                before &= torch.arange(blocks.num_blocks, device=q.device) < current
            counted = self._counted(before, weights)
            some = counted.any(1)
            if not some.any():
                continue
            rows, places, before = rows[some], places[some], before[some, : len(k_cmp)]
            chunks = _Rows(rows, places, before, counted[some])
            result = attended.result.selected_blocks[0] if attended.result and vision else None
            for chunk in chunks.split(max(1, SCORES_PER_CHUNK // (len(k) * q.shape[1]))):
                shares = self._rankings(q, k, k_cmp, blocks, chunk, result, weights)
                self._count(layer, vision, shares, chunk.counted)

    def _counted(self, before: Tensor, weights: Tensor) -> Tensor:
        """Which rows count for which set, bool `[R, sets]`."""
        has_choice = before.sum(1) > self._spec.num_selected_blocks - 1
        holds = (weights > 0).to(weights.dtype)  # [sets, C]
        is_before = before.to(weights.dtype) @ holds.mT == holds.sum(1)  # [R, sets]
        return has_choice[:, None] & is_before & holds.any(1)

    def _weights(self, blocks: BlockTable) -> Tensor:
        """The share of each set's tokens that each block holds: `[sets, C]`."""
        coverage = self._coverage(blocks)
        sizes = self._key_frame[self._key_frame >= 0].cpu().bincount(minlength=self._num_frames)
        tokens = (coverage * sizes).to(blocks.offsets.device)
        sets = [
            tokens[:, [x for x in frames if x < self._num_frames]].sum(1)
            * all(x < self._num_frames for x in frames)  # else it is not there yet
            for frames in self._evidence.values()
        ]
        found = torch.stack(sets)
        return found / found.sum(1, keepdim=True).clamp(min=1)

    def _rankings(
        self,
        q: Tensor,
        k: Tensor,
        k_cmp: Tensor,
        blocks: BlockTable,
        chunk: "_Rows",
        selected: Tensor | None,
        weights: Tensor,
    ) -> Tensor:
        """What each ranking holds of each set: `[rankings, R, sets]`, means over heads."""
        num_heads, picks = k.shape[1], self._spec.num_selected_blocks - 1
        own = q[chunk.rows]
        grouped = own.to(compute_dtype(own)).unflatten(1, (num_heads, -1)).movedim(0, 2)
        grouped = grouped * q.shape[-1] ** -0.5  # [H, G, R, D]
        seen = chunk.before
        chance = (picks / seen.sum(1, keepdim=True)).expand(-1, len(weights))
        taken = torch.zeros_like(chance)
        if selected is not None:
            member = masks.membership(selected[chunk.rows], blocks.num_blocks)  # [R, H, C]
            taken = _held(member, weights).mean(1)
        scores = grouped @ _heads(k_cmp).mT
        alone = _best(scores, seen, picks)  # [H, G, R, C']
        weights = weights[:, : len(k_cmp)]
        stop = int(chunk.places[-1]) + 1
        later = torch.arange(stop, device=q.device) > chunk.places[:, None]
        attention = (grouped @ _heads(k[:stop]).mT).masked_fill_(later, -torch.inf).softmax(-1)
        mass = attention.sum(1)  # [H, R, S]
        block = masks.block_of(blocks.offsets, torch.arange(stop, device=q.device))[0]
        per_block = mass.new_zeros(*mass.shape[:2], blocks.num_blocks).index_add_(2, block, mass)
        best = _best(per_block[..., : len(k_cmp)], seen, picks)
        return torch.stack(
            [chance, taken, _held(alone, weights).mean((0, 1)), _held(best, weights).mean(0)]
        )

    def _count(self, layer: int, is_vision: bool, shares: Tensor, counted: Tensor) -> None:
        for place, name in enumerate(self._evidence):
            rows = counted[:, place]
            if rows.any():
                sums = shares[:, rows, place].double().sum(1).cpu()
                sums = torch.cat([sums, rows.sum()[None].double().cpu()])
                key = (layer, name, is_vision)
                self._sums[key] = self._sums.get(key, 0) + sums


class _Rows(NamedTuple):
    """Rows that are looked at."""

    rows: Tensor
    """int64 `[R]`, among the T."""
    places: Tensor
    """int64 `[R]`: the last vision key that each sees."""
    before: Tensor
    """bool `[R, C']`: complete blocks that it may choose."""
    counted: Tensor
    """bool `[R, sets]`."""

    def split(self, size: int) -> "list[_Rows]":
        """So many at a time."""
        return [_Rows(*parts) for parts in zip(*(x.split(size) for x in self), strict=True)]


def _held(member: Tensor, weights: Tensor) -> Tensor:
    """How much of each set is in the chosen blocks: `[..., C]` and `[sets, C]` -> `[..., sets]`."""
    return member.to(weights.dtype) @ weights.mT


def _best(importance: Tensor, seen: Tensor, picks: int) -> Tensor:
    """The highest blocks of those seen, bool `[..., C]`."""
    ranked = importance.masked_fill(~seen, -torch.inf)
    best = ranked.topk(min(picks, ranked.shape[-1]), dim=-1).indices
    return torch.zeros_like(ranked, dtype=torch.bool).scatter_(-1, best, True)


def _heads(x: Tensor) -> Tensor:
    """`[S, H, D]` -> `[H, 1, S, D]` in the compute dtype."""
    return x.to(compute_dtype(x)).transpose(0, 1)[:, None]


def _grow(sums: dict[int, Tensor], layer: int, amount: Tensor) -> None:
    """Add to sums over frames, the last axis, that may have fewer frames so far."""
    before = sums.get(layer, torch.zeros(*amount.shape[:-1], 0))
    missing = amount.shape[-1] - before.shape[-1]
    sums[layer] = torch.nn.functional.pad(before, (0, missing)) + amount
