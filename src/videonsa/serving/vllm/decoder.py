"""The decoder in vLLM: its layers, told which of the tokens are vision."""

from typing import Any

from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM, Qwen2Model

from videonsa.serving.vllm.attention import VideoNSAAttention, VideoNSADecoderLayer
from videonsa.serving.vllm.sparse_step import SparseStep


class VideoNSADecoder(Qwen2Model):  # type: ignore[misc]  # vLLM is not typed
    """Qwen2's decoder with our layers."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(
            vllm_config=vllm_config, prefix=prefix, decoder_layer_type=VideoNSADecoderLayer
        )

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        sparse: SparseStep | None = None,
    ) -> Tensor:
        """As Qwen2's, in one pipeline stage."""
        hidden = self.embed_input_ids(input_ids) if inputs_embeds is None else inputs_embeds
        residual = None
        for layer in self.layers:
            hidden, residual = layer(positions, hidden, residual, sparse)
        output: Tensor = self.norm(hidden, residual)[0]
        return output


class VideoNSALanguageModel(Qwen2ForCausalLM):  # type: ignore[misc]
    """The decoder with its head."""

    decoder_class = VideoNSADecoder
