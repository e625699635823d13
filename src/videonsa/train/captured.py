"""Forward and backward of packs of one shape as one CUDA graph: a launch in place of thousands."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from videonsa.data.collate import PackedBatch
from videonsa.data.shapes import PackShape
from videonsa.errors import UsageError
from videonsa.models.families.qwen2_5_vl import VideoNSAForConditionalGeneration
from videonsa.train.equal_loss import EqualInputs, EqualLoss, equal_inputs
from videonsa.train.watch import report_line

WARM_UP = 2
"""Passes before a capture: kernels compile in the first."""


class _Captured(NamedTuple):
    inputs: EqualInputs
    graph: torch.cuda.CUDAGraph
    loss: Tensor
    grads: list[tuple[nn.Parameter, Tensor]]


class CapturedSteps:
    """Losses and gradients of packs of equal shape.

    On a GPU each shape is captured when it first comes; elsewhere the same loss is computed as it
    is written.

    Args:
        model: on its device, in training mode.
    """

    def __init__(self, model: VideoNSAForConditionalGeneration) -> None:
        self._model = model
        self._rules = model.position_rules()
        self._losses: dict[PackShape, EqualLoss] = {}
        self._captured: dict[PackShape, _Captured] = {}
        self._pool: Any = None
        self._stream: Any = None
        """Of all passes: each weight adds up its gradients on the stream of its first pass."""

    def run(self, batch: PackedBatch, num_items: Tensor | int | None = None) -> Tensor:
        """The loss of a pack, detached; its gradients are added to those that the weights have.

        On a GPU they lie in memory that the next call writes to.

        Args:
            batch: of equal shape.
            num_items: what the sum of losses is divided by; None: the labels of the pack.

        Raises:
            UsageError: a pack whose samples differ in shape.
        """
        if batch.shape is None:
            raise UsageError(
                "run.capture=true and a pack whose samples differ in shape: want "
                "data.shapes=equal, and samples of one video each"
            )
        device = self._model.device
        inputs = equal_inputs(
            batch,
            self._rules,
            num_items=num_items,
            device=device,
            dtype=self._model._tower.dtype,
        )
        if batch.shape not in self._losses:
            self._losses[batch.shape] = EqualLoss(self._model, batch)
        # Clones: what a pass before this one left may lie where this one writes.
        earlier = [(p, p.grad.clone()) for p in self._model.parameters() if p.grad is not None]
        loss = self._alone(batch.shape, inputs)
        for weight, grad in earlier:
            weight.grad = grad if weight.grad is None else weight.grad.add_(grad)
        return loss

    def _alone(self, shape: PackShape, inputs: EqualInputs) -> Tensor:
        """The loss of a pack; the weights then have its gradients and no others."""
        if self._model.device.type != "cuda":
            return self._pass(self._losses[shape], inputs)
        if shape not in self._captured:
            self._captured[shape] = self._capture(shape, inputs)
        captured = self._captured[shape]
        captured.inputs.copy_(inputs)
        captured.graph.replay()
        for weight, grad in captured.grads:
            weight.grad = grad
        return captured.loss.clone()

    def _pass(self, loss: EqualLoss, inputs: EqualInputs) -> Tensor:
        for weight in self._model.parameters():
            weight.grad = None  # a capture needs gradients in memory of its own
        value = loss(inputs)
        value.backward()
        return value.detach()

    def _capture(self, shape: PackShape, inputs: EqualInputs) -> _Captured:
        loss = self._losses[shape]
        side = self._stream = self._stream or torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._pass(loss, inputs)
        torch.cuda.current_stream().wait_stream(side)
        for weight in self._model.parameters():
            weight.grad = None
        torch.cuda.empty_cache()  # what the passes above held, the graph needs
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=side):
            value = self._pass(loss, inputs)
        self._pool = graph.pool()
        report_line(
            f"captured: packs of {shape.samples} samples of {shape.tokens:,} tokens, "
            f"{torch.cuda.memory_reserved() / 1e9:.1f} GB in use"
        )
        grads = [(p, p.grad) for p in self._model.parameters() if p.grad is not None]
        return _Captured(inputs, graph, value, grads)
