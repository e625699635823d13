"""Qwen2.5-VL: the modules of transformers that the model is built of, and how `generate` calls it.

Another family is one more file like this: its own attention and decoder layers, its tower, its ids.
"""

from typing import Any

from torch import Tensor

from videonsa.errors import ModelError, UsageError
from videonsa.models._hf import Qwen2_5_VLAttention, Qwen2_5_VLForConditionalGeneration
from videonsa.models.attention import HybridAttention
from videonsa.models.cache import VideoNSACache
from videonsa.models.checkpoints.adapters import refuse_applied
from videonsa.models.config import VideoNSAConfig
from videonsa.models.fused import fuse_layer
from videonsa.models.modeling import SparseVideoModel, needed
from videonsa.models.rows import repeat_vision
from videonsa.models.vision import replace_slow_parts

_VISION_ARGUMENTS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "video_times",
    "second_per_grid_ts",
)


class Qwen2_5_VLHybridAttention(HybridAttention, Qwen2_5_VLAttention):
    """Qwen2.5-VL's projections, and the gates where `config.gates` says so."""

    def __init__(self, config: VideoNSAConfig, layer_idx: int) -> None:
        Qwen2_5_VLAttention.__init__(self, config.text_config, layer_idx)
        if self.attention_dropout or self.sliding_window is not None:
            raise ModelError(
                f"attention_dropout={self.attention_dropout}, sliding_window="
                f"{self.sliding_window}: the hybrid attention has neither; set them to 0 and None"
            )
        self.add_gates(
            hidden_size=self.hidden_size,
            num_heads=self.num_heads,
            gate_init=config.gate_init if config.gates else None,
        )


class VideoNSAForConditionalGeneration(SparseVideoModel, Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose tokens attend by an `AttentionMethod`; `SparseVideoModel` explains the call.

    Parameters have Qwen2.5-VL's names; where `config.gates`, each layer's `self_attn` has
    `g_proj_1` and `g_proj_2` too.
    """

    config: VideoNSAConfig
    accepts_loss_kwargs = True  # `num_items_in_batch`; Qwen2.5-VL's own loss takes none
    # A dense model of weights with gates leaves them out; no other can find them unexpected.
    _keys_to_ignore_on_load_unexpected = (r"self_attn\.g_proj_[12]\.",)

    def __init__(self, config: VideoNSAConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.language_model.layers):
            layer.self_attn = Qwen2_5_VLHybridAttention(config, index)
            fuse_layer(layer, config.text_config)
        replace_slow_parts(self.model.visual, config.vision_config)
        self.method = config.method
        self.post_init()

    @property
    def _language_model(self) -> Any:
        """Where the decoder layers are."""
        return self.model.language_model

    @property
    def _tower(self) -> Any:
        """The vision tower."""
        return self.model.visual

    def initialize_weights(self) -> None:
        """Initialise what neither a checkpoint nor an earlier call has, gates included."""
        fresh = [
            module
            for module in self.modules()
            if isinstance(module, HybridAttention)
            and module.has_gates
            and not getattr(module.g_proj_2, "_is_hf_initialized", False)
        ]
        super().initialize_weights()
        for attention in fresh:
            attention.init_gates()

    @classmethod
    def from_pretrained(
        cls,
        *args: Any,
        fresh_gates: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As in transformers, but weights that are missing or unexpected, or adapters, are errors.

        Args:
            *args: the folder or hub id, and what else transformers takes.
            fresh_gates: gates may be missing; they start as `config.gate_init` says.
            output_loading_info: return (model, info).
            **kwargs: what else transformers takes.

        Raises:
            ModelError: naming the weights that are missing or unexpected, or an adapter.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        refuse_applied(model, args[0])
        missing = {name for name in info["missing_keys"] if not (fresh_gates and "g_proj" in name)}
        for title, names in (("missing", missing), ("unexpected", info["unexpected_keys"])):
            if names:
                raise ModelError(
                    f"{len(names)} weights are {title} in {args[0]}, among them "
                    f"{', '.join(sorted(names)[:4])}: want those of one complete checkpoint"
                )
        return (model, info) if output_loading_info else model

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: saved models name this package, and no copy of its code."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Leave out, after the first step, the images and videos that are in the cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for name in (*_VISION_ARGUMENTS, "layer_features"):
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat every sample, its images, videos and their times too."""
        if expand_size == 1:
            return input_ids, model_kwargs
        vision = {name: model_kwargs.pop(name, None) for name in _VISION_ARGUMENTS}
        kept = {name: value for name, value in model_kwargs.items() if value is not None}
        types = self._token_types(needed(input_ids))
        input_ids, expanded = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kept
        )
        merge_size = self.config.vision_config.spatial_merge_size
        return input_ids, expanded | repeat_vision(
            vision, types, repeats=expand_size, merge_size=merge_size
        )

    def _prepare_position_ids_for_generation(self, *_: Any, **__: Any) -> None:
        """None: `forward` computes the positions of the new rows."""

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Give `generate` the cache that knows vision rows."""
        kind = generation_config.cache_implementation
        if kind not in (None, "dynamic"):
            raise UsageError(
                f"cache_implementation={kind!r}: the hybrid attention has the growing cache only; "
                "leave it out"
            )
        wanted = generation_config.use_cache is not False
        if wanted and model_kwargs.get("past_key_values") is None:  # an empty cache is falsy
            model_kwargs["past_key_values"] = VideoNSACache()
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
