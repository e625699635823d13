"""`SparseVideoModel`: the forward pass of a video-language model, whatever its family."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from videonsa.errors import UsageError
from videonsa.models._hf import Cache, CausalLMOutputWithPast
from videonsa.models.cache import VideoNSACache, as_before_if_it_fails
from videonsa.models.call import ModelCall
from videonsa.models.chunks import chunk_of_rows, even_chunk
from videonsa.models.distributed.packed import check_goes_whole, labels_within, sample_lengths
from videonsa.models.distributed.prefill import check_prefill, rows_of_a_chunk, share_chunk
from videonsa.models.distributed.sharded import (
    ShardedRows,
    shard_rows,
    sharded_loss,
    share_encoding,
)
from videonsa.models.encoder import VideoEncoder
from videonsa.models.features import place_features
from videonsa.models.layers import (
    LayerFeatures,
    LayersOutput,
    check_leaving,
    enter_rows,
    run_layers,
)
from videonsa.models.linears import linear_rows
from videonsa.models.loss import loss_of_labels
from videonsa.models.methods.compression import check_reads_kept
from videonsa.models.methods.protocol import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.rope import Grid, TokenType
from videonsa.models.rows import (
    NewRows,
    PositionRules,
    VisionInputs,
    cut_rows,
    describe_rows,
    row_mask,
    vision_inputs,
)
from videonsa.parallel.context import ContextParallelGroup


def needed(input_ids: Tensor | None) -> Tensor:
    """The ids.

    Raises:
        UsageError: there are none.
    """
    if input_ids is None:
        raise UsageError("input_ids is missing: vision rows are found by token id, so pass it")
    return input_ids


def _chunk(call: ModelCall, rows: NewRows, cache: VideoNSACache | None) -> int:
    """`ModelCall.chunk`."""
    wanted, all_states = call.rows_per_chunk, call.output_hidden_states
    if call.cp_group is None or cache is None:
        return chunk_of_rows(wanted, call.method, output_hidden_states=all_states)
    check_prefill(call, rows, cache)
    return rows_of_a_chunk(wanted, rows, call.cp_group)


class SparseVideoModel(VideoEncoder):
    """A video-language model whose tokens attend by an `AttentionMethod`.

    A family (`models.families`) brings the modules. Nothing is kept on them between calls: what a
    later step needs is in the `VideoNSACache`.

    Arguments of `forward` (B samples, T new rows, S rows with the cached ones):

    * `input_ids`: int64 `[B, T]`. Always needed: vision rows are found by token id.
    * `attention_mask`: `[B, T]` or `[B, S]`, 0 where padded.
    * `position_ids`: int64 `[3, B, T]`, in place of the computed ones.
    * `rows`: the new rows as `describe` gives them, or a part of these (`cut_rows`) that may end
      inside a frame, in place of masks, positions, grids and times. With `inputs_embeds`.
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
      first token. Not with `attention_mask`, a cache, `rows_per_chunk`, tokens that leave, or a
      recorder, unless it `takes_packed`.
    * `loss_only`: the loss without logits, which are None then: for memory, with many rows.
    * `logits_to_keep`: how many last logits, or which, to compute; 0 is all. Where tokens leave
      inside the layers, of those that passed the last one.
    * `rows_per_chunk`: at most so many new rows go through the layers at once, for bounded memory.
      By default `ROWS_PER_CHUNK` for NSA without gradients, where that can be; 0 is all in one go.
    * `method`: how this call attends, in place of the model's: an `AttentionMethod`, or its name.
    * `recorder`: a `Recorder`, told of every step and layer.
    * `layer_features`: by layer, `[M, hidden]` to add after it to the hidden states of the new
      vision tokens, a row for each of them in order.
    * `cp_group`: a `ContextParallelGroup` of processes that share the one sequence (packed or not)
      and pass equal arguments. Each encodes its frames and has its rows: the logits are of these,
      the loss of all, and the gradients are shares whose sum is the gradient. Not with what
      `cu_seqlens` excludes, nor `logits_to_keep`. With a cache they share a prefill instead: each
      ends with the whole cache and the logits of the last rows, so that it decodes on its own.
      `rows_per_chunk` is then of each process. Not with padding, labels or gradients.
    * `mm_token_type_ids`: ignored. Arguments that do not fit together raise a `UsageError`.
    """

    training: bool
    device: torch.device
    dtype: torch.dtype
    state_dict: Callable[[], dict[str, Any]]
    lm_head: nn.Linear
    loss_function: Callable[..., Tensor]

    @property
    def _language_model(self) -> Any:
        """Where the decoder layers are."""
        raise NotImplementedError

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        """The decoder layers, in order."""
        return self._language_model.layers  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        rows: NewRows | None = None,
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
        method: AttentionMethod | str | None = None,
        recorder: Recorder | None = None,
        layer_features: Mapping[int, Tensor] | None = None,
        cp_group: ContextParallelGroup | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        mm_token_type_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Logits of the new rows, and the loss where there are `labels`; see the class."""
        input_ids = needed(input_ids)
        method, num_layers = self._method(method), self.config.text_config.num_hidden_layers
        check_leaving(method, num_layers=num_layers, labels=labels, kept=logits_to_keep)
        check_reads_kept(method, grids=(image_grid_thw, video_grid_thw), labels=labels)
        asked = (labels, logits_to_keep, rows_per_chunk, output_hidden_states)
        call = ModelCall(method, recorder, cp_group, *asked)
        lengths = None if cu_seqlens is None else sample_lengths(cu_seqlens, input_ids.shape)
        prefills = cp_group is not None and (past_key_values is not None or bool(use_cache))
        if lengths is not None or (cp_group is not None and not prefills):
            what = "cu_seqlens" if cp_group is None or prefills else "cp_group"
            check_goes_whole(what, call, attention_mask, past_key_values, use_cache)
            use_cache, call = False, call._replace(rows_per_chunk=0)
        cache = self._cache(past_key_values, use_cache)
        times = (video_times, second_per_grid_ts)
        temporal_ids = self.position_rules(method).temporal_ids
        vision = vision_inputs(image_grid_thw, video_grid_thw, *times, temporal_ids=temporal_ids)
        past = 0 if cache is None else cache.get_seq_length()
        mask = row_mask(input_ids, attention_mask, past=past)
        if rows is None:
            rows = self.describe(
                input_ids,
                vision,
                mask=mask,
                start=() if cache is None else cache.next_position,
                position_ids=position_ids,
                lengths=lengths,
                method=method,
            )
        elif inputs_embeds is None:
            raise UsageError("rows without inputs_embeds: pass the embedded prompt too")
        call = call._replace(chunk=_chunk(call, rows, cache))
        if inputs_embeds is None:
            pixels = (pixel_values, pixel_values_videos)
            inputs_embeds = self._embed(input_ids, mask, *pixels, vision, cp_group)
        call = call._replace(features=LayerFeatures.of(layer_features, rows, num_layers=num_layers))
        with as_before_if_it_fails(cache):
            found, sharded = self._run(inputs_embeds, rows, cache, call)
        if labels is not None and lengths is not None:
            call = call._replace(labels=labels_within(labels, lengths))
        logits = None if loss_only else linear_rows(found.last, [self.lm_head])[0]
        result = CausalLMOutputWithPast(
            loss=self._loss(found.last, logits, call, sharded, num_items=num_items_in_batch),
            logits=logits,
            past_key_values=cache,
            hidden_states=found.hidden_states,
        )
        return result.to_tuple() if return_dict is False else result

    def _method(self, given: AttentionMethod | str | None) -> AttentionMethod:
        """How a call attends.

        Raises:
            UsageError: a name of none, or a method whose gates the model lacks.
        """
        method = self.config.method_of(self.method if given is None else given)
        if method.uses_gates and not self.config.gates:
            raise UsageError(
                f"method={method.name!r} on a model without gates: load it with "
                f"method={method.name!r} and fresh_gates=True"
            )
        return method

    def _run(
        self, embeds: Tensor, rows: NewRows, cache: VideoNSACache | None, call: ModelCall
    ) -> tuple[LayersOutput, ShardedRows | None]:
        """The kept rows of the last hidden states, those of all layers, and what rows are ours."""
        if call.chunk and (call.cp_group is not None or embeds.shape[1] > call.chunk):
            return LayersOutput(self._run_chunks(embeds, rows, cache, call), None), None
        sharded = None
        if call.cp_group is not None:
            sharded = shard_rows(rows, call.method, call.cp_group, call.recorder)
        found = self._run_layers(embeds, rows, cache, call, sharded=sharded)
        return found._replace(last=found.last[:, call.kept]), sharded

    def _run_layers(
        self,
        embeds: Tensor,
        rows: NewRows,
        cache: VideoNSACache | None,
        call: ModelCall,
        *,
        sharded: ShardedRows | None = None,
        is_last: bool = True,
    ) -> LayersOutput:
        """All rows, or those of this process, through the layers."""
        features = call.features
        if sharded is None:
            step = enter_rows(rows, cache, call.method, call.recorder, is_last=is_last)
        else:
            own, step = sharded
            embeds = embeds[:, own]
            rows = rows._replace(position_ids=rows.position_ids[:, :, own])
            features = None if features is None else features.of_tokens(own)
        model = self._language_model
        return run_layers(
            model,
            embeds,
            rows,
            step,
            cache,
            features=features,
            keep_all=bool(call.output_hidden_states),
        )

    def _run_chunks(
        self, embeds: Tensor, rows: NewRows, cache: VideoNSACache | None, call: ModelCall
    ) -> Tensor:
        """The kept rows of the last hidden states; every chunk attends to those before it."""
        cache = VideoNSACache() if cache is None else cache
        num_rows = embeds.shape[1]
        cache.expected = cache.get_seq_length() + num_rows
        rows_per_chunk = even_chunk(num_rows, call.chunk)
        parts = []
        for start in range(0, num_rows, rows_per_chunk):
            own = slice(start, start + rows_per_chunk)
            chunk = cut_rows(rows, start, own.stop)
            shared = None
            if call.cp_group is not None:
                shared = share_chunk(chunk, cache, call.method, call.cp_group)
            features = None if call.features is None else call.features.of_tokens(own)
            last = self._run_layers(
                embeds[:, own],
                chunk,
                cache,
                call._replace(features=features),
                sharded=None if shared is None else shared.sharded,
                is_last=own.stop >= num_rows,
            ).last
            if shared is not None and isinstance(call.kept, slice):
                last = shared.rows_of_all(last, call.kept)
            # The last rows of all are among the last of each; a view would keep the others alive.
            whole = not isinstance(call.kept, slice)
            parts.append(last if whole else last[:, call.kept].clone())
        return torch.cat(parts, dim=1)[:, call.kept]

    def describe(
        self,
        input_ids: Tensor,
        vision: VisionInputs,
        *,
        mask: Tensor | None = None,
        start: Sequence[int] = (),
        position_ids: Tensor | None = None,
        lengths: list[int] | None = None,
        method: AttentionMethod | None = None,
    ) -> NewRows:
        """The `rows` of `forward`.

        Args:
            input_ids: int64 `[B, T]`.
            vision: the images and videos among them.
            mask: bool `[B, T]`, False where padded.
            start: the first position id of each sample, `next_position` of a cache; none is 0.
            position_ids: int64 `[3, B, T]`, in place of the computed ones.
            lengths: rows of each sample, where several are packed.
            method: how they will attend; None is as the model does.

        Raises:
            UsageError: grids or times that do not match the vision tokens.
        """
        shape = input_ids.shape
        if position_ids is not None and position_ids.shape != (3, *shape):
            raise UsageError(
                f"position_ids is {list(position_ids.shape)}: want {[3, *shape]} (t, h, w), or "
                "none to have them computed"
            )
        mask = torch.ones_like(input_ids, dtype=torch.bool) if mask is None else mask
        return describe_rows(
            self._token_types(input_ids) * mask,
            mask,
            vision,
            start=start or [0] * shape[0],
            rules=self.position_rules(method),
            position_ids=position_ids,
            lengths=lengths,
        )

    def position_rules(self, method: AttentionMethod | None = None) -> PositionRules:
        """Of the position ids; a method may have been made for others than the model's."""
        vision, own = self.config.vision_config, (method or self.method).temporal_ids
        return PositionRules(
            tokens_per_second=vision.tokens_per_second,
            merge_size=vision.spatial_merge_size,
            temporal_ids=own or self.config.nsa_spec.temporal_ids,
        )

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

    def _embed(
        self,
        input_ids: Tensor,
        mask: Tensor,
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
        types = self._token_types(input_ids) * mask
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
        call: ModelCall,
        sharded: ShardedRows | None,
        *,
        num_items: Tensor | int | None,
    ) -> Tensor | None:
        labels, cp_group = call.labels, call.cp_group
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
