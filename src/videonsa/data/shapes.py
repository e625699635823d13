"""Which samples have the same shape, so that packs of them can be computed by one CUDA graph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from videonsa.data.manifest import Manifest

ROUNDED_TO = 64
"""Tokens of a sample are rounded up to a multiple of this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackShape:
    """What all packs of one shape share: each of their samples is one video and its text."""

    samples: int
    """In a pack."""
    tokens: int
    """Of a sample, padding included."""
    vision_begin: int
    """Place of the first vision token in a sample."""
    vision_tokens: int
    """Merged tokens of a video."""
    frames: int
    """Sampled frames of a video."""
    height: int
    """Pixels of a frame."""
    width: int
    most_labels: int
    """Most tokens of a sample that have a label."""


class Shapes:
    """The shapes of the samples of a manifest that are one video and text.

    Args:
        manifest: of the samples.
        max_tokens: most tokens of a pack.
    """

    def __init__(self, manifest: Manifest, *, max_tokens: int) -> None:
        names = ("vision_begin", "video_tokens", "num_frames")
        columns = [manifest.column(name) for name in names]
        columns += [manifest.first_media(name) for name in ("height", "width")]
        single = (manifest.column("num_media") == 1) & (manifest.column("image_tokens") == 0)
        rows = single.nonzero()[0]
        table = np.stack(columns, axis=1)[rows]
        kinds, inverse = np.unique(table, axis=0, return_inverse=True)
        self.of_rows: NDArray[np.int64] = np.full(len(manifest), -1, np.int64)
        """For each row the index of its shape; -1 of those without a video, or with several."""
        self.of_rows[rows] = inverse.reshape(-1)
        tokens, labels = manifest.column("tokens"), manifest.column("label_tokens")
        self.shapes: tuple[PackShape, ...] = tuple(
            _shape(
                kind.tolist(),
                longest=int(tokens[self.of_rows == index].max()),
                most_labels=int(labels[self.of_rows == index].max()),
                max_tokens=max_tokens,
            )
            for index, kind in enumerate(kinds)
        )

    def of(self, row: int) -> PackShape | None:
        """The shape of a row; None if it has none."""
        index = int(self.of_rows[row])
        return self.shapes[index] if index >= 0 else None

    @property
    def pack_sizes(self) -> tuple[int, ...]:
        """For each shape, the samples of a pack."""
        return tuple(shape.samples for shape in self.shapes)


def _shape(kind: list[int], *, longest: int, most_labels: int, max_tokens: int) -> PackShape:
    vision_begin, vision_tokens, frames, height, width = kind
    tokens = min(-(-longest // ROUNDED_TO) * ROUNDED_TO, max(max_tokens, longest))
    return PackShape(
        samples=max(1, max_tokens // tokens),
        tokens=tokens,
        vision_begin=vision_begin,
        vision_tokens=vision_tokens,
        frames=frames,
        height=height,
        width=width,
        most_labels=most_labels,
    )
