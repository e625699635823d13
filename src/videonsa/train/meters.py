"""What a run is watched by: gates, throughput, and the share of the hardware that it uses."""

import time
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from videonsa.ops.spec import BRANCHES


class GateMeter:
    """The mean gate of each layer and branch over the vision rows since it was last read.

    It listens to the last projection of the gates (a forward hook in each layer), so the model
    itself keeps nothing. `rows` says which rows of the next forward pass to count.
    """

    def __init__(self, model: nn.Module, *, temperature: float) -> None:
        self.rows: Tensor | None = None
        """int64 `[n]`; None counts nothing, as in an evaluation."""
        self._temperature = temperature
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}
        found = [module for name, module in model.named_modules() if name.endswith("g_proj_2")]
        for layer, module in enumerate(found):
            module.register_forward_hook(partial(self._note, layer))

    def _note(self, layer: int, _: nn.Module, __: tuple[Tensor, ...], logits: Tensor) -> None:
        if self.rows is None or not len(self.rows):
            return
        own = logits.detach()[0, self.rows.to(logits.device)].float()
        gates = torch.sigmoid(own / self._temperature).unflatten(-1, (-1, len(BRANCHES)))
        total = gates.mean(1).sum(0)
        self._sums[layer] = self._sums[layer] + total if layer in self._sums else total
        self._counts[layer] = self._counts.get(layer, 0) + len(own)

    def read(self) -> dict[str, float]:
        """The means, by names such as `gates/layer_00/window`; begins anew."""
        means = {
            f"gates/layer_{layer:02d}/{branch}": value
            for layer in sorted(self._sums)
            for branch, value in zip(
                BRANCHES, (self._sums[layer] / self._counts[layer]).tolist(), strict=True
            )
        }
        self._sums, self._counts = {}, {}
        return means


class RateMeter:
    """Tokens a second of all processes, and MFU.

    Args:
        peak_flops: a second, of all processes together; None leaves MFU out.
    """

    def __init__(self, *, peak_flops: float | None) -> None:
        self._peak = peak_flops
        self._start = time.monotonic()
        self._counted: list[tuple[int, int]] = []

    def add(self, *, tokens: int, flops: int) -> None:
        """Take note of a sequence of this process."""
        self._counted.append((tokens, flops))

    def taken(self) -> tuple[int, int]:
        """Tokens and operations of this process since it was last asked; begins anew."""
        tokens, flops = (sum(column) for column in zip(*self._counted, strict=True))
        self._counted = []
        return tokens, flops

    def rates(self, counted: Sequence[float]) -> dict[str, float]:
        """What tokens and operations of all processes are a second; begins anew."""
        now = time.monotonic()
        seconds, self._start = max(now - self._start, 1e-9), now
        tokens, flops = counted
        rates = {"tokens_per_second": tokens / seconds}
        return rates | ({"mfu": flops / seconds / self._peak} if self._peak else {})
