"""What can stand for a video, a file, a folder, images or a clip that is read, and its features."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from videonsa.errors import UsageError
from videonsa.inference.context import EncodedVision
from videonsa.models.features import PATCHES_PER_PART
from videonsa.models.methods.compression import Kept
from videonsa.models.rope import Grid
from videonsa.models.shape import VisionShape
from videonsa.video.decode import VideoClip, probe, stream_video
from videonsa.video.parts import Reading, VideoStream
from videonsa.video.processing import check_times
from videonsa.video.sampling import SamplingPlan, SamplingSpec, VideoInfo, plan_sampling
from videonsa.video.source import Decoder, VideoLike

Sampled = VideoClip | VideoStream
"""A video whose frames are chosen already: read, or while they are decoded, wherever that is."""
Video = VideoLike | Sampled
FORGOTTEN = "forgotten:"
"""What the note on frames that were forgotten begins with."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EncodedClip:
    """The features of a video's frames, and what is known of the frames, which are gone."""

    features: Tensor
    """[M, hidden], a row for each merged token; [K, hidden] of those that are kept."""
    times: tuple[float, ...]
    """Seconds of each frame, as in `VideoClip`."""
    position_times: tuple[float, ...]
    """As in `VideoClip`."""
    height: int
    width: int
    is_image: bool
    """Whether it is one image, no video of one frame."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    """To read and to encode."""
    kept: Tensor | None = None
    """int64 [K], which merged tokens are kept; None: all, or the features are gone too."""
    frame_tokens: tuple[int, ...] | None = None
    """How many tokens of each temporal patch are kept; None: all."""

    def without_features(self) -> Self:
        """What is known of it once it is read."""
        return replace(self, features=self.features[:0].clone(), kept=None)

    def tokens_of_patches(self, vision: VisionShape) -> tuple[int, ...]:
        """Tokens of each temporal patch that a model reads."""
        patches, height, width = self.grid(vision)
        whole = height * width // vision.merge_size**2
        return (whole,) * patches if self.frame_tokens is None else self.frame_tokens

    def grid(self, vision: VisionShape) -> Grid:
        """(t, h, w) in patches."""
        patches = -(-len(self.times) // vision.temporal_patch_size)
        return patches, self.height // vision.patch_size, self.width // vision.patch_size

    def vision(self, shape: VisionShape) -> EncodedVision:
        """What a model reads of it."""
        seconds = () if self.is_image else self.position_times[:: shape.temporal_patch_size]
        kind: Literal["image", "video"] = "image" if self.is_image else "video"
        return EncodedVision(kind, self.features, self.grid(shape), tuple(seconds), self.kept)

    def with_frames(self, times: Sequence[float], tokens: Sequence[int] | None = None) -> Self:
        """With frames that follow, and how many tokens of each temporal patch are kept."""
        return replace(
            self,
            times=(*self.times, *times),
            position_times=(*self.position_times, *times),
            frame_tokens=None if tokens is None else (*(self.frame_tokens or ()), *tokens),
        )

    def without_frames(self, patches: int, vision: VisionShape) -> Self:
        """Without so many temporal patches after the first, and a note that says so."""
        first, gone = vision.temporal_patch_size, (patches + 1) * vision.temporal_patch_size
        note = (
            f"{FORGOTTEN} all frames before {self.times[gone]:.2f} s but the first {first}: the "
            "context was full"
        )
        notes = tuple(note for note in self.notes if not note.startswith(FORGOTTEN))
        tokens = self.frame_tokens
        return replace(
            self,
            times=self.times[:first] + self.times[gone:],
            position_times=self.position_times[:first] + self.position_times[gone:],
            notes=(*notes, note),
            frame_tokens=tokens and tokens[:1] + tokens[patches + 1 :],
        )


def encode_clip(
    video: Video,
    sampling: SamplingSpec,
    encode: Callable[[Iterable[Tensor]], Kept],
    *,
    vision: VisionShape,
    workers: int | None = None,
    decoder: Decoder = "cpu",
    progress: bool | None = None,
) -> EncodedClip:
    """Read a video, and encode its frames in parts while later ones decode.

    The frames of a clip that is read already go in the same parts, so that their features are the
    same, bit by bit.

    Args:
        video: what to read.
        sampling: which frames.
        encode: parts of frames, uint8 [n, 3, H, W] with whole temporal patches in all but the last,
            to the features of the tokens that are kept.
        vision: the tower's patch sizes.
        workers: as for `read_video`.
        decoder: as for `read_video`.
        progress: as for `read_video`.

    Raises:
        VideoError: nothing there that can be read.
        UsageError: an empty list, timestamps outside the video, a decoder that is not there, or a
            clip without one time a frame.
        BudgetError: `max_tokens` below one temporal patch.

    """
    begin = time.perf_counter()
    of: VideoClip | Reading
    if isinstance(video, VideoClip):
        if decoder != "cpu":
            raise _no_decoder(decoder)
        check_times(video)
        height, width = video.frames.shape[2:]
        kept = encode(video.frames.split(part_size(height, width, vision)))
        of, warnings, notes, info = video, video.warnings, video.notes, video.info
    else:
        stream = _stream(video, sampling, workers=workers, decoder=decoder)
        height, width, reading = stream.plan.height, stream.plan.width, Reading(stream)
        size = part_size(height, width, vision)
        with closing(reading.parts(size, progress=progress)) as parts:
            kept = encode(parts)
        of, warnings, notes, info = reading, reading.warnings, reading.notes, stream.info
    tokens = height * width // (vision.patch_size * vision.merge_size) ** 2
    return EncodedClip(
        features=kept.features,
        times=tuple(of.times),
        position_times=tuple(of.position_times),
        height=height,
        width=width,
        is_image=info.is_image,
        warnings=tuple(warnings),
        notes=tuple(notes),
        seconds=time.perf_counter() - begin,
        kept=kept.places,
        frame_tokens=kept.of_frames(-(-len(of.times) // vision.temporal_patch_size), tokens),
    )


def _stream(
    video: VideoLike | VideoStream, sampling: SamplingSpec, *, workers: int | None, decoder: Decoder
) -> VideoStream:
    if not isinstance(video, VideoStream):
        return stream_video(video, sampling=sampling, workers=workers, decoder=decoder, beside=True)
    if decoder != "cpu":
        raise _no_decoder(decoder)
    return video


def _no_decoder(decoder: Decoder) -> UsageError:
    return UsageError(f"a clip that is read already and decoder={decoder!r}: pass the path")


def part_size(height: int, width: int, vision: VisionShape) -> int:
    """Frames of a size, in pixels, that go to the tower together."""
    patches = height * width // vision.patch_size**2
    return max(1, PATCHES_PER_PART // max(1, patches)) * vision.temporal_patch_size


def clip_info(video: Video) -> VideoInfo:
    """What is known of a video from its header."""
    return video.info if isinstance(video, Sampled) else probe(video)


def plan_clip(video: Video, sampling: SamplingSpec) -> SamplingPlan:
    """The frames that `encode_clip` will take, from the header alone."""
    return video.plan if isinstance(video, Sampled) else plan_sampling(clip_info(video), sampling)
