"""Our own loop over the decoder layers: features are added inside it, and tokens leave it."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.cache import CachedTokens, VideoNSACache
from videonsa.models.fused import angles_to_rotate
from videonsa.models.methods import AttentionMethod
from videonsa.models.recorder.protocol import Recorder
from videonsa.models.rows import NewRows, select_rows
from videonsa.models.step import AttentionStep, StepTokens, build_step


class LayerFeatures(NamedTuple):
    """Features of vision tokens that are added to the hidden states after some layers."""

    by_layer: Mapping[int, Tensor]
    """`[M, hidden]` of each such layer, a row for each new vision token of the batch, in order."""
    numbers: Tensor
    """int64 `[B, T]`: which of the M a token has; -1 for text."""

    @classmethod
    def of(
        cls, by_layer: Mapping[int, Tensor] | None, rows: NewRows, *, num_layers: int
    ) -> Self | None:
        """Of all new tokens of a call; None where there are none.

        Raises:
            UsageError: a layer that is not there, or not a row for each vision token.
        """
        if not by_layer:
            return None
        if unknown := sorted(set(by_layer) - set(range(num_layers))):
            raise UsageError(
                f"layer_features of layers {unknown}: want layers from 0 to {num_layers - 1}"
            )
        is_vision = rows.vision_mask & rows.attention_mask
        wanted = int(is_vision.sum())
        for layer, features in by_layer.items():
            if features.dim() != 2 or len(features) != wanted:
                raise UsageError(
                    f"layer_features of layer {layer} are {list(features.shape)}: want "
                    f"[{wanted}, hidden], a row for each vision token"
                )
        numbers = is_vision.flatten().cumsum(0).view_as(is_vision) - 1
        return cls(by_layer, numbers.masked_fill(~is_vision, -1))

    def of_tokens(self, places: slice | Tensor) -> Self:
        """Of some of the tokens."""
        if isinstance(places, Tensor):
            places = places.to(self.numbers.device)
        return self._replace(numbers=self.numbers[:, places])

    def add_after(self, layer: int, hidden: Tensor) -> Tensor:
        """`[B, T, hidden]` with the features of this layer added, in a copy."""
        features = self.by_layer.get(layer)
        if features is None:
            return hidden
        numbers = self.numbers.flatten()
        places = (numbers >= 0).nonzero()[:, 0].to(hidden.device)
        added = features.to(hidden)[numbers[numbers >= 0].to(hidden.device)]
        return hidden.flatten(0, 1).index_add(0, places, added).view_as(hidden)


def check_leaving(
    method: AttentionMethod, *, num_layers: int, labels: Tensor | None, kept: int | Tensor
) -> None:
    """Refuse what a call asks for beside tokens that leave inside the layers.

    Args:
        method: how the call attends.
        num_layers: of the model.
        labels: as they were given.
        kept: `logits_to_keep`, as it was given.

    Raises:
        UsageError: labels or chosen logits, which count tokens that may be gone, or layers after
            which no token can leave.
    """
    if not method.leaves_after:
        return
    if not set(method.leaves_after) <= set(range(num_layers - 1)):
        raise UsageError(
            f"method {method.name!r} lets tokens leave after layers {list(method.leaves_after)}: "
            f"want layers from 0 to {num_layers - 2}, before the last"
        )
    what = "labels" if labels is not None else "chosen logits_to_keep"
    if labels is not None or isinstance(kept, Tensor):
        raise UsageError(
            f"{what} with method {method.name!r}, which lets tokens leave: want a number of last "
            "logits"
        )


class LayersOutput(NamedTuple):
    """What the decoder gives for the tokens that passed its last layer."""

    last: Tensor  # [B, T, hidden], normed
    hidden_states: tuple[Tensor, ...] | None
    """The input, what each layer but the last gave, and `last`; where they were asked for."""


def tokens_of_step(rows: NewRows, record: CachedTokens, *, is_last: bool = True) -> StepTokens:
    """The new rows as a step sees them, once they are entered into the record of its keys."""

    def frame_sizes() -> list[int]:
        return [size for sizes in record.frame_sizes for size in sizes]

    return StepTokens(
        num_tokens=rows.vision_mask.shape[1],
        has_vision=rows.has_vision,
        vision_mask=record.vision_mask,
        attention_mask=record.attention_mask if record.is_padded else None,
        position_ids=rows.position_ids,
        frame_sizes=frame_sizes,
        segments=None if rows.lengths is None else [(n, n) for n in rows.lengths],
        is_last=is_last,
    )


def enter_rows(
    rows: NewRows,
    cache: VideoNSACache | None,
    method: AttentionMethod,
    recorder: Recorder | None = None,
    *,
    is_last: bool = True,
) -> AttentionStep:
    """Enter new rows into the cache, and make their step."""
    record = CachedTokens() if cache is None else cache.tokens
    record.append(rows)
    return build_step(method, tokens_of_step(rows, record, is_last=is_last), recorder=recorder)


def run_layers(
    language_model: Any,
    embeds: Tensor,
    rows: NewRows,
    step: AttentionStep,
    cache: VideoNSACache | None,
    *,
    features: LayerFeatures | None = None,
    keep_all: bool = False,
) -> LayersOutput:
    """Pass the tokens of one step through all layers of a language model.

    Args:
        language_model: with `layers`, `norm` and `rotary_emb`, as transformers builds it.
        embeds: `[B, T, hidden]`.
        rows: the same T; their positions turn queries and keys.
        step: of the first layer.
        cache: to which the layers append; None keeps nothing.
        features: what is added inside.
        keep_all: give the hidden states of all layers.
    """
    hidden = embeds
    angles = language_model.rotary_emb(hidden, rows.position_ids.to(hidden.device))
    angles = angles_to_rotate(hidden, *angles)
    states = [hidden]
    places: Tensor | None = None  # of the tokens left, among those of the first layer
    for index, layer in enumerate(language_model.layers):
        hidden = layer(
            hidden,
            position_embeddings=angles,
            past_key_values=cache,
            use_cache=cache is not None,
            step=step,
        )
        if features is not None:
            hidden = features.add_after(index, hidden)
        kept = None
        if index in step.method.leaves_after:
            own = step.to(hidden.device)  # as the layer had it
            following = language_model.layers[index + 1]
            kept = _checked(step.method.kept_after(index, hidden, own, following), hidden)
        if kept is not None:
            hidden, rows = hidden[:, kept], select_rows(rows, kept)
            angles = tuple(x[:, kept.to(x.device)] for x in angles)
            features = None if features is None else features.of_tokens(kept)
            places = kept if places is None else places[kept.to(places.device)]
        if kept is not None or (cache is not None and cache.record_from(index + 1) is not None):
            step = _next_step(rows, step, index + 1, cache, places, embeds.shape[1])
        if keep_all:
            states.append(hidden)
    last = language_model.norm(hidden)
    return LayersOutput(last, (*states[:-1], last) if keep_all else None)


def _next_step(
    rows: NewRows,
    step: AttentionStep,
    layer: int,
    cache: VideoNSACache | None,
    places: Tensor | None,
    num_new: int,
) -> AttentionStep:
    """The step of the layers from `layer` on, which hold fewer keys.

    Args:
        rows: the tokens left.
        step: of the layer before.
        layer: its number.
        cache: of all layers.
        places: of the tokens left, among the new ones of the first layer; None: all are left.
        num_new: how many there were.
    """
    if cache is None:
        record = CachedTokens()
        record.append(rows)
    else:
        found = cache.record_from(layer)
        record = found or cache.begin_record(layer, num_new=num_new)
        first = cache.tokens.vision_mask.shape[1] - num_new
        own = range(num_new) if places is None else places.tolist()
        record.append(rows, [first + place for place in own])
    tokens = tokens_of_step(rows, record, is_last=step.tokens.is_last)
    return build_step(step.method, tokens, recorder=step.recorder)


def _checked(kept: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Places that a method keeps.

    Raises:
        UsageError: a batch, places that do not ascend within the tokens, or without the last one.
    """
    if kept is None:
        return None
    num_samples, num_tokens = hidden.shape[:2]
    if num_samples != 1:
        raise UsageError(f"tokens leave in a batch of {num_samples}: want one sample at a time")
    fits = kept.dim() == 1 and kept.dtype == torch.int64 and len(kept) > 0
    if not (fits and bool((kept.diff() > 0).all()) and kept[0] >= 0 and kept[-1] == num_tokens - 1):
        raise UsageError(
            f"tokens kept are {kept.dtype} {list(kept.shape)}: want int64 [K], ascending places "
            f"among the {num_tokens} tokens, the last of them included"
        )
    return kept.to(hidden.device)
