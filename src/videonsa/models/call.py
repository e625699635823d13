"""What one call of a model asks for."""

from typing import NamedTuple

from torch import Tensor

from videonsa.models.layers import LayerFeatures
from videonsa.models.methods.protocol import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.parallel.context import ContextParallelGroup


class ModelCall(NamedTuple):
    """Arguments of `SparseVideoModel.forward` beside the tokens, as they were given."""

    method: AttentionMethod
    recorder: Recorder | None
    cp_group: ContextParallelGroup | None
    labels: Tensor | None
    logits_to_keep: int | Tensor
    rows_per_chunk: int | None
    output_hidden_states: bool | None
    chunk: int = 0
    """Rows that go through the layers at a time; 0: all."""
    features: LayerFeatures | None = None
    """To add between layers."""

    @property
    def kept(self) -> slice | Tensor:
        """Which of the last hidden states become logits."""
        kept = self.logits_to_keep
        return slice(-kept, None) if isinstance(kept, int) else kept
