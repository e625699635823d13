"""`VideoNSAForConditionalGeneration`: Qwen2.5-VL with the hybrid attention in every layer."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from videonsa.errors import ModelError, UsageError
from videonsa.models._hf import (
    Cache,
    CausalLMOutputWithPast,
    Qwen2_5_VLForConditionalGeneration,
)
from videonsa.models.attention import HybridAttention
from videonsa.models.cache import VideoNSACache, as_before_if_it_fails
from videonsa.models.checkpoints.adapters import refuse_applied
from videonsa.models.choice import AttentionChoice, choose_attention, chunk_of_rows, even_chunk
from videonsa.models.config import VideoNSAConfig
from videonsa.models.distributed.packed import check_goes_whole, labels_within, sample_lengths
from videonsa.models.distributed.prefill import check_prefill, rows_of_a_chunk, share_chunk
from videonsa.models.distributed.sharded import (
    ShardedRows,
    shard_rows,
    sharded_loss,
    share_encoding,
)
from videonsa.models.features import encode_frames, encode_patches, place_features
from videonsa.models.fused import fuse_layer
from videonsa.models.loss import loss_of_labels
from videonsa.models.recorder import AttentionRecorder
from videonsa.models.rope import Grid, TokenType
from videonsa.models.rows import (
    NewRows,
    PositionRules,
    VisionInputs,
    cut_rows,
    describe_rows,
    repeat_vision,
    row_mask,
    vision_inputs,
)
from videonsa.models.step import attention_step
from videonsa.models.vision import replace_slow_parts
from videonsa.ops.nsa import Backend
from videonsa.ops.spec import NSASpec
from videonsa.parallel.context import ContextParallelGroup

_VISION_ARGUMENTS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "video_times",
    "second_per_grid_ts",
)


def _needed(input_ids: Tensor | None) -> Tensor:
    if input_ids is None:
        raise UsageError("input_ids is missing: vision rows are found by token id, so pass it")
    return input_ids


class VideoNSAForConditionalGeneration(Qwen2_5_VLForConditionalGeneration):
    """Qwen2.5-VL whose image and video rows attend by NSA and whose text rows attend densely.

    Parameters have Qwen2.5-VL's names; `config.attention` "nsa" adds the gates, `g_proj_1` and
    `g_proj_2` of each layer's `self_attn`. Nothing is kept on the module between calls: what a
    later step needs is in the `VideoNSACache`.

    Arguments of `forward` (B samples, T new rows, S rows with the cached ones):

    * `input_ids`: int64 `[B, T]`. Always needed: vision rows are found by token id.
    * `attention_mask`: `[B, T]` or `[B, S]`, 0 where padded.
    * `position_ids`: int64 `[3, B, T]`, in place of the computed ones.
    * `past_key_values`: a `VideoNSACache`, which the call extends.
    * `use_cache`: whether to return one; by default unless training.
    * `inputs_embeds`: `[B, T, hidden]`, in place of the embedded ids and pixels.
    * `labels`: int64 `[B, T]`, -100 where there is no loss.
    * `pixel_values`, `pixel_values_videos`: `[P, 1176]` patches of the images, of the videos, of
      the new rows; `image_grid_thw`, `video_grid_thw`: `[N, 3]` their sizes in patches.
    * `video_times`: for each video, the seconds of the first frame of each temporal patch; or
      `second_per_grid_ts`: `[V]`, the seconds of a temporal patch.
    * `cu_seqlens`: int32 `[N + 1]`, where each of N samples that are packed in one row begins, and
      the end. They do not see each other, positions start anew in each, and the loss predicts no
      first token. Not with `attention_mask`, a cache, `rows_per_chunk` or a recorder.
    * `loss_only`: the loss without logits, which are None then: for memory, with many rows.
    * `logits_to_keep`: how many last logits, or which, to compute; 0 is all.
    * `rows_per_chunk`: at most so many new rows go through the layers at once, for bounded memory.
      By default `ROWS_PER_CHUNK` for NSA without gradients, where that can be; 0 is all in one go.
    * `attention`, `nsa_spec`: in place of the config's, for this call. `backend`: of the ops.
    * `recorder`: an `AttentionRecorder`, for a batch of one.
    * `cp_group`: a `ContextParallelGroup` of processes that share the one sequence (packed or not)
      and pass equal arguments. Each encodes its frames and has its rows: the logits are of these,
      the loss of all, and the gradients are shares whose sum is the gradient. Not with what
      `cu_seqlens` excludes, nor `logits_to_keep`. With a cache they share a prefill instead: each
      ends with the whole cache and the logits of the last rows, so that it decodes on its own.
      `rows_per_chunk` is then of each process. Not with padding, labels or gradients.
    * `mm_token_type_ids`: ignored. Arguments that do not fit together raise a `UsageError`.
    """

    config: VideoNSAConfig
    accepts_loss_kwargs = True  # `num_items_in_batch`; Qwen2.5-VL's own loss takes none
    # A dense model of weights with gates leaves them out; no other can find them unexpected.
    _keys_to_ignore_on_load_unexpected = (r"self_attn\.g_proj_[12]\.",)

    def __init__(self, config: VideoNSAConfig) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.language_model.layers):
            layer.self_attn = HybridAttention(config, index)
            fuse_layer(layer, config.text_config)
        replace_slow_parts(self.model.visual, config.vision_config)
        self.post_init()

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

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        video_times: Sequence[Sequence[float]] | None = None,
        second_per_grid_ts: Sequence[float] | Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        loss_only: bool = False,
        logits_to_keep: int | Tensor = 0,
        rows_per_chunk: int | None = None,
        attention: Literal["nsa", "dense"] | None = None,
        nsa_spec: NSASpec | None = None,
        backend: Backend = "auto",
        recorder: AttentionRecorder | None = None,
        cp_group: ContextParallelGroup | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        mm_token_type_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Logits of the new rows, and the loss where there are `labels`; see the class."""
        input_ids = _needed(input_ids)
        choice = choose_attention(self.config, attention, nsa_spec, backend, recorder)
        lengths = None if cu_seqlens is None else sample_lengths(cu_seqlens, input_ids.shape)
        prefills = cp_group is not None and (past_key_values is not None or bool(use_cache))
        if lengths is not None or (cp_group is not None and not prefills):
            what = "cu_seqlens" if cp_group is None or prefills else "cp_group"
            given = (attention_mask, past_key_values, use_cache, rows_per_chunk, logits_to_keep)
            check_goes_whole(what, choice, *given)
            use_cache, rows_per_chunk = False, 0
        cache = self._cache(past_key_values, use_cache)
        times = (video_times, second_per_grid_ts)
        vision = vision_inputs(
            image_grid_thw, video_grid_thw, *times, temporal_ids=choice.spec.temporal_ids
        )
        past = 0 if cache is None else cache.get_seq_length()
        mask = row_mask(input_ids, attention_mask, past=past)
        types = self._token_types(input_ids) * mask
        rows = self._describe(types, mask, position_ids, vision, cache, choice.spec, lengths)
        if cp_group is not None and cache is not None:
            check_prefill(
                rows, cache, choice, output_hidden_states, labels=labels, kept=logits_to_keep
            )
            chunk = rows_of_a_chunk(rows_per_chunk, rows, cp_group)
        else:
            chunk = chunk_of_rows(rows_per_chunk, choice, output_hidden_states=output_hidden_states)
        if inputs_embeds is None:
            pixels = (pixel_values, pixel_values_videos)
            inputs_embeds = self._embed(input_ids, types, *pixels, vision, cp_group)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        with as_before_if_it_fails(cache):
            last, hidden_states, sharded = self._run(
                inputs_embeds, rows, cache, choice, chunk, kept, cp_group, output_hidden_states
            )
        if labels is not None and lengths is not None:
            labels = labels_within(labels, lengths)
        logits = None if loss_only else self.lm_head(last)
        result = CausalLMOutputWithPast(
            loss=self._loss(last, logits, labels, num_items_in_batch, cp_group, sharded),
            logits=logits,
            past_key_values=cache,
            hidden_states=hidden_states,
        )
        return result.to_tuple() if return_dict is False else result

    def _run(
        self,
        embeds: Tensor,
        rows: NewRows,
        cache: VideoNSACache | None,
        choice: AttentionChoice,
        chunk: int,
        kept: slice | Tensor,
        cp_group: ContextParallelGroup | None,
        output_hidden_states: bool | None,
    ) -> tuple[Tensor, Any, ShardedRows | None]:
        """The kept rows of the last hidden states, those of all layers, and what rows are ours."""
        if chunk and (cp_group is not None or embeds.shape[1] > chunk):
            last = self._run_chunks(embeds, rows, cache, choice, chunk, kept, cp_group)
            return last, None, None
        sharded = None if cp_group is None else shard_rows(rows, choice, cp_group)
        outputs = self._run_layers(embeds, rows, cache, choice, output_hidden_states, sharded)
        return outputs.last_hidden_state[:, kept], outputs.hidden_states, sharded

    def _run_layers(
        self,
        embeds: Tensor,
        rows: NewRows,
        cache: VideoNSACache | None,
        choice: AttentionChoice,
        output_hidden_states: bool | None = None,
        sharded: ShardedRows | None = None,
    ) -> Any:
        if sharded is None:
            positions, step = rows.position_ids, attention_step(rows, cache, choice)
        else:
            embeds, step = embeds[:, sharded.positions], sharded.step
            positions = rows.position_ids[:, :, sharded.positions]
        return self.model.language_model(
            inputs_embeds=embeds,
            position_ids=positions,
            attention_mask={"full_attention": None},  # the step holds the masks
            past_key_values=cache,
            use_cache=cache is not None,
            output_hidden_states=output_hidden_states,
            step=step,
        )

    def _run_chunks(
        self,
        embeds: Tensor,
        rows: NewRows,
        cache: VideoNSACache | None,
        choice: AttentionChoice,
        rows_per_chunk: int,
        kept: slice | Tensor,
        cp_group: ContextParallelGroup | None,
    ) -> Tensor:
        """The kept rows of the last hidden states; every chunk attends to those before it."""
        cache = VideoNSACache() if cache is None else cache
        cache.expected = cache.get_seq_length() + embeds.shape[1]
        rows_per_chunk = even_chunk(embeds.shape[1], rows_per_chunk)
        parts = []
        for start in range(0, embeds.shape[1], rows_per_chunk):
            stop = start + rows_per_chunk
            chunk = cut_rows(rows, start, stop)
            shared = None if cp_group is None else share_chunk(chunk, cache, choice, cp_group)
            sharded = None if shared is None else shared.sharded
            last = self._run_layers(
                embeds[:, start:stop], chunk, cache, choice, sharded=sharded
            ).last_hidden_state
            if shared is not None and isinstance(kept, slice):
                last = shared.rows_of_all(last, kept)
            # The last rows of all are among the last of each; a view would keep the others alive.
            parts.append(last[:, kept].clone() if isinstance(kept, slice) else last)
        return torch.cat(parts, dim=1)[:, kept]

    def encode_vision(self, pixels: Tensor, grids: Sequence[Grid]) -> Tensor:
        """Features of the merged tokens of images or videos, `[M, hidden]`.

        Args:
            pixels: `[P, channels * temporal * patch * patch]` patches, those of a merged token
                together, images and videos one after the other; on the tower's device or the CPU.
            grids: (t, h, w) of each, in patches.

        Raises:
            UsageError: patches and grids that do not match.
        """
        return encode_patches(self.model.visual, self.config.vision_config, pixels, grids)

    def encode_frames(self, parts: Iterable[Tensor]) -> Tensor:
        """Features of the merged tokens of one video, `[M, hidden]`, while its frames come.

        Each part is cut into patches and encoded before the next is asked for: pixels never pile
        up. The features are `encode_vision`'s; where the parts end changes no more than rounding.

        Args:
            parts: uint8 `[n, 3, H, W]`, RGB, in order and of one size, multiples of
                patch_size * merge_size; all but the last hold whole temporal patches.

        Raises:
            UsageError: no frames, frames of another type or size, or a temporal patch cut in two.
        """
        return encode_frames(self.model.visual, self.config.vision_config, parts)

    def embed_prompt(
        self,
        input_ids: Tensor,
        *,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
    ) -> Tensor:
        """Embedded ids with features at the image and video tokens: `inputs_embeds` of `forward`.

        Args:
            input_ids: int64 `[B, T]`.
            image_features: `[M, hidden]`, a row for each image token of the batch, in order.
            video_features: the same for its video tokens.

        Raises:
            UsageError: not as many features as tokens.
        """
        types = self._token_types(input_ids)
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        none = embeds.new_empty(0, embeds.shape[-1])
        for kind, features in (
            (TokenType.IMAGE, image_features),
            (TokenType.VIDEO, video_features),
        ):
            given = none if features is None else features
            embeds = place_features(given, embeds, types, kind)
        return embeds

    def _cache(self, given: Cache | None, use_cache: bool | None) -> VideoNSACache | None:
        if given is None:
            wanted = self.config.text_config.use_cache and not self.training
            return VideoNSACache() if (wanted if use_cache is None else use_cache) else None
        if not isinstance(given, VideoNSACache):
            raise UsageError(
                f"past_key_values is a {type(given).__name__}: want a VideoNSACache, which knows "
                "the vision rows (videonsa.models.cache)"
            )
        return given

    def _token_types(self, input_ids: Tensor) -> Tensor:
        types = torch.where(input_ids == self.config.video_token_id, TokenType.VIDEO, 0)
        return types + torch.where(input_ids == self.config.image_token_id, TokenType.IMAGE, 0)

    def _describe(
        self,
        types: Tensor,
        mask: Tensor,
        position_ids: Tensor | None,
        vision: VisionInputs,
        cache: VideoNSACache | None,
        spec: NSASpec,
        lengths: list[int] | None,
    ) -> NewRows:
        batch, length = types.shape
        if position_ids is not None and position_ids.shape != (3, batch, length):
            raise UsageError(
                f"position_ids is {list(position_ids.shape)}: want [3, {batch}, {length}] (t, h, "
                "w), or none to have them computed"
            )
        return describe_rows(
            types,
            mask,
            vision,
            start=(cache.next_position if cache is not None else []) or [0] * batch,
            rules=PositionRules(
                tokens_per_second=self.config.vision_config.tokens_per_second,
                merge_size=self.config.vision_config.spatial_merge_size,
                temporal_ids=spec.temporal_ids,
            ),
            position_ids=position_ids,
            lengths=lengths,
        )

    def _embed(
        self,
        input_ids: Tensor,
        types: Tensor,
        image_pixels: Tensor | None,
        video_pixels: Tensor | None,
        vision: VisionInputs,
        cp_group: ContextParallelGroup | None,
    ) -> Tensor:
        """Embedded ids, with the features of images and videos at their tokens."""
        encode: Callable[[Tensor, Sequence[Grid]], Tensor] = self.encode_vision
        if cp_group is not None:
            size = self.config.vision_config.spatial_merge_size
            encode = partial(share_encoding, encode, cp_group=cp_group, merge_size=size)
        embeds: Tensor = self.get_input_embeddings()(input_ids)
        for kind, pixels, grids in (
            (TokenType.IMAGE, image_pixels, vision.image_grids),
            (TokenType.VIDEO, video_pixels, vision.video_grids),
        ):
            if (pixels is None) != (not grids):
                raise UsageError(
                    f"{kind.name.lower()}s with {'no' if pixels is None else 'their'} pixels and "
                    f"{len(grids)} grids: pass both or neither"
                )
            if pixels is not None:
                embeds = place_features(encode(pixels, grids), embeds, types, kind)
        return embeds

    def _loss(
        self,
        hidden: Tensor,
        logits: Tensor | None,
        labels: Tensor | None,
        num_items: Tensor | int | None,
        cp_group: ContextParallelGroup | None,
        sharded: ShardedRows | None,
    ) -> Tensor | None:
        if labels is None:
            return None
        if logits is None:
            own = None if sharded is None else sharded.positions
            return loss_of_labels(
                hidden, labels, self.lm_head, num_items=num_items, positions=own, cp_group=cp_group
            )
        if cp_group is not None and sharded is not None:
            return sharded_loss(logits, labels, sharded, cp_group, num_items)
        vocab_size = self.config.text_config.vocab_size
        loss: Tensor = self.loss_function(
            logits=logits, labels=labels, vocab_size=vocab_size, num_items_in_batch=num_items
        )
        return loss

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Leave out, after the first step, the images and videos that are in the cache."""
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(*args, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for name in _VISION_ARGUMENTS:
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
        types = self._token_types(_needed(input_ids))
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
