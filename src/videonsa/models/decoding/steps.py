"""`StaticSteps`: T new text tokens of N samples after a cache, on tensors that do not move.

The plain forward spends nine tenths of a decoded token on the host. A static step is the same
layers on tensors whose addresses and shapes stay, with all lengths read on the device: so it can be
captured once, as a CUDA graph, and replayed.
"""

from collections.abc import Callable, Hashable, Sequence
from itertools import chain
from math import ceil
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from videonsa.models.cache import VideoNSACache
from videonsa.models.decoding.attention import CachedAttention, WritesInPlace
from videonsa.models.decoding.capture import TURNS_TO_CAPTURE, Graphs
from videonsa.models.decoding.reasons import why_not_captured
from videonsa.models.decoding.stepped import SteppedModel
from videonsa.models.growing import ROOM
from videonsa.models.layers import run_layers
from videonsa.models.linears import linear_rows
from videonsa.models.methods import AttentionMethod
from videonsa.models.rows import text_rows
from videonsa.models.step import StepTokens, build_step
from videonsa.ops.cached_attention import SharedKeys

SIZES = (1, 16, 32, 64, 128)
"""Tokens of a sample that a step has room for: each is a graph of its own."""

USUAL_SIZES = 3
"""How many of them are captured before a first question: those for questions of up to 32 tokens."""
SPARE = 2048
"""Rows that memory has more, where a question moves it: graphs are captured anew then, so it should
not be moved by the next one."""


_CHOOSE = "choose"
"""The name of that graph; those of the layers are named by their sizes."""
_Made = TypeVar("_Made")


def sizes_of_steps(num_tokens: int) -> list[int]:
    """The sizes of the steps that read so many tokens, the longest steps first."""
    whole, rest = divmod(num_tokens, SIZES[-1])
    return [SIZES[-1]] * whole + [next(size for size in SIZES if size >= rest)] * (rest > 0)


def rows_needed(num_tokens: int, max_new_tokens: int) -> int:
    """Rows of memory for the longest question and its answer, what steps write behind included."""
    return sum(sizes_of_steps(num_tokens)) + max_new_tokens + 1


class Chooser(Protocol):
    """Chooses tokens: its tensors do not move, and it never waits for the host."""

    @property
    def generator(self) -> torch.Generator | None:
        """What it draws with."""

    def __call__(self, logits: Tensor) -> Tensor:
        """Ids int64 `[N]` by logits float32 `[N, V]`; below 0 what is no token."""


class StaticSteps:
    """Reads a question of each of N samples after one cache, then token by token their answers.

    One sample goes on in the memory of the cache. Of several, each has memory of its own, and they
    all see the keys of the cache, of which nothing is copied. The cache itself stays as it is: what
    was read counts once it is told so (`keep`).
    """

    def __init__(
        self, model: SteppedModel, cache: VideoNSACache, *, batch: int, captures: bool
    ) -> None:
        """For answers after `cache`, B = 1, which holds something; see `why_not_static`.

        Args:
            model: whose layers these are.
            cache: what was read before; it may grow and shrink between answers.
            batch: N.
            captures: make CUDA graphs of the steps.
        """
        self._model, self._cache, self._batch = model, cache, batch
        device = model.device
        self.graphs = Graphs(device, captures=captures)
        self._samples = torch.arange(batch, device=device)
        self._positions = torch.zeros_like(self._samples)  # the next of each sample
        num_layers = model.config.text_config.num_hidden_layers
        self._starts = _counts(num_layers, batch, device)  # rows it has, by layer
        self._prefix = _counts(num_layers, 1, device)  # rows of the cache
        self._first = torch.zeros_like(self._samples[:1])  # position after the cache
        self._ids = {size: self._samples.new_zeros(batch, size) for size in SIZES}
        self._counts = {
            size: torch.zeros(batch, dtype=torch.int32, device=device) for size in SIZES
        }
        self._counts[1].fill_(1)
        vocab_size = model.config.text_config.vocab_size
        self._logits = torch.zeros(batch, vocab_size, device=device)
        self._chosen = torch.zeros_like(self._samples)
        self._chooser: Chooser | None = None
        self._own: list[tuple[Tensor, Tensor]] = []  # memory of several samples, by layer
        self._known: list[Any] = []  # addresses and shapes that the graphs know

    @torch.inference_mode()
    def begin(self, num_rows: int, *, first: Tensor | None = None) -> None:
        """Begin anew after what the cache holds now.

        Args:
            num_rows: that each sample will take, see `rows_needed`.
            first: int64 `[1]`, the position id of the first token; None: the next one.
        """
        if self._batch == 1:
            self._cache.reserve(num_rows, spare=SPARE)
        elif not self._own or self._own[0][0].shape[1] < num_rows:
            size = ROOM * ceil(num_rows / ROOM)  # not to be moved by a question a little longer
            self._own = []  # freed first
            self._own = [
                (self._like(keys, size), self._like(values, size)) for keys, values in self._shown()
            ]
        weight: Any = self._model.get_input_embeddings().weight  # a model may be moved as well
        known = [(x.data_ptr(), x.shape) for x in chain([weight], *self._own, *self._shown())]
        if known != self._known:
            self.graphs.forget()
            self._known = known
        if first is None:
            first = self._cache.tokens.next_positions[0, -1:]
        self._first.copy_(first)
        self._positions.copy_(self._first.expand(self._batch))
        before = -1
        for index, layer in enumerate(self._cache.layers):
            if (length := layer.get_seq_length()) != before:  # tokens left before this layer
                before = length
                self._prefix[index:].fill_(length)
        self._starts.copy_(self._prefix if self._batch == 1 else torch.zeros_like(self._starts))

    @torch.inference_mode()
    def read(self, questions: Sequence[Sequence[int]]) -> Tensor:
        """Read the tokens of N questions, none of them empty.

        Returns:
            The logits after the last token of each, float32 `[N, V]`, until the next step.
        """
        ends = [0] * self._batch
        left = max(map(len, questions))
        for size in sizes_of_steps(left):
            left = max(left - size, 0)  # so all questions end in the last step
            parts = [
                list(ids[end : max(len(ids) - left, 0)])
                for ids, end in zip(questions, ends, strict=True)
            ]
            ends = [end + len(part) for end, part in zip(ends, parts, strict=True)]
            rows = [[*part, *[0] * (size - len(part))] for part in parts]
            self._ids[size].copy_(torch.tensor(rows))
            if size > 1:
                self._counts[size].copy_(torch.tensor([len(part) for part in parts]))
            self._run(size)
        return self._logits

    @torch.inference_mode()
    def step(self, ids: Tensor) -> Tensor:
        """Read one token more of each sample, int64 `[N]` on the device; gives logits as `read`."""
        if ids is not self._chosen:  # else they are there
            self._feed(ids)
        self._run(1)
        return self._logits

    @torch.inference_mode()
    def choose(self, chooser: Chooser) -> Tensor:
        """The next token of each sample by the last logits, int64 `[N]`, until it is called again.

        It is captured too, with the way of the tokens to the next step.
        """
        if chooser is not self._chooser:
            self.graphs.forget(_CHOOSE)
            self._chooser = chooser

        def choose() -> None:
            self._chosen.copy_(chooser(self._logits))
            self._feed(self._chosen)

        self.graphs.run(_CHOOSE, choose, generator=chooser.generator)
        return self._chosen

    def _feed(self, ids: Tensor) -> None:
        # What is no token is found out a step later; until then it must not fail on the device.
        self._ids[1].copy_(ids.clamp(min=0)[:, None])

    @torch.inference_mode()
    def keep(self, num_tokens: int) -> None:
        """Count the first tokens read since `begin` as the cache's own; N is 1."""
        if num_tokens:
            self._cache.advance(text_rows(self._first, num_tokens))

    @torch.inference_mode()
    def warm_up(self, num_rows: int, sizes: Sequence[int]) -> None:
        """Capture steps before they are needed; nothing is read, and nothing waits for the device.

        Args:
            num_rows: as many as `begin` will be told.
            sizes: of `SIZES`.
        """
        self.begin(num_rows)
        for size in sizes:
            counts = self._counts[size].clone()
            self._counts[size].zero_()  # all is padding
            for _ in range(TURNS_TO_CAPTURE):
                self._run(size)
            self._counts[size].copy_(counts)

    def _run(self, size: int) -> None:
        self.graphs.run(size, lambda: self._layers(self._ids[size], self._counts[size]))

    def _layers(self, ids: Tensor, counts: Tensor) -> None:
        """Tokens `[N, T]`, of each sample as many as `counts` says; the rest is padding.

        Padding writes keys behind the sample's own, where the next step writes over them.
        """
        num_tokens = ids.shape[1]
        rows = text_rows(self._positions, num_tokens)
        memory = self._own or self._shown()
        firsts = self._samples * memory[0][0].shape[1] + self._starts  # [L, N]
        places = firsts[..., None] + torch.arange(num_tokens, device=ids.device)
        tokens = StepTokens(
            num_tokens=num_tokens,
            has_vision=False,
            vision_mask=rows.vision_mask,
            attention_mask=None,
            position_ids=rows.position_ids,
            frame_sizes=list,
        )
        found = run_layers(
            self._model._language_model,
            self._model.get_input_embeddings()(ids),
            rows,
            build_step(CachedAttention(self._starts, self._shared()), tokens),
            WritesInPlace(memory, places.flatten(1)),
        )
        last = found.last[self._samples, (counts - 1).clamp(min=0)]
        self._logits.copy_(linear_rows(last, [self._model.lm_head])[0])
        self._starts += counts
        self._positions += counts

    def _shared(self) -> list[SharedKeys] | None:
        """What several samples see of the cache, by layer."""
        if not self._own:
            return None
        return [
            SharedKeys(keys, values, length)
            for (keys, values), length in zip(self._shown(), self._prefix, strict=True)
        ]

    def _shown(self) -> list[tuple[Tensor, Tensor]]:
        """The memory of the cache, by layer."""
        return [layer.memory for layer in self._cache.layers]

    def _like(self, memory: Tensor, num_rows: int) -> Tensor:
        return memory.new_empty(self._batch, num_rows, *memory.shape[2:])


def _counts(num_layers: int, batch: int, device: torch.device) -> Tensor:
    """Zeros, int32 `[L, N]`; each layer's begin at 16 bytes, for which kernels are compiled."""
    padded = torch.zeros(num_layers, -(-batch // 4) * 4, dtype=torch.int32, device=device)
    return padded[:, :batch]


class KeptSteps:
    """The static steps after one cache, kept with their graphs from answer to answer."""

    def __init__(self, model: SteppedModel, cache: VideoNSACache) -> None:
        """None yet; see `StaticSteps`."""
        self.decoding: str | None = None
        """How the last answer was decoded, in one line: by which steps, and why."""
        self._model, self._cache = model, cache
        self._kept: dict[tuple[int, bool], StaticSteps] = {}
        self._made: tuple[Hashable, Any] | None = None

    def of(self, batch: int, *, captures: bool) -> StaticSteps:
        """Those of N samples. Beside those of one sample, the last asked for are kept."""
        wanted = batch, captures
        if wanted not in self._kept:
            self._kept = {key: kept for key, kept in self._kept.items() if key == (1, captures)}
            self._kept[wanted] = StaticSteps(
                self._model, self._cache, batch=batch, captures=captures
            )
        return self._kept[wanted]

    def keeping(self, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """What was made last, if its key was equal, so that graphs still know it; else made now."""
        if self._made is None or self._made[0] != key:
            self._made = key, make()
        return cast("_Made", self._made[1])

    def get_ready(self, method: AttentionMethod | None, *, max_new_tokens: int) -> None:
        """Capture the steps of an answer to a usual question, if it will be decoded by them.

        The device may still be busy with what the cache is to hold: capturing keeps only the host
        busy.
        """
        if self._cache.get_seq_length() and not why_not_captured(self._model, self._cache, method):
            sizes = SIZES[:USUAL_SIZES]
            num_rows = rows_needed(sizes[-1], max_new_tokens)
            self.of(1, captures=True).warm_up(num_rows, sizes)
