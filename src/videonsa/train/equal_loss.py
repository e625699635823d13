"""The loss of packs of one shape from tensors that keep their places: nothing waits for the host.

What `forward` works out anew for every batch (where vision tokens stand, layouts, the order of the
tower's windows, how many labels there are) is the same for all packs of a shape, and made once.
"""

from typing import Any, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videonsa.data.collate import PackedBatch, patched_on
from videonsa.data.shapes import PackShape
from videonsa.models.layers import enter_rows, run_layers
from videonsa.models.modeling import SparseVideoModel
from videonsa.models.rope import seconds_of_patches, segment_ids
from videonsa.models.rows import PositionRules, VisionInputs
from videonsa.models.vision import plan_vision
from videonsa.video.chat import IGNORED_LABEL


class EqualInputs(NamedTuple):
    """A pack of N samples of T tokens, P patches and at most M labels each."""

    patches: Tensor  # [N * P, 3 * temporal_patch_size * patch_size**2]
    input_ids: Tensor  # int64 [1, N * T]
    position_ids: Tensor  # int64 [3, 1, N * T]
    rows: Tensor  # int64 [N * M]: the tokens that predict one with a label, then any
    targets: Tensor  # int64 [N * M]: what they predict; -100 where there is no more
    num_items: Tensor  # float32 []: what the sum of losses is divided by

    def copy_(self, other: Self) -> None:
        """Take the values of another pack of the shape."""
        for own, new in zip(self, other, strict=True):
            own.copy_(new, non_blocking=True)

    def to(self, device: torch.device) -> "EqualInputs":
        """The same on a device."""
        return EqualInputs._make(x.to(device, non_blocking=True) for x in self)


class HostInputs(NamedTuple):
    """What the loader's workers make of a pack: the fields of `EqualInputs` of these names."""

    position_ids: Tensor
    rows: Tensor
    targets: Tensor


def host_inputs(batch: PackedBatch, *, rules: PositionRules) -> HostInputs | None:
    """The parts of the inputs that take the host's time; None of a pack without a shape."""
    if batch.shape is None:
        return None
    rows, targets = _labelled(batch.labels[0], batch.shape)
    patch_size = batch.sampling.patch_size
    return HostInputs(
        equal_positions(batch.video_times, batch.shape, rules, patch_size), rows, targets
    )


def equal_inputs(
    batch: PackedBatch,
    rules: PositionRules,
    *,
    num_items: Tensor | int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> EqualInputs:
    """What a pack of equal shape has that others of its shape have not.

    Args:
        batch: with a `shape`, and with what `host_inputs` prepared of it, if it was asked to.
        rules: of the position ids.
        num_items: labels of the step; None: those of the pack.
        device: where patches are drawn and the tensors are wanted.
        dtype: of the patches.
    """
    host: HostInputs | None = batch.prepared or host_inputs(batch, rules=rules)
    assert host is not None
    count = (host.targets != IGNORED_LABEL).sum() if num_items is None else num_items
    on_host = EqualInputs(
        patches=torch.empty(0),
        input_ids=batch.input_ids,
        **host._asdict(),
        num_items=torch.as_tensor(count, dtype=torch.float32),
    )
    if device.type == "cuda":
        on_host = EqualInputs._make(x if x.is_cuda else x.pin_memory() for x in on_host)
    patched = patched_on(batch.videos, batch.sampling, device, dtype=dtype)
    return on_host.to(device)._replace(patches=patched.pixels)


def _labelled(labels: Tensor, shape: PackShape) -> tuple[Tensor, Tensor]:
    """`EqualInputs.rows` and `targets` of labels `[N * T]`."""
    by_sample = labels.view(shape.samples, shape.tokens)[:, 1:]  # the first token has no row before
    rows = torch.zeros(shape.samples, shape.most_labels, dtype=torch.int64)
    targets = torch.full_like(rows, IGNORED_LABEL)
    sample, place = (by_sample != IGNORED_LABEL).nonzero(as_tuple=True)
    counts = sample.bincount(minlength=shape.samples)
    number = torch.arange(len(sample)) - (counts.cumsum(0) - counts)[sample]
    rows[sample, number] = sample * shape.tokens + place
    targets[sample, number] = by_sample[sample, place]
    return rows.flatten(), targets.flatten()


def equal_positions(
    video_times: tuple[tuple[float, ...], ...],
    shape: PackShape,
    rules: PositionRules,
    patch_size: int,
) -> Tensor:
    """Position ids `[3, 1, N * T]` of N samples that differ in the times of their videos alone."""
    begin, end = shape.vision_begin, shape.vision_begin + shape.vision_tokens
    ids = np.empty((3, shape.samples, shape.tokens), np.int64)
    ids[:, :, :begin] = np.arange(begin)
    for sample, times in enumerate(video_times):
        grid = (len(times), shape.height // patch_size, shape.width // patch_size)
        own = begin + segment_ids(
            grid,
            seconds_of_patches(times, grid, rules.temporal_ids),
            tokens_per_second=rules.tokens_per_second,
            merge_size=rules.merge_size,
        )
        ids[:, sample, begin:end] = own
        ids[:, sample, end:] = own.max() + 1 + np.arange(shape.tokens - end)
    return torch.from_numpy(ids).flatten(1)[:, None]


class EqualLoss:
    """The loss of packs of one shape.

    Args:
        model: on its device; its method attends.
        batch: a first pack of the shape.
    """

    def __init__(self, model: SparseVideoModel, batch: PackedBatch) -> None:
        assert batch.shape is not None
        self._model, self._shape = model, batch.shape
        spec, device = batch.sampling, model.device
        grid = (
            -(-self._shape.frames // spec.temporal_patch_size),
            self._shape.height // spec.patch_size,
            self._shape.width // spec.patch_size,
        )
        config = model.config.vision_config
        grids = [grid] * self._shape.samples
        plan = plan_vision(
            grids,
            merge_size=spec.merge_size,
            window_tokens=config.window_size // spec.merge_size // spec.patch_size,
        )
        self._tower_inputs = {
            **plan.tower_inputs(device),
            "grid_thw": torch.tensor(grids, device=device),
        }
        rows = model.describe(
            batch.input_ids,
            VisionInputs([], grids, list(batch.video_times)),
            lengths=[self._shape.tokens] * self._shape.samples,
        ).to(device)
        self._rows = rows
        self._step = enter_rows(rows, None, model.method)

    def __call__(self, inputs: EqualInputs) -> Tensor:
        """The sum of the losses of all labels, divided by `num_items`."""
        rows = self._rows._replace(position_ids=inputs.position_ids)
        found = run_layers(self._model._language_model, self._embed(inputs), rows, self._step, None)
        logits = self._model.lm_head(found.last[0].index_select(0, inputs.rows))
        total = F.cross_entropy(
            logits.float(), inputs.targets, ignore_index=IGNORED_LABEL, reduction="sum"
        )
        return total / inputs.num_items

    def _embed(self, inputs: EqualInputs) -> Tensor:
        """The embedded tokens `[1, N * T, hidden]`, those of the videos from the tower."""
        shape, model = self._shape, self._model
        embeds: Tensor = model.get_input_embeddings()(inputs.input_ids)
        embeds = embeds.view(shape.samples, shape.tokens, -1)
        features = self._encode(inputs.patches).view(shape.samples, shape.vision_tokens, -1)
        end = shape.vision_begin + shape.vision_tokens
        parts = (embeds[:, : shape.vision_begin], features.to(embeds), embeds[:, end:])
        return torch.cat(parts, dim=1).flatten(0, 1)[None]

    def _encode(self, patches: Tensor) -> Tensor:
        # A copy: the tower takes its indices out of what it is given.
        arguments: dict[str, Any] = dict(self._tower_inputs)
        features: Tensor = self._model._tower(patches, **arguments).pooler_output
        return features
