"""`VideoNSAForConditionalGeneration` for vLLM."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import get_forward_context
from vllm.logger import init_logger
from vllm.model_executor.models.interfaces import SupportsMRoPE, SupportsMultiModal
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY

from videonsa.models._hf import Qwen2_5_VisionTransformerPretrainedModel
from videonsa.models.features import encode_frames
from videonsa.models.methods import Dense
from videonsa.models.vision import replace_slow_parts
from videonsa.serving.vllm.attention import metadata_of
from videonsa.serving.vllm.checks import check_engine, chosen_method
from videonsa.serving.vllm.decoder import VideoNSALanguageModel
from videonsa.serving.vllm.loader import NAME
from videonsa.serving.vllm.marks import TEXT, new_marks, with_marks, without_marks, write_marks
from videonsa.serving.vllm.media import (
    KINDS,
    VideoNSADummyInputs,
    VideoNSAMediaProcessor,
    VideoNSAProcessingInfo,
)
from videonsa.serving.vllm.positions import prompt_positions
from videonsa.serving.vllm.sparse_step import SparseStep, sparse_step

_logger = init_logger(f"vllm.{NAME}")
_PAD = "<|vision_start|><|{}_pad|><|vision_end|>"


@MULTIMODAL_REGISTRY.register_processor(
    VideoNSAMediaProcessor, info=VideoNSAProcessingInfo, dummy_inputs=VideoNSADummyInputs
)
class VideoNSAForConditionalGeneration(nn.Module, SupportsMultiModal, SupportsMRoPE):  # type: ignore[misc]  # vLLM is not typed
    """Qwen2.5-VL in vLLM, whose vision tokens attend by a method of this package.

    The vision tower is transformers' with this package's faster parts, as in the engine: vLLM's own
    module of Qwen2.5-VL needs torchvision.
    """

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "model.visual.": "visual.",
            "lm_head.": "language_model.lm_head.",
            "model.": "language_model.model.",
        }
    )
    packed_modules_mapping = {  # noqa: RUF012  # vLLM reads it as such
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        self.config = config
        self.method = chosen_method(config, vllm_config.additional_config)
        check_engine(vllm_config, self.method)
        text = config.text_config
        for note in self.method.notes(text.num_hidden_layers, text.num_attention_heads):
            _logger.warning(note)
        with self._mark_tower_model(vllm_config, {"image", "video"}):  # type: ignore[operator]  # of vLLM
            self.visual = Qwen2_5_VisionTransformerPretrainedModel._from_config(
                config.vision_config,
                attn_implementation="sdpa",
                dtype=vllm_config.model_config.dtype,  # the config may state another
            )
            replace_slow_parts(self.visual, config.vision_config)
        text.videonsa_gates = config.gates
        with self._mark_language_model(vllm_config):  # type: ignore[operator]
            self.language_model = VideoNSALanguageModel(
                vllm_config=vllm_config, prefix=maybe_prefix(prefix, "language_model")
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors
        self._marks: Tensor | None = None
        self._new_marks: Tensor | None = None
        """int32 `[T]`, from `embed_input_ids` to the `forward` that follows it."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """As Qwen2.5-VL's chat template writes an image or a video."""
        return _PAD.format(modality)

    def get_mrope_input_positions(
        self, input_tokens: Sequence[int], mm_features: Sequence[Any]
    ) -> tuple[Tensor, int]:
        """Position ids `[3, L]` of a prompt, and what is added to a place behind it."""
        return prompt_positions(input_tokens, mm_features, config=self.config, method=self.method)

    def embed_multimodal(self, **items: Any) -> list[Tensor]:
        """Features of images and videos with their marks, `[M, hidden + 2]` each."""
        given = (frames for kind in KINDS for frames in items.get(f"{kind}_frames", ()))
        return [self._features(frames) for frames in given]

    def _features(self, frames: Tensor) -> Tensor:
        parts = list(encode_frames(self.visual, self.config.vision_config, [frames]))
        sizes = [len(part.features) // part.grid[0] for part in parts for _ in range(part.grid[0])]
        return with_marks(torch.cat([part.features for part in parts]), sizes)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Embedded ids with features in their places; remembers their marks."""
        self._new_marks = None
        if multimodal_embeddings is None or not len(multimodal_embeddings):
            embeds: Tensor = super().embed_input_ids(input_ids)
            return embeds
        assert is_multimodal is not None, "vLLM gives it with embeddings"
        features, marks = without_marks(torch.cat(list(multimodal_embeddings)))
        self._new_marks = new_marks(len(input_ids), features.device)
        self._new_marks[is_multimodal.to(features.device)] = marks
        embeds = super().embed_input_ids(input_ids, [features], is_multimodal=is_multimodal)
        return embeds

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: object,
    ) -> Tensor:
        """One step of vLLM; see `SparseStep`."""
        output: Tensor = self.language_model.model(
            input_ids=input_ids,
            positions=positions,
            inputs_embeds=inputs_embeds,
            sparse=self._sparse_step(positions),
        )
        return output

    def _sparse_step(self, positions: Tensor) -> SparseStep | None:
        new, self._new_marks = self._new_marks, None
        context = get_forward_context()
        if isinstance(self.method, Dense) or context.attn_metadata is None:
            return None  # vLLM's kernels are dense; it has no metadata where it measures memory
        layer = self.language_model.model.layers[0].self_attn.attn
        slots = context.slot_mapping[layer.layer_name]
        num_pages, page, num = len(layer.kv_cache), layer.kv_cache.shape[2], len(slots)
        if self._marks is None or len(self._marks) != num_pages * page:
            self._marks = new_marks(num_pages * page, slots.device)
        here = new_marks(num, slots.device) if new is None else new[:num]
        write_marks(self._marks, slots, here)
        return sparse_step(
            self.method,
            context.attn_metadata[layer.layer_name],
            marks=self._marks,
            page=page,
            positions=positions[:, :num],
            is_vision=None if new is None else (here != TEXT).cpu(),
            metadata_of=metadata_of(layer),
        )

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits of rows."""
        logits: Tensor | None = self.language_model.compute_logits(hidden_states)
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Weights by the names of a checkpoint."""
        names: set[str] = AutoWeightsLoader(self).load_weights(
            weights, mapper=self.hf_to_vllm_mapper
        )
        return names
