"""`AttentionRecorder`: where an answer's tokens and the selected branch looked."""

from itertools import pairwise

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.ops.spec import NSASpec
from videonsa.ops.varlen import block_borders


class AttentionRecorder:
    """Collects, for each layer, how much each frame (temporal patch or image) was looked at.

    Pass one to `forward` or `generate` as `recorder=`, for a batch of one; then read
    `text_mass()` and `selection_frequency()`. It keeps sums over frames only, on the CPU.
    """

    def __init__(self) -> None:
        self._text_mass: dict[int, list[Tensor]] = {}
        self._chosen: dict[int, Tensor] = {}
        self._chances: dict[int, Tensor] = {}
        self._key_frame = torch.empty(0, dtype=torch.int64)
        self._attention_mask: Tensor | None = None
        self._num_frames = 0

    def text_mass(self) -> Tensor:
        """Attention that the answer gave to each frame, float32 `[layers, rows, F]`.

        A row is the last text row of a step: the one that gives the answer's first token, then
        each token fed back. A mean over the query heads; what a row lacks to 1 went to text.
        """
        num_rows = len(self._text_mass.get(0, []))
        if not num_rows:
            return torch.zeros(len(self._text_mass), 0, self._num_frames)
        layers = sorted(self._text_mass.items())
        mass = [[_widen(row, self._num_frames) for row in rows] for _, rows in layers]
        return torch.stack([torch.stack(rows) for rows in mass])

    def selection_frequency(self) -> Tensor:
        """How often the vision rows of later frames selected each frame, float32 `[layers, F]`.

        The share of (row, KV head) pairs, 0 to 1; a frame of several blocks counts by the tokens
        selected. 0 where there is no later frame; `[0, F]` where no step ran NSA.
        """
        layers = [
            self._chosen[layer] / self._chances[layer].clamp(min=1)
            for layer in sorted(self._chosen)
        ]
        return torch.stack(layers) if layers else torch.zeros(0, self._num_frames)

    def begin_step(
        self, vision_mask: Tensor, attention_mask: Tensor | None, frame_sizes: Tensor
    ) -> None:
        """Take note of the keys of a step, before its layers.

        Args:
            vision_mask: bool `[1, S]`.
            attention_mask: bool `[1, S]` or None.
            frame_sizes: int `[F]`, merged tokens of each temporal patch or image so far.

        Raises:
            UsageError: more than one sample.
        """
        if len(vision_mask) != 1:
            raise UsageError(
                f"a recorder with a batch of {len(vision_mask)}: want a batch of 1, so ask one "
                "question at a time"
            )
        device = vision_mask.device
        frames = torch.arange(len(frame_sizes)).repeat_interleave(frame_sizes.cpu()).to(device)
        self._key_frame = torch.full(vision_mask.shape[1:], -1, device=device)
        self._key_frame[vision_mask[0]] = frames[: int(vision_mask.sum())]
        self._attention_mask = attention_mask
        self._num_frames = len(frame_sizes)

    def record_text(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Add the attention of the last row, unless it is a vision row.

        Args:
            layer: its number.
            q: `[1, T, HQ, D]` after mRoPE.
            k: `[1, S, H, D]`.
        """
        if self._key_frame[-1] >= 0:
            return
        keys = k[0].detach().float()
        groups = q[0, -1].detach().float().unflatten(0, (keys.shape[1], -1))  # [H, G, D]
        scores = torch.einsum("hgd,shd->hgs", groups, keys) * q.shape[-1] ** -0.5
        if self._attention_mask is not None:
            scores = scores.masked_fill(~self._attention_mask[0].to(k.device), float("-inf"))
        mass = scores.softmax(-1).flatten(0, 1).mean(0).to(self._key_frame.device)  # [S]
        self._text_mass.setdefault(layer, []).append(self._per_frame(mass))

    def record_selection(self, layer: int, selected_blocks: Tensor, spec: NSASpec) -> None:
        """Add what the vision rows of this step selected.

        Args:
            layer: its number.
            selected_blocks: int32 `[1, T, H, n]` for all rows, -1 where nothing is selected.
            spec: of the attention.
        """
        num_rows, num_heads = selected_blocks.shape[1:3]
        stream = self._key_frame
        selected_blocks = selected_blocks.to(stream.device)  # layers may be on several
        row_frames = stream[len(stream) - num_rows :]
        if spec.stream == "vision":
            stream = stream[stream >= 0]
        coverage = self._coverage(stream, spec)  # [C, F]
        rows = row_frames >= 0
        blocks = selected_blocks[0, rows].flatten(1).long()  # [R, H * n]
        pairs = (row_frames[rows][:, None] * len(coverage) + blocks)[blocks >= 0]
        counts = torch.bincount(pairs, minlength=self._num_frames * len(coverage))
        chosen = counts.view(self._num_frames, -1).float() @ coverage  # [frame of row, frame]
        later = torch.ones_like(chosen).tril(-1)
        row_counts = row_frames[rows].bincount(minlength=self._num_frames).float()
        self._add(self._chosen, layer, (chosen * later).sum(0))
        self._add(self._chances, layer, num_heads * (row_counts[:, None] * later).sum(0))

    def _coverage(self, stream: Tensor, spec: NSASpec) -> Tensor:
        """Share of each frame's tokens that each block covers, `[C, F]`."""
        sizes = stream[stream >= 0].bincount(minlength=self._num_frames)
        frame_sizes = sizes if spec.block_size == "frame" else None
        borders = block_borders(spec.block_size, frame_sizes, [len(stream)])[0]
        block = torch.arange(len(borders) - 1).repeat_interleave(
            torch.tensor([stop - start for start, stop in pairwise(borders)])
        )
        block = block[: len(stream)].to(stream.device)
        coverage = torch.zeros(len(borders) - 1, self._num_frames, device=stream.device)
        seen = stream >= 0
        ones = torch.ones((), device=stream.device)
        coverage.index_put_((block[seen], stream[seen]), ones, accumulate=True)
        return coverage / sizes.clamp(min=1)

    def _per_frame(self, mass: Tensor) -> Tensor:
        seen = self._key_frame >= 0
        frames = torch.zeros(self._num_frames, device=mass.device)
        return frames.index_add_(0, self._key_frame[seen], mass[seen]).cpu()

    def _add(self, sums: dict[int, Tensor], layer: int, amount: Tensor) -> None:
        before = sums.get(layer, torch.zeros(0))
        sums[layer] = _widen(before, self._num_frames) + amount.cpu()


def _widen(per_frame: Tensor, num_frames: int) -> Tensor:
    """Zeros for the frames that came after."""
    return torch.nn.functional.pad(per_frame, (0, num_frames - len(per_frame)))
