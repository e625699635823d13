"""Bfloat16 weights that train: the optimizer has a float32 copy of each, its master."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class MasterWeights:
    """Float32 masters of the trained weights of a model, which becomes bfloat16.

    A step of the optimizer changes the masters, and the weights are their roundings. So no weight
    is cast in a step, as autocast does; gradients of several sequences add up in float32.

    Args:
        model: on its device, its weights in float32.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.named: dict[str, nn.Parameter] = {
            name: nn.Parameter(weight.detach().float().clone())
            for name, weight in self._weights.items()
        }
        """The master of each trained weight."""
        for weight in model.parameters():  # not buffers: angles need float32
            weight.data = weight.data.bfloat16()

    def parameters(self) -> Iterator[nn.Parameter]:
        """The masters."""
        return iter(self.named.values())

    @torch.no_grad()
    def collect(self) -> None:
        """Add the gradients of the weights to those of the masters, and let go of them."""
        for name, weight in self._weights.items():
            if weight.grad is None:
                continue
            master = self.named[name]
            if master.grad is None:
                master.grad = weight.grad.float()
            else:
                master.grad += weight.grad
            weight.grad = None

    @torch.no_grad()
    def update_weights(self, *_: Any) -> None:
        """Round the masters into the weights, and let go of the masters' gradients.

        A hook behind the optimizer's step.
        """
        torch._foreach_copy_(list(self._weights.values()), list(self.named.values()))
        for master in self.parameters():
            master.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Make the model float32 again, with the masters in their places: no step comes after."""
        for weight in self._model.parameters():
            weight.data = weight.data.float()
        for name, weight in self._weights.items():
            weight.data = self.named[name].data

    def state_dict(self) -> dict[str, Tensor]:
        """The model's, in float32: masters where there are some."""
        masters = {id(self._weights[name]): master for name, master in self.named.items()}
        state: dict[str, Any] = self._model.state_dict(keep_vars=True)
        return {
            name: masters[id(value)].detach() if id(value) in masters else value.detach().float()
            for name, value in state.items()
        }
