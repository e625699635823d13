"""How often each frame (temporal patch or image) was selected, and how much text looked at it."""

from itertools import pairwise

import torch
from torch import Tensor

from videonsa.models.methods import Attended
from videonsa.models.recorder.chance import rows_by_block, uniform_picks
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
        self._frame_sizes: list[int] = []

    def begin_step(self, tokens: StepTokens) -> None:
        """Take note of the keys of a step.

        Raises:
            UsageError: more than one sample.
        """
        check_one_sample(tokens)
        vision_mask = tokens.vision_mask
        self._frame_sizes = list(tokens.frame_sizes())
        device, sizes = vision_mask.device, torch.tensor(self._frame_sizes, dtype=torch.int64)
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
        self._even: dict[int, list[Tensor]] = {}
        self._attention_mask: Tensor | None = None
        self._is_last = True

    def text_mass(self) -> Tensor:
        """Attention that the answer gave to each frame, float32 `[layers, rows, F]`.

        A row is the last text token of a call: the one that gives the answer's first token, then
        each token fed back. A mean over the query heads; what a row lacks to 1 went to text.
        """
        return self._stacked(self._mass)

    def even_mass(self) -> Tensor:
        """What attention spread evenly over all keys would give, float32 `[layers, rows, F]`.

        That is each frame's share of the keys that the row sees, text and itself among them.
        """
        return self._stacked(self._even)

    def _stacked(self, of_layers: dict[int, list[Tensor]]) -> Tensor:
        if not of_layers.get(0):
            return torch.zeros(len(of_layers), 0, self._num_frames)
        layers = [
            [_widen(row, self._num_frames) for row in rows] for _, rows in sorted(of_layers.items())
        ]
        return torch.stack([torch.stack(rows) for rows in layers])

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
        even = torch.ones_like(mass) if mask is None else mask.to(mass.dtype)
        self._mass.setdefault(layer, []).append(self._of_frames(mass))
        self._even.setdefault(layer, []).append(self._of_frames(even / even.sum()))

    def _of_frames(self, of_keys: Tensor) -> Tensor:
        """Sums over the keys of each frame: `[S]` -> `[F]`."""
        of_keys = of_keys.to(self._key_frame.device)
        seen = self._key_frame >= 0
        frames = torch.zeros(self._num_frames, device=of_keys.device)
        return frames.index_add_(0, self._key_frame[seen], of_keys[seen]).cpu()


class FrameSelection(FrameRecorder):
    """How often vision tokens selected each frame."""

    wants_branches = True

    def __init__(self) -> None:
        super().__init__()
        self._chosen: dict[int, Tensor] = {}
        self._expected: dict[int, Tensor] = {}
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
        return self._frequency(self._chosen)

    def uniform_frequency(self) -> Tensor:
        """What a selection at random would give, float32 `[layers, F]`; see `uniform_picks`."""
        return self._frequency(self._expected)

    def chances(self) -> Tensor:
        """How many (token, KV head) pairs of later frames there are, float32 `[layers, F]`."""
        layers = [self._chances[layer] for layer in sorted(self._chances)]
        return torch.stack(layers) if layers else torch.zeros(0, self._num_frames)

    def _frequency(self, sums: dict[int, Tensor]) -> Tensor:
        layers = [sums[layer] / self._chances[layer].clamp(min=1) for layer in sorted(sums)]
        return torch.stack(layers) if layers else torch.zeros(0, self._num_frames)

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add what the vision tokens of a step selected."""
        if attended.result is None or attended.spec is None:
            return
        selected, spec = attended.result.selected_blocks, attended.spec  # int32 [1, T, H, n]
        stream = self._key_frame
        selected = selected[0].to(stream.device)  # layers may be on several
        row_frames = stream[len(stream) - len(selected) :]
        if spec.stream == "vision":
            stream, selected = stream[stream >= 0], selected[row_frames >= 0]
            row_frames = row_frames[row_frames >= 0]
        block = self._blocks(stream, spec)
        num_blocks = int(block[-1]) + 1 if len(block) else 0
        coverage = self._coverage(stream, block, num_blocks)  # [C, F]
        own = block[len(block) - len(row_frames) :]
        seen = row_frames >= 0
        rows = rows_by_block(
            row_frames[seen],
            own[seen],
            selected[seen],
            num_frames=self._num_frames,
            num_blocks=num_blocks,
        )
        self._add(self._chosen, layer, _of_later(rows.picks, coverage))
        uniform = uniform_picks(rows, spec, num_heads=selected.shape[1])
        self._add(self._expected, layer, _of_later(uniform, coverage))
        counts = row_frames[seen].bincount(minlength=self._num_frames).float()
        later = counts.sum() - counts.cumsum(0)
        self._add(self._chances, layer, selected.shape[1] * later)

    def _blocks(self, stream: Tensor, spec: NSASpec) -> Tensor:
        """The block of each token of the stream, int64."""
        # A frame whose tokens have all left has no block.
        sizes = torch.tensor([size for size in self._frame_sizes if size])
        frame_sizes = sizes if spec.block_size == "frame" else None
        borders = block_borders(spec.block_size, frame_sizes, [len(stream)])[0]
        block = torch.arange(len(borders) - 1).repeat_interleave(
            torch.tensor([stop - start for start, stop in pairwise(borders)])
        )
        return block[: len(stream)].to(stream.device)

    def _coverage(self, stream: Tensor, block: Tensor, num_blocks: int) -> Tensor:
        """Share of each frame's tokens that each block covers, `[C, F]`."""
        seen = stream >= 0
        sizes = stream[seen].bincount(minlength=self._num_frames)
        coverage = torch.zeros(num_blocks, self._num_frames, device=stream.device)
        ones = torch.ones((), device=stream.device)
        coverage.index_put_((block[seen], stream[seen]), ones, accumulate=True)
        return coverage / sizes.clamp(min=1)


def _of_later(picks: Tensor, coverage: Tensor) -> Tensor:
    """What the tokens of later frames picked of each frame: `[F, C]`, `[C, F]` -> `[F]`."""
    later = picks.flip(0).cumsum(0).flip(0) - picks
    return (later * coverage.T).sum(1)


class AttentionRecorder(Recorders):
    """Where an answer looked: `text_mass` of its tokens, `selection_frequency` of the video's.

    Pass one to `forward`, `generate` or `ask` as `recorder=`, for a batch of one.
    """

    def __init__(self) -> None:
        self.text, self.selection = TextMass(), FrameSelection()
        super().__init__(self.text, self.selection)

    def text_mass(self) -> Tensor:
        """See `TextMass.text_mass`."""
        return self.text.text_mass()

    def selection_frequency(self) -> Tensor:
        """See `FrameSelection.selection_frequency`."""
        return self.selection.selection_frequency()


def _widen(per_frame: Tensor, num_frames: int) -> Tensor:
    """Zeros for the frames that came after."""
    return torch.nn.functional.pad(per_frame, (0, num_frames - per_frame.shape[-1]))
