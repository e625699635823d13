"""`TokenCompression`: methods that keep some of a clip's tokens before the language model.

The tower encodes whole frames, the method says which of their tokens the layers read, and another
method says how these attend. Positions, rope delta and timestamps stay those of the full sequence.
"""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.models.costs import AttentionCall
from videonsa.models.methods.protocol import AttentionMethod
from videonsa.models.methods.reduction import TokenReduction
from videonsa.models.rope import Grid
from videonsa.models.tower_probe import EncodedFrames, TowerProbe


class Kept(NamedTuple):
    """The tokens of an image or a video that the language model reads."""

    features: Tensor
    """`[K, hidden]`."""
    places: Tensor | None = None
    """int64 `[K]`, ascending: which of the merged tokens they are; None: all of them."""

    def of_frames(self, num_frames: int, tokens_per_frame: int) -> tuple[int, ...] | None:
        """How many of them each frame has; None: all."""
        return frame_tokens(self.places, num_frames, tokens_per_frame)


def frame_tokens(
    places: Tensor | None, num_frames: int, tokens_per_frame: int
) -> tuple[int, ...] | None:
    """How many of the kept tokens each frame has; None: all."""
    if places is None:
        return None
    return tuple((places // tokens_per_frame).bincount(minlength=num_frames).tolist())


@dataclass(frozen=True)
class TokenCompression(TokenReduction):
    """Keeps some tokens of every image and video; `attention` says how those attend.

    A subclass says which are kept (`compress`) and how many (`kept_tokens`).
    """

    tower_probe: ClassVar[TowerProbe | None] = None
    """What `compress` needs of the vision tower beside features."""
    compares_frames: ClassVar[bool] = False
    """Whether `compress` has to see all frames of a clip; else it is given some at a time, as they
    are encoded, and what it keeps of a frame depends on that frame alone."""

    @abstractmethod
    def compress(self, frames: EncodedFrames) -> Kept:
        """Choose tokens of whole frames: all those of a clip, or some of them.

        Returns:
            At least one token, with int64 places among those given, on their device.
        """

    @abstractmethod
    def kept_tokens(self, num_frames: int, tokens_per_frame: int) -> int:
        """How many tokens of a clip are kept; at most, where its content decides."""

    def compression_bytes(self, num_frames: int, tokens_per_frame: int, width: int) -> int:
        """Peak bytes of `compress` beside the features of a clip, where it compares frames.

        Args:
            num_frames: of the clip.
            tokens_per_frame: of the clip.
            width: values of a token's features.
        """
        return 0

    def vision_tokens(self, call: AttentionCall) -> tuple[tuple[int, int], ...]:
        """See `AttentionMethod`: `kept_tokens` from the first layer on."""
        return ((0, self.kept_tokens(call.num_frames, call.tokens_per_frame)),)


def rows_of(tokens: Tensor, places: Tensor) -> Tensor:
    """Some tokens of each frame, `[F, K, width]` of `[F, N, width]` at int64 `[F, K]`."""
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def compress_clip(method: TokenCompression, parts: Iterable[EncodedFrames]) -> Kept:
    """The tokens of one image or video that a method keeps; their places are on the CPU.

    Args:
        method: which.
        parts: of the clip, in order.
    """
    if method.compares_frames:
        parts = [EncodedFrames.joined(list(parts))]
    features: list[Tensor] = []
    places: list[Tensor] = []
    before = 0
    for part in parts:
        count = len(part.features)
        kept = method.compress(part)
        del part  # its other tokens are gone before the next one is encoded
        own = torch.arange(count) if kept.places is None else kept.places
        features.append(kept.features)
        places.append(before + own)
        before += count
    return Kept(torch.cat(features), torch.cat(places).cpu())


def kept_tokens(method: AttentionMethod, grid: Grid, merge_size: int) -> int:
    """Tokens of an image or a video that the layers read; of some methods, at most.

    Args:
        method: how they attend.
        grid: (t, h, w) in patches.
        merge_size: patches merged along each side.
    """
    num_frames, height, width = grid
    tokens = height * width // merge_size**2
    if isinstance(method, TokenCompression):
        return method.kept_tokens(num_frames, tokens)
    return num_frames * tokens


def why_whole_clips(method: AttentionMethod) -> str | None:
    """Why frames cannot follow those of a video that were read; None where they can."""
    if isinstance(method, TokenCompression) and method.compares_frames:
        return f"method {method.name!r} compares all frames of a video to choose tokens"
    return None


def check_compressed(method: AttentionMethod, places: Sequence[Tensor | None]) -> None:
    """Refuse images and videos that are not compressed where the method compresses them.

    Args:
        method: how they will attend.
        places: of the tokens kept of each; None: it was not compressed.

    Raises:
        UsageError: says how to encode them.
    """
    if isinstance(method, TokenCompression) and any(one is None for one in places):
        raise UsageError(
            f"method {method.name!r} keeps some tokens of images and videos, and these have all: "
            "encode them with model.encode_kept, and pass its places as EncodedVision.kept"
        )


def check_reads_kept(
    method: AttentionMethod, *, grids: Sequence[Tensor | None], labels: Tensor | None
) -> None:
    """Refuse what a call of the model cannot have of a method that compresses tokens.

    Args:
        method: how the call attends.
        grids: of images and videos, as they were given: all of their tokens are in the ids.
        labels: as they were given.

    Raises:
        UsageError: images or videos, or labels, which are of the whole prompt.
    """
    with_vision = any(grid is not None for grid in grids)
    if not isinstance(method, TokenCompression) or not (with_vision or labels is not None):
        return
    what = "whole images or videos" if with_vision else "labels"
    raise UsageError(
        f"{what} with method {method.name!r}, which keeps some tokens of images and videos: ask "
        "through load or Context, or pass another method"
    )
