"""The passes that are measured, and what of each is timed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from videonsa.bench.attention_inputs import make_grad_output
from videonsa.bench.measure import Outcome, Task
from videonsa.bench.op_calls import Prepared

Pass: TypeAlias = Literal["forward", "backward", "both"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "both")
"""`backward` is timed after an untimed forward pass; `both` are timed together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gradients:
    """An op and its gradients; a result is the output, then a gradient for each input."""

    forward: Callable[[], Tensor]
    inputs: tuple[Tensor, ...]
    grad_output: Tensor

    def backward(self, output: Tensor) -> Outcome:
        return output, *torch.autograd.grad(output, self.inputs, self.grad_output)

    def whole(self) -> Outcome:
        return self.backward(self.forward())

    def start(self) -> Callable[[], Outcome]:
        return partial(self.backward, self.forward())


def make_tasks(prepared: Mapping[str, Prepared], which: Pass) -> dict[str, Task]:
    """What is run of each op in a pass, by the same names.

    The inputs of the ops require gradients from here on, or no more. All outputs get one gradient,
    in the layout of the op's q, which is that of its output.

    Args:
        prepared: ops with their inputs bound.
        which: the pass; gradients must be enabled while a task of "backward" or "both" runs.

    Raises:
        torch.OutOfMemoryError: the gradient of the output does not fit.
    """
    for op in prepared.values():
        for x in op.inputs:
            x.requires_grad_(which != "forward")
    if which == "forward" or not prepared:
        return {name: _repeated(partial(_output, op)) for name, op in prepared.items()}
    largest = max((op.inputs[0] for op in prepared.values()), key=Tensor.numel)
    grad_output = make_grad_output((largest.numel(),), like=largest)
    tasks = {}
    for name, op in prepared.items():
        q = op.inputs[0]
        gradients = _Gradients(
            forward=op.forward,
            inputs=op.inputs,
            grad_output=grad_output.as_strided(q.shape, q.stride()),
        )
        alone = Task(gradients.whole, gradients.start)
        tasks[name] = alone if which == "backward" else _repeated(gradients.whole)
    return tasks


def _output(op: Prepared) -> Outcome:
    return (op.forward(),)


def _repeated(whole: Callable[[], Outcome]) -> Task:
    """All of it is timed, and runs once untimed before."""

    def start() -> Callable[[], Outcome]:
        whole()
        return whole

    return Task(whole, start)
