"""What static steps take of a model."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import nn

from videonsa.models.methods import AttentionMethod


class SteppedModel(Protocol):
    """A model whose tokens are decoded: its embeddings, decoder layers and head."""

    @property
    def device(self) -> torch.device:
        """Where ids go."""

    @property
    def config(self) -> Any:
        """With the `text_config`."""

    @property
    def method(self) -> AttentionMethod:
        """How calls attend that say nothing else."""

    @property
    def get_input_embeddings(self) -> Callable[[], nn.Module]:
        """Gives what turns ids into embeddings."""

    @property
    def _language_model(self) -> Any:
        """With `layers`, `norm` and `rotary_emb`."""

    @property
    def lm_head(self) -> nn.Module:
        """Turns hidden states into logits."""

    def modules(self) -> Iterator[nn.Module]:
        """All its parts."""
