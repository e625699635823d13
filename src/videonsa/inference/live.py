"""`LiveVideo`: the open end of a session's last video, where frames arrive."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from numbers import Real
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.inference.context import Context, EncodedVision
from videonsa.inference.encoded_clip import EncodedClip
from videonsa.inference.transcript import Transcript
from videonsa.models.methods.compression import Kept, frame_tokens
from videonsa.models.rope import Grid
from videonsa.models.shape import VisionShape
from videonsa.video.framelist import FrameList, HeldPicture
from videonsa.video.pictures import open_picture, read_rgb
from videonsa.video.processing import resize_frames, whole_patches
from videonsa.video.sampling import SamplingSpec, smart_resize

FORGOTTEN_AT_ONCE = 8
"""One part in so many of a video's frames is forgotten together: keys move, which takes time."""


class Frames(NamedTuple):
    """Frames of whole temporal patches."""

    pixels: Tensor
    """uint8 `[N, 3, H, W]`, RGB, at the size of the video."""
    times: tuple[float, ...]
    """Seconds of each; of a last one that is repeated, once."""


class LiveVideo:
    """Frames come one by one or many at a time, and go on in whole temporal patches.

    A frame whose patch is not full waits for those to come.
    """

    def __init__(
        self,
        sampling: SamplingSpec,
        *,
        size: tuple[int, int] | None = None,
        times: Sequence[float] = (),
    ) -> None:
        """Begin with nothing, or behind frames that were read.

        Args:
            sampling: the pixels of a frame, and the tower's patch sizes.
            size: height and width in pixels of the frames read; None: the first frame decides.
            times: seconds of the frames read.
        """
        self.sampling = sampling
        """As it was given."""
        self.size = size
        self.begun = bool(times)
        """Whether the model has read some of its frames."""
        self.start: int | None = None
        """Position id at which it begins, once that is known."""
        self.first_time = times[0] if times else None
        self.last_time = times[-1] if times else None
        self.waiting: tuple[tuple[Tensor, float], ...] = ()
        """Frames of a temporal patch that is not full, `[3, H, W]`, and their seconds."""

    def take(self, frames: Any, times: Sequence[float] | float) -> Frames | None:
        """The whole temporal patches that these frames make, with those that wait.

        Args:
            frames: one, or many as `FrameList` takes them, of any size.
            times: seconds of each, ascending, and after those so far.

        Raises:
            UsageError: frames of another kind, or times that are none, or not after the last.
        """
        if times is None:
            raise UsageError("frames that follow came without times: want the seconds of each")
        seconds: Any = times
        if _is_one(frames):
            frames, seconds = [frames], [times] if isinstance(times, Real) else times
        listed = FrameList(frames, times=seconds)
        given = listed.times or ()
        if self.last_time is not None and given[0] <= self.last_time:
            raise UsageError(
                f"a frame at {given[0]:g} s after one at {self.last_time:g} s: want frames in order"
            )
        pixels = [self._resized(picture) for picture in listed.pictures]
        waiting = (*self.waiting, *zip(pixels, given, strict=True))
        self.first_time = given[0] if self.first_time is None else self.first_time
        self.last_time = given[-1]
        whole = len(waiting) - len(waiting) % self.sampling.temporal_patch_size
        self.waiting = waiting[whole:]
        return _joined(waiting[:whole]) if whole else None

    def repeated(self) -> Frames | None:
        """The frames that wait, the last of them repeated until their temporal patch is full."""
        if not self.waiting:
            return None
        frames = _joined(self.waiting)
        return frames._replace(
            pixels=whole_patches(frames.pixels, self.sampling.temporal_patch_size)
        )

    def grid(self, frames: Frames) -> Grid:
        """(t, h, w) of frames in patches, of which they have whole temporal ones."""
        patch, temporal = self.sampling.patch_size, self.sampling.temporal_patch_size
        count, _, height, width = frames.pixels.shape
        return count // temporal, height // patch, width // patch

    def encoded(self, frames: Frames, encode: Callable[[Tensor], Kept]) -> EncodedVision:
        """Frames as a model reads them.

        Args:
            frames: whole temporal patches.
            encode: pixels to the features of the tokens that are kept.
        """
        assert self.first_time is not None, "frames were taken"
        times = frames.times[:: self.sampling.temporal_patch_size]
        seconds = tuple(time - self.first_time for time in times)
        kept = encode(frames.pixels)
        return EncodedVision("video", kept.features, self.grid(frames), seconds, kept.places)

    def read(
        self,
        frames: Frames,
        transcript: Transcript,
        clips: tuple[EncodedClip, ...],
        encode: Callable[[Tensor], Kept],
    ) -> tuple[EncodedClip, ...]:
        """Let a model read frames that follow, or that begin the video; gives the clips then.

        Args:
            frames: whole temporal patches.
            transcript: that ends in the video, or where it begins.
            clips: what stands in it.
            encode: pixels to the features of the tokens that are kept.
        """
        more = self.encoded(frames, encode)
        if not self.begun:
            transcript.add("user", more)
            clips = (*clips, self._clip())
        transcript.read()
        if self.start is None:
            tokens = len(more.features) if not self.begun else self._tokens_of(clips[-1])
            self.start = transcript.context.start_of_video(tokens)
        if self.begun:
            transcript.read_frames(more, start=self.start)
        patches, height, width = more.grid
        kept = frame_tokens(more.kept, patches, height * width // self.sampling.merge_size**2)
        return (*clips[:-1], clips[-1].with_frames(frames.times, kept))

    def _tokens_of(self, clip: EncodedClip) -> int:
        if clip.frame_tokens is not None:
            return sum(clip.frame_tokens)
        patches = len(clip.times) // self.sampling.temporal_patch_size
        return patches * clip.height * clip.width // self.sampling.factor**2

    def _clip(self) -> EncodedClip:
        """The video before its first frame."""
        height, width = self.size or (0, 0)
        return EncodedClip(
            features=torch.empty(0),
            times=(),
            position_times=(),
            height=height,
            width=width,
            is_image=False,
            warnings=(),
            notes=(),
            seconds=0.0,
        )

    def _resized(self, picture: Any) -> Tensor:
        if isinstance(picture, HeldPicture):
            array = picture.read()
        else:
            with open_picture(picture) as image:
                array = read_rgb(image)
        frame = torch.from_numpy(array).permute(2, 0, 1)[None]
        if self.size is None:
            least, most = self.sampling.pixel_range
            self.size = smart_resize(
                *frame.shape[2:],
                factor=self.sampling.factor,
                min_pixels=least,
                max_pixels=most,
            )
        height, width = self.size
        return resize_frames(frame.contiguous(), height=height, width=width)[0]


def _is_one(frames: Any) -> bool:
    """Whether it is one picture: an image, or an array or tensor [H, W, 3] or [3, H, W]."""
    return isinstance(frames, Image.Image) or getattr(frames, "ndim", None) == 3


def _joined(frames: Sequence[tuple[Tensor, float]]) -> Frames:
    pixels, times = zip(*frames, strict=True)
    return Frames(torch.stack(pixels), times)


def live_after(clip: EncodedClip | None, sampling: SamplingSpec) -> LiveVideo:
    """The open end of a video that was opened and read.

    Args:
        clip: the video; None where something else was opened or joined last.
        sampling: of the model.

    Raises:
        UsageError: it cannot go on.
    """
    if clip is None or clip.is_image:
        why = "what was opened or joined last is no video"
    elif len(clip.times) % sampling.temporal_patch_size:
        why = f"its {len(clip.times)} frames do not fill their temporal patches"
    else:
        return LiveVideo(sampling, size=(clip.height, clip.width), times=clip.position_times)
    raise UsageError(f"frames cannot follow: {why}; begin with open_live")


def forget_oldest(
    context: Context, clip: EncodedClip, missing: int, vision: VisionShape
) -> EncodedClip | None:
    """Forget the oldest frames of the video that was read last, but the first temporal patch.

    Args:
        context: that ends in the video.
        clip: the video.
        missing: tokens to be forgotten at least.
        vision: the tower's patch sizes.

    Returns:
        The clip without them; None where there are not as many, and nothing is forgotten.
    """
    tokens = clip.tokens_of_patches(vision)
    count = max(_fewest(tokens[1:], missing), len(tokens) // FORGOTTEN_AT_ONCE)
    if count >= len(tokens) - 1:
        return None
    end = context.num_tokens - sum(tokens[1 + count :])
    context.forget(end - sum(tokens[1 : 1 + count]), end)
    return clip.without_frames(count, vision)


def _fewest(tokens: Sequence[int], wanted: int) -> int:
    """How many of the first patches have so many tokens; all and one where there are fewer."""
    return next(
        (n for n, held in enumerate(accumulate(tokens), 1) if held >= wanted), len(tokens) + 1
    )
