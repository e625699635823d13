"""The decoder in vLLM: its layers, told which of the tokens are vision."""

from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM, Qwen2Model
from vllm.model_executor.models.utils import maybe_prefix

from videonsa.serving.vllm.attention import VideoNSADecoderLayer
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

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        nn.Module.__init__(self)  # Qwen2's own would build its decoder
        config = vllm_config.model_config.hf_config.get_text_config()
        self.config, self.quant_config = config, vllm_config.quant_config
        self.model = VideoNSADecoder(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"))
        self.lm_head = ParallelLMHead(
            config.vocab_size,
            config.hidden_size,
            quant_config=self.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )
        if config.tie_word_embeddings:
            self.lm_head = self.lm_head.tie_weights(self.model.embed_tokens)
        self.logits_processor = LogitsProcessor(config.vocab_size)
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors
