"""`LiveVideo`: the open end of a session's last video, where frames arrive."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from videonsa.errors import UsageError
from videonsa.inference.context import EncodedVision
from videonsa.inference.encoded_clip import EncodedClip
from videonsa.video.framelist import FrameList, HeldPicture
from videonsa.video.pictures import open_picture, read_rgb
from videonsa.video.processing import resize_frames, whole_patches
from videonsa.video.sampling import SamplingSpec, smart_resize

WhenFull = Literal["refuse", "forget"]
"""What to do with frames that exceed the context."""


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

    def take(self, frames: Any, times: Sequence[float]) -> Frames | None:
        """The whole temporal patches that these frames make, with those that wait.

        Args:
            frames: as `FrameList` takes them, of any size.
            times: seconds of each, ascending, and after those so far.

        Raises:
            UsageError: frames of another kind, or times that are none, or not after the last.
        """
        listed = FrameList(frames, times=times)
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

    def num_tokens(self, frames: Frames) -> int:
        """Merged tokens of frames."""
        count, _, height, width = frames.pixels.shape
        return (
            count // self.sampling.temporal_patch_size * height * width // self.sampling.factor**2
        )

    def encoded(self, frames: Frames, encode: Callable[[Tensor], Tensor]) -> EncodedVision:
        """Frames as a model reads them.

        Args:
            frames: whole temporal patches.
            encode: pixels to features.
        """
        assert self.first_time is not None, "frames were taken"
        patch, temporal = self.sampling.patch_size, self.sampling.temporal_patch_size
        height, width = frames.pixels.shape[2:]
        seconds = tuple(time - self.first_time for time in frames.times[::temporal])
        grid = len(seconds), height // patch, width // patch
        return EncodedVision("video", encode(frames.pixels), grid, seconds)

    def clip(self) -> EncodedClip:
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


def _joined(frames: Sequence[tuple[Tensor, float]]) -> Frames:
    pixels, times = zip(*frames, strict=True)
    return Frames(torch.stack(pixels), times)
