"""The mean gate of each layer and branch, over chosen tokens or frame by frame."""

import torch
from torch import Tensor

from videonsa.models.methods import Attended
from videonsa.models.recorder.frames import FrameRecorder
from videonsa.models.recorder.protocol import Recorder, check_one_sample
from videonsa.models.step import StepTokens
from videonsa.ops.spec import BRANCHES


class GateMeans(Recorder):
    """The mean gate of each layer and branch over chosen tokens, since it was last read."""

    takes_packed = True

    def __init__(self) -> None:
        self.rows: Tensor | None = None
        """int64 `[n]`, places among the tokens of the next calls; None counts nothing."""
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def begin_step(self, tokens: StepTokens) -> None:
        """Places are among the tokens of one sample, or of several packed in one row.

        Raises:
            UsageError: a batch.
        """
        check_one_sample(tokens)

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add the gates of the chosen tokens."""
        if self.rows is None or not len(self.rows) or attended.gates is None:
            return
        gates = attended.gates.detach()[0]  # [T, HQ, 3]
        total = gates[self.rows.to(gates.device)].float().mean(1).sum(0)
        self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
        self._counts[layer] = self._counts.get(layer, 0) + len(self.rows)

    def read(self) -> dict[int, dict[str, float]]:
        """The means by layer and branch; begins anew."""
        means = {
            layer: dict(
                zip(BRANCHES, (self._sums[layer] / self._counts[layer]).tolist(), strict=True)
            )
            for layer in sorted(self._sums)
        }
        self._sums, self._counts = {}, {}
        return means


class FrameGates(FrameRecorder):
    """The mean gate of each layer, frame and branch, over vision tokens and query heads."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: dict[int, Tensor] = {}  # [4, F]: of the branches, and how many tokens

    def means(self) -> Tensor:
        """Float32 `[layers, F, 3]`; 0 for a frame without tokens, `[0, F, 3]` without gates."""
        layers = [self._sums[layer] for layer in sorted(self._sums)]
        means = [(sums[:-1] / sums[-1].clamp(min=1)).T for sums in layers]
        return torch.stack(means) if means else torch.zeros(0, self._num_frames, len(BRANCHES))

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add the gates of the vision tokens of a step."""
        if attended.gates is None:
            return
        gates = attended.gates.detach()[0].float().mean(1).to(self._key_frame.device)  # [T, 3]
        frames = self._key_frame[len(self._key_frame) - len(gates) :]
        seen = frames >= 0
        rows = torch.nn.functional.pad(gates[seen], (0, 1), value=1.0)  # each counts once
        sums = torch.zeros(self._num_frames, rows.shape[1], device=rows.device)
        self._add(self._sums, layer, sums.index_add_(0, frames[seen], rows).T)
