"""The mean gate of each layer and branch."""

from torch import Tensor

from videonsa.models.methods import Attended
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
