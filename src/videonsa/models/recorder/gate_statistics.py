"""Gates of vision tokens by layer, head and branch: means, quartiles and how alike heads are."""

from typing import Self

import torch
from torch import Tensor

from videonsa.models.methods import Attended
from videonsa.models.recorder.protocol import Recorder, check_one_sample
from videonsa.models.step import StepTokens

BINS = 256
"""Of the histogram of gates between 0 and 1: quartiles are known to half of 1/256."""


class GateStatistics(Recorder):
    """Sums over the vision tokens of one sample, and a histogram; no gate is kept."""

    def __init__(self) -> None:
        self._vision_rows = torch.empty(0, dtype=torch.bool)
        self.counts: dict[int, int] = {}
        """By layer, tokens."""
        self.sums: dict[int, Tensor] = {}
        """By layer, float64 `[HQ, 3]`."""
        self.products: dict[int, Tensor] = {}
        """By layer, float64 `[3, HQ, HQ]`: sums of products of the gates of two heads."""
        self.histograms: dict[int, Tensor] = {}
        """By layer, int64 `[HQ, 3, BINS]`."""

    def begin_step(self, tokens: StepTokens) -> None:
        """Remember which tokens are vision tokens.

        Raises:
            UsageError: more than one sample.
        """
        check_one_sample(tokens)
        self._vision_rows = tokens.vision_mask[0, -tokens.num_tokens :]

    def record(self, layer: int, q: Tensor, k: Tensor, attended: Attended) -> None:
        """Add the gates of a layer, where it has some."""
        if attended.gates is None:
            return
        gates = attended.gates.detach()[0]
        gates = gates[self._vision_rows.to(gates.device)].float()  # [R, HQ, 3]
        if not len(gates):
            return
        by_branch = gates.permute(2, 1, 0).double()  # [3, HQ, R]
        self._add(
            layer,
            len(gates),
            gates.double().sum(0),
            by_branch @ by_branch.transpose(1, 2),
            _histogram(gates),
        )

    def _add(
        self, layer: int, count: int, sums: Tensor, products: Tensor, histogram: Tensor
    ) -> None:
        self.counts[layer] = self.counts.get(layer, 0) + count
        kept = ((self.sums, sums), (self.products, products), (self.histograms, histogram))
        for one, more in kept:
            one[layer] = one[layer] + more.cpu() if layer in one else more.cpu()

    def add(self, other: Self) -> None:
        """Add what another one has seen."""
        for layer, count in other.counts.items():
            self._add(
                layer, count, other.sums[layer], other.products[layer], other.histograms[layer]
            )

    def means(self) -> Tensor:
        """Float64 `[layers, HQ, 3]`."""
        return torch.stack([self.sums[one] / self.counts[one] for one in sorted(self.counts)])

    def quartiles(self, *, heads_together: bool = False) -> Tensor:
        """Float64 `[layers, HQ, 3, 3]`, the last dim the quartiles; or `[layers, 1, 3, 3]`.

        Each is the middle of the bin in which it lies.
        """
        stacked = torch.stack([self.histograms[one] for one in sorted(self.counts)])
        if heads_together:
            stacked = stacked.sum(1, keepdim=True)
        below = stacked.cumsum(-1)  # [layers, HQ, 3, BINS]
        shares = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
        wanted = (below[..., -1:] * shares).ceil().long().contiguous()
        return (torch.searchsorted(below, wanted) + 0.5) / BINS

    def similarity(self) -> tuple[Tensor, Tensor]:
        """How alike the gates of two heads are over tokens, the mean over pairs of heads.

        Returns:
            The cosine and the correlation, float64 `[layers, 3]` each. Gates are positive, so the
            cosine is high even of heads that have nothing to do with each other; their correlation
            is then 0. It is NaN where no two heads have gates that vary.
        """
        cosines, correlations = [], []
        for layer in sorted(self.counts):
            mean = (self.sums[layer] / self.counts[layer]).T  # [3, HQ]
            second = self.products[layer] / self.counts[layer]
            cosines.append(_mean_of_pairs(second))
            correlations.append(_mean_of_pairs(second - mean[:, :, None] * mean[:, None]))
        return torch.stack(cosines), torch.stack(correlations)


def _histogram(gates: Tensor) -> Tensor:
    """Int64 `[HQ, 3, BINS]` of gates `[R, HQ, 3]`."""
    cells = gates[0].numel()
    bins = (gates.flatten(1) * BINS).long().clamp(0, BINS - 1)
    bins = bins + BINS * torch.arange(cells, device=gates.device)
    return bins.flatten().bincount(minlength=cells * BINS).view(*gates.shape[1:], BINS)


def _mean_of_pairs(products: Tensor) -> Tensor:
    """Mean over pairs of heads of products `[3, HQ, HQ]`, over those of each with itself."""
    own = products.diagonal(dim1=1, dim2=2)  # [3, HQ]
    vary = own > 1e-12
    scaled = products / (own[:, :, None] * own[:, None]).clamp(min=1e-300).sqrt()
    pairs = (vary[:, :, None] & vary[:, None]).triu(1)
    count = pairs.sum((1, 2))
    total = torch.where(pairs, scaled, 0).sum((1, 2))
    return torch.where(count > 0, total / count.clamp(min=1), torch.nan)
