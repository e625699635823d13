"""What a run is watched by: gates, throughput, and the share of the hardware that it uses."""

import time
from collections.abc import Mapping, Sequence


def gate_log(means: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Mean gates under the names of the log, such as `gates/layer_00/window`."""
    return {
        f"gates/layer_{layer:02d}/{branch}": value
        for layer, branches in means.items()
        for branch, value in branches.items()
    }


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
