"""How long the attention of a whole model takes inside a run."""

import torch

from videonsa.models.recorder.protocol import Moment, Recorder


class AttentionTime(Recorder):
    """Time of all layers' attention and of their gates, by CUDA events; nothing on a CPU.

    Attention is from the projected values to the output projection, less the gates.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: dict[Moment, list[torch.cuda.Event]] = {}

    def mark(self, layer: int, moment: Moment) -> None:
        """Record an event."""
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.setdefault(moment, []).append(event)

    def reset(self) -> None:
        """Forget the run before."""
        self._events.clear()

    def read(self) -> dict[str, float | None]:
        """`attention_ms` and `gates_ms` of the last run; None on a CPU."""
        if not self._on_gpu:
            return {"attention_ms": None, "gates_ms": None}
        gates = self._elapsed("gates begin", "gates end")
        attention = self._elapsed("attention begins", "attention ends")
        return {"attention_ms": attention - gates, "gates_ms": gates}

    def _elapsed(self, begin: Moment, end: Moment) -> float:
        pairs = zip(self._events.get(begin, []), self._events.get(end, []), strict=True)
        return float(sum(first.elapsed_time(last) for first, last in pairs))
