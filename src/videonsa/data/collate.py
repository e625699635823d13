"""Packs samples into one sequence, as the model takes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from itertools import accumulate, chain, groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from videonsa.data.dataset import Sample
from videonsa.data.shapes import PackShape
from videonsa.ops.drawing import (
    Drawing,
    can_draw_patches,
    draw_frames,
    draw_patches,
    join_drawings,
)
from videonsa.video.chat import IGNORED_LABEL
from videonsa.video.processing import PatchedVideo, normalised_levels, patchify, whole_patches
from videonsa.video.sampling import SamplingSpec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PackedBatch:
    """Samples in one sequence of L tokens; their frames are kept as bytes until they are used."""

    samples: tuple[int, ...]
    """Rows of the manifest, in the order in which they stand."""
    ids: tuple[str, ...]
    """Of their records."""
    input_ids: Tensor
    """int64 [1, L]."""
    labels: Tensor
    """int64 [1, L], -100 where the loss does not count."""
    cu_seqlens: Tensor
    """int32 [N + 1]: where each sample begins, and the end."""
    videos: tuple[Tensor | Drawing, ...]
    """Frames of each video, in order: uint8 [n, 3, H, W], RGB; or what they are drawn from."""
    video_times: tuple[tuple[float, ...], ...]
    """Of each video, the seconds of the first frame of each temporal patch."""
    images: tuple[Tensor, ...]
    """uint8 [1, 3, H, W] each, in order."""
    sampling: SamplingSpec
    """Its patch sizes are those of the model."""
    shape: PackShape | None = None
    """What it shares with all packs of its shape; None where its samples differ."""
    prepared: Any = None
    """What the loader's `prepare` made of it, in its worker."""

    def __reduce__(self) -> tuple[Any, ...]:
        """How it goes from a worker to its run: all frames as one tensor, drawings as they are.

        Each tensor takes a file descriptor on its way, and a batch of stills has hundreds.
        """
        clips = [clip for clip in (*self.videos, *self.images) if isinstance(clip, Tensor)]
        flat = torch.cat([clip.flatten() for clip in clips]) if clips else None
        fields = {field.name: getattr(self, field.name) for field in dataclass_fields(self)}
        for name in ("videos", "images"):
            fields[name] = [
                clip.shape if isinstance(clip, Tensor) else clip for clip in fields[name]
            ]
        return _whole, (flat, fields)

    @property
    def num_tokens(self) -> int:
        """L."""
        return self.input_ids.shape[1]

    def model_inputs(
        self, device: torch.device | str = "cpu", *, dtype: torch.dtype = torch.float32
    ) -> dict[str, Any]:
        """The arguments of the model's `forward`, labels included.

        Frames are drawn and cut into patches on the device, clips of one shape that follow one
        another together: hundreds of stills would else be as many transfers.

        Args:
            device: where the tensors are wanted.
            dtype: of the pixels.
        """
        inputs: dict[str, Any] = {
            "input_ids": self.input_ids.to(device),
            "labels": self.labels.to(device),
            "cu_seqlens": self.cu_seqlens.to(device),
        }
        for clips, pixels, grids in (
            (self.videos, "pixel_values_videos", "video_grid_thw"),
            (self.images, "pixel_values", "image_grid_thw"),
        ):
            if clips:
                runs = [
                    list(run)
                    for _, run in groupby(
                        clips, key=lambda clip: (type(clip) is Drawing, clip.shape)
                    )
                ]
                parts = [patched_on(run, self.sampling, device, dtype=dtype) for run in runs]
                first, *others = [part.pixels for part in parts]
                inputs[pixels] = torch.cat([first, *others]) if others else first
                inputs[grids] = torch.tensor(
                    [
                        (part.grid[0] // len(run), *part.grid[1:])
                        for part, run in zip(parts, runs, strict=True)
                        for _ in run
                    ]
                )
        if self.videos:
            inputs["video_times"] = self.video_times
        return inputs


def patched_on(
    clips: Sequence[Tensor | Drawing],
    sampling: SamplingSpec,
    device: torch.device | str,
    *,
    dtype: torch.dtype,
) -> PatchedVideo:
    """Clips of one kind and shape as if they were one, on a device.

    The last temporal patch of each is filled up. A GPU draws patches without frames.

    Args:
        clips: frames uint8 `[n, 3, H, W]`, or drawings.
        sampling: its patch sizes are those of the model.
        device: where patches are wanted.
        dtype: of the patches.
    """
    sizes = {
        "patch_size": sampling.patch_size,
        "merge_size": sampling.merge_size,
        "temporal_patch_size": sampling.temporal_patch_size,
    }
    drawings = [clip for clip in clips if isinstance(clip, Drawing)]
    whole = clips[0].shape[0] % sampling.temporal_patch_size == 0
    if drawings and whole and can_draw_patches(device):
        drawing = join_drawings(drawings)
        pixels = draw_patches(drawing, normalised_levels(device).to(dtype), **sizes)
        num_frames, _, height, width = drawing.shape
        grid = (
            num_frames // sampling.temporal_patch_size,
            height // sampling.patch_size,
            width // sampling.patch_size,
        )
        return PatchedVideo(pixels, grid, len(pixels) // sampling.merge_size**2)
    if drawings:
        frames = draw_frames(join_drawings(drawings), device=device)
        frames = frames.view(len(drawings), *drawings[0].shape)
    else:
        frames = torch.stack([clip for clip in clips if isinstance(clip, Tensor)]).to(device)
    frames = whole_patches(frames, sampling.temporal_patch_size)
    patched = patchify(frames.flatten(0, 1), **sizes)
    return PatchedVideo(patched.pixels.to(dtype), patched.grid, patched.num_tokens)


def _whole(flat: Tensor | None, fields: dict[str, Any]) -> PackedBatch:
    """The batch again; its frames are views of the one tensor."""
    clips = [*fields["videos"], *fields["images"]]
    sizes = [clip.numel() for clip in clips if isinstance(clip, torch.Size)]
    parts = iter(() if flat is None else flat.split(sizes))
    for name in ("videos", "images"):
        fields[name] = tuple(
            next(parts).view(clip) if isinstance(clip, torch.Size) else clip
            for clip in fields[name]
        )
    return PackedBatch(**fields)


def pack_batch(
    samples: Sequence[Sample],
    *,
    sampling: SamplingSpec,
    shape: PackShape | None = None,
    pad_id: int = 0,
    blank: Sample | None = None,
) -> PackedBatch:
    """Put samples behind one another.

    Args:
        samples: at least one.
        sampling: how their videos were sampled.
        shape: that all of them have; the text of each is then padded at its end, where it is
            causal text behind everything and disturbs nothing.
        pad_id: the token to pad with.
        blank: comes last, without being one of the samples of the batch.
    """
    tokens = None if shape is None else shape.tokens
    every = samples if blank is None else [*samples, blank]
    rows = [_padded(sample.input_ids, tokens, pad_id) for sample in every]
    ends = accumulate(map(len, rows), initial=0)
    return PackedBatch(
        samples=tuple(sample.index for sample in samples),
        ids=tuple(sample.id for sample in samples),
        input_ids=torch.cat(rows)[None],
        labels=torch.cat([_padded(each.labels, tokens, IGNORED_LABEL) for each in every])[None],
        cu_seqlens=torch.tensor(list(ends), dtype=torch.int32),
        videos=tuple(chain.from_iterable(sample.videos for sample in every)),
        video_times=tuple(chain.from_iterable(sample.video_times for sample in every)),
        images=tuple(chain.from_iterable(sample.images for sample in every)),
        sampling=sampling,
        shape=shape,
    )


def _padded(row: Tensor, length: int | None, value: int) -> Tensor:
    return row if length is None else pad(row, (0, length - len(row)), value=value)
