"""How often each frame (temporal patch or image) was selected, and how much text looked at it."""

from itertools import pairwise

import torch
from torch import Tensor

from videonsa.models.methods import Attended
from videonsa.models.recorder.protocol import Recorder, Recorders, check_one_sample
from videonsa.models.step import StepTokens
from videonsa.ops.last_row import last_row_attention
from videonsa.ops.spec import NSASpec
from videonsa.ops.varlen import block_borders


class FrameRecorder(Recorder):
    """Knows the frame of each key. Keeps sums over frames only, on the CPU; for a batch of one."""

    def __init__(self) -> None:
        self._key_frame = torch.empty(0, dtype=torch.int64)
        self._num_frames = 0

    def begin_step(self, tokens: StepTokens) -> None:
        """Take note of the keys of a step.

        Raises:
            UsageError: more than one sample.
        """
        check_one_sample(tokens)
        vision_mask = tokens.vision_mask
        device, sizes = vision_mask.device, torch.tensor(tokens.frame_sizes(), dtype=torch.int64)
        frames = torch.arange(len(sizes)).repeat_interleave(sizes).to(device)
        self._key_frame = torch.full(vision_mask.shape[1:], -1, device=device)
        self._key_frame[vision_mask[0]] = frames[: int(vision_mask.sum())]
        self._num_frames = len(sizes)

    def _add(self, sums: dict[int, Tensor], layer: int, amount: Tensor) -> None:
        before = sums.get(layer, torch.zeros(0))
        sums[layer] = _widen(before, self._num_frames) + amount.cpu()


class TextMass(FrameRecorder):
    """Attention that the answer gave to each frame."""

    def __init__(self) -> None:
        super().__init__()
        self._mass: dict[int, list[Tensor]] = {}
        self._attention_mask: Tensor | None = None
        self._is_last = True

    def text_mass(self) -> Tensor:
        """Attention that the answer gave to each frame, float32 `[layers, rows, F]`.

        A row is the last text token of a call: the one that gives the answer's first token, then
        each token fed back. A mean over the query heads; what a row lacks to 1 went to text.
        """
        num_rows = len(self._mass.get(0, []))
        if not num_rows:
            return torch.zeros(len(self._mass), 0, self._num_frames)
        layers = sorted(self._mass.items())
        mass = [[_widen(row, self._num_frames) for row in rows] for _, rows in layers]
        return torch.stack([torch.stack(rows) for rows in mass])

    def begin_step(self, tokens: StepTokens) -> None:
        """See `FrameRecorder`."""
        super().begin_step(tokens)
        self._attention_mask, self._is_last = tokens.attention_mask, tokens.is_last

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add the attention of the last token of a call, unless it is a vision token."""
        if not self._is_last or self._key_frame[-1] >= 0:
            return
        mask = None if self._attention_mask is None else self._attention_mask[0].to(k.device)
        mass = last_row_attention(q[0, -1].detach(), k[0].detach(), key_mask=mask)  # [S]
        mass = mass.to(self._key_frame.device)
        seen = self._key_frame >= 0
        frames = torch.zeros(self._num_frames, device=mass.device)
        frames.index_add_(0, self._key_frame[seen], mass[seen])
        self._mass.setdefault(layer, []).append(frames.cpu())


class FrameSelection(FrameRecorder):
    """How often vision tokens selected each frame."""

    wants_branches = True

    def __init__(self) -> None:
        super().__init__()
        self._chosen: dict[int, Tensor] = {}
        self._chances: dict[int, Tensor] = {}

    def begin_step(self, tokens: StepTokens) -> None:
        """See `FrameRecorder`; a step without vision tokens selects nothing."""
        if tokens.has_vision:
            super().begin_step(tokens)
        else:
            self._num_frames = len(tokens.frame_sizes())

    def selection_frequency(self) -> Tensor:
        """How often the vision tokens of later frames selected each frame, float32 `[layers, F]`.

        The share of (token, KV head) pairs, 0 to 1; a frame of several blocks counts by the tokens
        selected. 0 where there is no later frame; `[0, F]` where no step ran NSA.
        """
        layers = [
            self._chosen[layer] / self._chances[layer].clamp(min=1)
            for layer in sorted(self._chosen)
        ]
        return torch.stack(layers) if layers else torch.zeros(0, self._num_frames)

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add what the vision tokens of a step selected."""
        if attended.result is None or attended.spec is None:
            return
        selected, spec = attended.result.selected_blocks, attended.spec  # int32 [1, T, H, n]
        num_rows, num_heads = selected.shape[1:3]
        stream = self._key_frame
        selected = selected.to(stream.device)  # layers may be on several
        row_frames = stream[len(stream) - num_rows :]
        if spec.stream == "vision":
            stream = stream[stream >= 0]
        coverage = self._coverage(stream, spec)  # [C, F]
        rows = row_frames >= 0
        blocks = selected[0, rows].flatten(1).long()  # [R, H * n]
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
        # A frame whose tokens have all left has no block.
        frame_sizes = sizes[sizes > 0] if spec.block_size == "frame" else None
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


class AttentionRecorder(Recorders):
    """Where an answer looked: `text_mass` of its tokens, `selection_frequency` of the video's.

    Pass one to `forward`, `generate` or `ask` as `recorder=`, for a batch of one.
    """

    def __init__(self) -> None:
        self._text, self._selection = TextMass(), FrameSelection()
        super().__init__(self._text, self._selection)

    def text_mass(self) -> Tensor:
        """See `TextMass.text_mass`."""
        return self._text.text_mass()

    def selection_frequency(self) -> Tensor:
        """See `FrameSelection.selection_frequency`."""
        return self._selection.selection_frequency()


def _widen(per_frame: Tensor, num_frames: int) -> Tensor:
    """Zeros for the frames that came after."""
    return torch.nn.functional.pad(per_frame, (0, num_frames - len(per_frame)))
