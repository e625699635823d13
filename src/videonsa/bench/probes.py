"""What the attention of a whole model does inside a run: its time, and what it selects."""

from typing import Any

import torch
from torch import Tensor, nn

from videonsa.bench.inputs import mean_union
from videonsa.models.modeling import VideoNSAForConditionalGeneration
from videonsa.models.recorder import AttentionRecorder
from videonsa.ops.spec import NSASpec


class AttentionTime:
    """Time of all layers' attention and of their gates, by CUDA events; nothing on a CPU.

    Attention is from the end of `v_proj` to the beginning of `o_proj`, less the gates: from the
    beginning of `g_proj_1` to the end of `g_proj_2`.
    """

    def __init__(self, model: VideoNSAForConditionalGeneration) -> None:
        self._layers = [layer.self_attn for layer in model.model.language_model.layers]
        self._on_gpu = model.device.type == "cuda"
        self._handles: list[Any] = []
        self._attention: list[torch.cuda.Event] = []
        self._gates: list[torch.cuda.Event] = []

    def __enter__(self) -> "AttentionTime":
        if self._on_gpu:
            for layer in self._layers:
                self._mark(layer.v_proj, self._attention, before=False)
                self._mark(layer.o_proj, self._attention, before=True)
                if layer.has_gates:
                    self._mark(layer.g_proj_1, self._gates, before=True)
                    self._mark(layer.g_proj_2, self._gates, before=False)
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _mark(self, module: nn.Module, events: list[torch.cuda.Event], *, before: bool) -> None:
        def record(*_: object) -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            events.append(event)

        register = module.register_forward_pre_hook if before else module.register_forward_hook
        self._handles.append(register(record))

    def reset(self) -> None:
        """Forget the run before."""
        self._attention.clear()
        self._gates.clear()

    def read(self) -> dict[str, float | None]:
        """`attention_ms` and `gates_ms` of the last run; None on a CPU."""
        if not self._on_gpu:
            return {"attention_ms": None, "gates_ms": None}
        gates = _elapsed(self._gates)
        return {"attention_ms": _elapsed(self._attention) - gates, "gates_ms": gates}


def _elapsed(events: list[torch.cuda.Event]) -> float:
    pairs = zip(events[::2], events[1::2], strict=True)
    return float(sum(begin.elapsed_time(end) for begin, end in pairs))


class UnionRecorder(AttentionRecorder):
    """Mean number of blocks that 16 neighbouring vision rows select, layer by layer."""

    def __init__(self) -> None:
        super().__init__()
        self.unions: list[float] = []
        self._vision_rows = torch.empty(0, dtype=torch.bool)

    def begin_step(
        self, vision_mask: Tensor, attention_mask: Tensor | None, frame_sizes: Tensor
    ) -> None:
        """Remember the vision rows of the one sample."""
        self._vision_rows = vision_mask[0]

    def record_text(self, layer: int, q: Tensor, k: Tensor) -> None:
        """Nothing: text rows select none."""

    def record_selection(self, layer: int, selected_blocks: Tensor, spec: NSASpec) -> None:
        """One more layer."""
        self.unions.append(mean_union(selected_blocks[:, self._vision_rows]))
