"""Which frames of a video to take and at what size: pure rules, no file is opened.

The conventions are those of qwen-vl-utils 0.0.14: frames spread evenly from the first to the last,
an even number of them, both sides a multiple of patch_size * merge_size.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Real
from typing import Literal, Self, TypeGuard, get_args

from videonsa.errors import BudgetError, UsageError

Mode = Literal["exact", "keyframes"]
MAX_ASPECT_RATIO = 200
DEFAULT_FPS = 2.0
PAPER_MAX_PIXELS = 50_176
"""Pixels of a frame in the paper's training (section 3): 64 merged tokens when square."""
_SAME_FRAME = 1e-6
"""Of a frame's period: a stretch that begins so little after a frame begins with it."""
IMAGE, FOLDER, LIST = "image", "folder", "list"
"""The containers of a source that is one image, no video, and of images that are a video."""
SHRINK_LIMIT = 4
"""A token budget may divide the pixels of a frame by this much before it drops frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInfo:
    """What a file says about its video. Sizes are as displayed: the rotation is applied."""

    path: str
    duration: float
    """Seconds; 0 for an image."""
    num_frames: int | None
    """Frames in the file; an estimate for most containers, None when unknown."""
    fps: float
    """Average frames per second; 0 for an image."""
    width: int
    height: int
    rotation: int = 0
    """Degrees clockwise (0, 90, 180, 270) by which the stored picture is turned for display."""
    codec: str = ""
    container: str = ""
    has_audio: bool = False
    notes: tuple[str, ...] = ()
    """What was chosen, left out, repeated or scaled to read it, one line each."""
    times: Sequence[float] | None = None
    """Seconds of every frame, ascending, where the source states them; None where they are evenly
    spread, or known only when all is read."""

    def __post_init__(self) -> None:
        """Notes and times may come as lists, from JSON."""
        object.__setattr__(self, "notes", tuple(self.notes))
        if self.times is not None:
            object.__setattr__(self, "times", tuple(self.times))

    @property
    def is_image(self) -> bool:
        """Whether it is one image: no video of one frame."""
        return self.container == IMAGE


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingSpec:
    """How to sample a video. At most one of `fps`, `num_frames`, `timestamps`; else `fps` is 2.

    `fps` takes whole temporal patches, at least `min_frames` and (this wins) at most `max_frames`
    frames; `num_frames` and `timestamps` are taken as they are (an odd number is fine: patchify
    repeats the last frame).
    `fps` and `num_frames` never take more frames than the file has. A frame keeps its size where it
    can: it is shrunk to `max_pixels` and enlarged only up to `min_pixels` (None: 4 merged tokens).

    `max_tokens` bounds the merged tokens of the whole video: first every frame shrinks, to a
    quarter of `max_pixels` at most (never under `min_pixels`); if that is not enough, frames go.

    `start` and `end` take the frames of that stretch alone, by the same rules; times stay those of
    the whole video. `image_pixels` is for a source that is one image.
    """

    fps: float | None = None
    num_frames: int | None = None
    timestamps: Sequence[float] | None = None
    """Seconds, ascending, within the video."""
    start: float | None = None
    """Seconds at which the stretch begins; None is the beginning of the video."""
    end: float | None = None
    """Seconds before which it ends; None is the end of the video."""
    mode: Mode = "exact"
    """`keyframes` takes, for each wanted time, the keyframe nearest to it, each once: no other
    frame is decoded. Their times are their own."""
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int | None = None
    max_pixels: int = PAPER_MAX_PIXELS
    max_tokens: int | None = None
    image_pixels: tuple[int, int] | None = None
    """Fewest and most pixels of an image alone; None is as a frame: `min_pixels`, `max_pixels`."""
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    def __post_init__(self) -> None:
        """Refuse values outside the domain: UsageError with what came and what was wanted."""
        rules = ("fps", "num_frames", "timestamps")
        given = [name for name in rules if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)} given together: give one of them")
        if self.fps is not None and not (_is_number(self.fps) and 0 < self.fps < math.inf):
            raise UsageError(f"fps={self.fps!r}: want a number above 0, for example 2.0")
        for name in (
            *("num_frames", "min_frames", "max_frames", "min_pixels", "max_pixels", "max_tokens"),
            *("patch_size", "merge_size", "temporal_patch_size"),
        ):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value >= 1):
                raise UsageError(f"{name}={value!r}: want an int of at least 1")
        if self.mode not in get_args(Mode):
            raise UsageError(f"mode={self.mode!r}: want one of {', '.join(get_args(Mode))}")
        if self.max_pixels < self.factor**2:
            raise UsageError(
                f"max_pixels={self.max_pixels}: want at least {self.factor**2} "
                f"({self.factor} x {self.factor}, one merged token)"
            )
        if self.min_pixels is not None and self.min_pixels > self.max_pixels:
            raise UsageError(
                f"min_pixels={self.min_pixels} exceeds max_pixels={self.max_pixels}: "
                "lower the first or raise the second"
            )
        if self.timestamps is not None:
            object.__setattr__(self, "timestamps", _checked_timestamps(self.timestamps))
        self._check_stretch()
        self._check_image_pixels()

    def _check_stretch(self) -> None:
        for name in ("start", "end"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < math.inf):
                raise UsageError(f"{name}={value!r}: want seconds, a number of at least 0")
        begin = 0.0 if self.start is None else self.start
        if self.end is not None and self.end <= begin:
            raise UsageError(f"start={begin:g} and end={self.end:g}: want an end after the start")
        if self.timestamps is not None and (self.start, self.end) != (None, None):
            raise UsageError("timestamps with start or end: leave these out, or the timestamps")

    def _check_image_pixels(self) -> None:
        if self.image_pixels is None:
            return
        least, most = self.image_pixels
        if not (type(least) is int and type(most) is int and 1 <= least <= most):
            raise UsageError(f"image_pixels={self.image_pixels!r}: want the fewest and the most")
        if most < self.factor**2:
            raise UsageError(f"image_pixels={self.image_pixels!r}: want at least {self.factor**2}")

    @classmethod
    def qwen(cls) -> Self:
        """The defaults of qwen-vl-utils 0.0.14: 128 to 768 tokens a frame, 115,200 a video."""
        return cls(min_pixels=128 * 28**2, max_pixels=768 * 28**2, max_tokens=115_200)

    @property
    def factor(self) -> int:
        """Pixels along one side of a merged token; both sides of a frame are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def pixel_range(self) -> tuple[int, int]:
        """Fewest and most pixels of a frame."""
        least = self.min_pixels if self.min_pixels is not None else 4 * self.factor**2
        return min(least, self.max_pixels), self.max_pixels

    def of(self, info: VideoInfo) -> Self:
        """How this source is sampled: an image by `image_pixels`, where they are given.

        An image has no other frames that could go: `max_tokens` shrinks it as far as it takes.
        """
        if self.image_pixels is None or not info.is_image:
            return self
        least, most = self.image_pixels
        if self.max_tokens is not None:
            most = max(self.factor**2, min(most, self.max_tokens * self.factor**2))
        return replace(self, min_pixels=min(least, most), max_pixels=most, image_pixels=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingPlan:
    """The frames to take: target times in seconds, ascending, and their size in pixels."""

    times: tuple[float, ...]
    height: int
    width: int
    sampled_fps: float
    """Frames per second as Qwen2-VL counts: frames taken / duration."""
    even_times: tuple[float, ...] | None = None
    """Where frames are spread evenly, the seconds of each as position ids count them: its number /
    `sampled_fps`. None of times that are given or stated, and keyframes, whose own times count."""
    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2

    @property
    def num_frames(self) -> int:
        """Frames to take."""
        return len(self.times)

    @property
    def grid(self) -> tuple[int, int, int]:
        """Temporal patches, rows and columns of patches."""
        temporal = math.ceil(self.num_frames / self.temporal_patch_size)
        return temporal, self.height // self.patch_size, self.width // self.patch_size

    @property
    def tokens_per_frame(self) -> int:
        """Merged tokens of one temporal patch."""
        return self.grid[1] * self.grid[2] // self.merge_size**2

    @property
    def num_tokens(self) -> int:
        """Merged tokens of the whole video."""
        return self.grid[0] * self.tokens_per_frame

    def with_frames(self, kept: Sequence[int]) -> Self:
        """The same plan for fewer frames, by their numbers; each keeps its times."""
        even = self.even_times
        return replace(
            self,
            times=tuple(self.times[i] for i in kept),
            even_times=None if even is None else tuple(even[i] for i in kept),
        )

    def with_keyframes(self, times: tuple[float, ...], *, duration: float) -> Self:
        """The plan for the keyframes that stand for its times, over `duration` seconds."""
        rate = len(times) / duration if duration > 0 else self.sampled_fps
        return replace(self, times=times, sampled_fps=rate, even_times=None)


def smart_resize(
    height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The size nearest in shape whose sides are multiples of `factor`, within the pixel range.

    Qwen2-VL's rule, except that `max_pixels` always holds: Qwen breaks it for very long frames
    and when enlarging overshoots. `max_pixels` is at least factor ** 2.

    Returns:
        height, width in pixels.

    Raises:
        UsageError: a side below 1, or one side more than 200 times the other.

    """
    if min(height, width) < 1:
        raise UsageError(f"frame of {width}x{height}: want at least 1x1 pixel")
    if max(height, width) > MAX_ASPECT_RATIO * min(height, width):
        raise UsageError(
            f"frame of {width}x{height}: want one side at most {MAX_ASPECT_RATIO} times the other; "
            "crop it first"
        )
    rows = max(1, round(height / factor))
    columns = max(1, round(width / factor))
    if rows * columns * factor**2 < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * beta / factor)
        columns = math.ceil(width * beta / factor)
    if rows * columns * factor**2 > max_pixels:
        beta = math.sqrt((height * width) / max_pixels)
        most = max_pixels // factor**2
        rows = min(most, max(1, math.floor(height / beta / factor)))
        columns = min(most // rows, max(1, math.floor(width / beta / factor)))
    return rows * factor, columns * factor


def plan_sampling(info: VideoInfo, spec: SamplingSpec) -> SamplingPlan:
    """Which frames to take and at what size. Pure.

    Raises:
        UsageError: times outside the video, or a frame shape that cannot be resized.
        BudgetError: `max_tokens` below one temporal patch at the smallest size.

    """
    spec = spec.of(info)
    times = _target_times(info, spec)
    height, width, most_frames = _fit_budget(info, spec, num_frames=len(times))
    if most_frames < len(times):
        times = _target_times(info, spec, most_frames=most_frames)
    rate = _sampled_fps(info, spec, times)
    is_even = spec.timestamps is None and info.times is None
    return SamplingPlan(
        times=times,
        height=height,
        width=width,
        sampled_fps=rate,
        even_times=tuple(i / rate for i in range(len(times))) if is_even else None,
        patch_size=spec.patch_size,
        merge_size=spec.merge_size,
        temporal_patch_size=spec.temporal_patch_size,
    )


def num_sampled_frames(duration: float, total_frames: int, spec: SamplingSpec) -> int:
    """How many of `total_frames` frames over `duration` seconds the spec takes, at least 1."""
    if spec.num_frames is not None:
        return min(spec.num_frames, total_frames)
    fps = DEFAULT_FPS if spec.fps is None else spec.fps
    multiple = spec.temporal_patch_size
    least = math.ceil(spec.min_frames / multiple) * multiple
    wanted = math.floor(min(max(duration * fps, least), spec.max_frames, total_frames))
    return wanted - wanted % multiple or wanted


def pixel_limit(spec: SamplingSpec, *, num_frames: int) -> int:
    """Most pixels of a frame: `max_pixels`, or what `max_tokens` leaves to so many frames."""
    min_pixels, max_pixels = spec.pixel_range
    if spec.max_tokens is None:
        return max_pixels
    patches = math.ceil(num_frames / spec.temporal_patch_size)
    floor = max(min_pixels, max_pixels // SHRINK_LIMIT, spec.factor**2)
    return max(floor, min(max_pixels, spec.max_tokens // patches * spec.factor**2))


def _target_times(
    info: VideoInfo, spec: SamplingSpec, most_frames: int | None = None
) -> tuple[float, ...]:
    if spec.timestamps is not None:
        times = tuple(spec.timestamps)
        if times[-1] > info.duration:
            raise UsageError(
                f"timestamp {times[-1]:g} s: want at most the duration of {info.path}, "
                f"{info.duration:g} s"
            )
        return tuple(times[i] for i in spread(len(times), most_frames or len(times)))
    begin, end = _stretch(info, spec)
    if info.duration <= 0 or info.fps <= 0:
        return (0.0,)
    frames = _frames_within(info, begin, end)
    if not frames:
        return (begin,)  # between two frames: the one on screen
    count = num_sampled_frames(end - begin, len(frames), spec)
    chosen = spread(len(frames), min(count, most_frames or count))
    return tuple(_time_of(info, frames[index]) for index in chosen)


def _stretch(info: VideoInfo, spec: SamplingSpec) -> tuple[float, float]:
    """Seconds from and before which frames are taken."""
    if spec.start is not None and spec.start > 0 and spec.start >= info.duration:
        raise UsageError(
            f"start={spec.start:g}: want less than the duration of {info.path}, {info.duration:g} s"
        )
    end = info.duration if spec.end is None else min(spec.end, info.duration)
    first = 0.0 if info.times is None else info.times[0]
    return max(spec.start or 0.0, first), end


def _frames_within(info: VideoInfo, begin: float, end: float) -> range:
    """The frames, by their index, that begin in a stretch."""
    if info.times is not None:
        return range(*(bisect.bisect_left(info.times, time) for time in (begin, end)))
    total, period = _total_frames(info), _period(info)
    first = math.ceil(begin / period - _SAME_FRAME)
    last = total if end >= info.duration else min(total, math.ceil(end / period - _SAME_FRAME))
    return range(first, last)


def _time_of(info: VideoInfo, frame: int) -> float:
    return frame * _period(info) if info.times is None else info.times[frame]


def _period(info: VideoInfo) -> float:
    """Seconds from a frame to the next, where they are evenly spread."""
    total = _total_frames(info)
    # The stated rate places a frame exactly; a count that does not fit the duration is spread.
    fits = (total - 1) / info.fps < info.duration
    return 1 / info.fps if fits else info.duration / total


def _total_frames(info: VideoInfo) -> int:
    return info.num_frames or max(1, round(info.duration * info.fps))


def sampling_notes(info: VideoInfo, spec: SamplingSpec) -> Iterator[str]:
    """What to say where a source has less than was asked for, or images of a list are left out.

    One line each.
    """
    if info.duration <= 0 or info.fps <= 0:
        return
    if spec.end is not None and spec.end > info.duration:
        yield f"end={spec.end:g} s is after the end, {info.duration:.2f} s: taken up to there"
    begin, end = _stretch(info, spec)
    held = len(_frames_within(info, begin, end))
    if spec.fps is not None and (end - begin) * spec.fps >= held + 1:
        yield f"{spec.fps:g} frames a second were asked for, and there are {info.fps:.4g}"
    if spec.num_frames is not None and spec.num_frames > held:
        yield f"{spec.num_frames} frames were asked for, and there are {held}: all are taken"
    if info.container in (FOLDER, LIST) and spec.num_frames is None and spec.timestamps is None:
        taken = plan_sampling(info, spec).num_frames
        if taken < held:
            yield f"{taken} of {held} images are taken, as sampling says: ask for num_frames={held}"


def spread(total: int, count: int) -> list[int]:
    """`count` indices spread evenly over range(total), the first and the last among them."""
    if count == 1:
        return [0]
    return [round(i * (total - 1) / (count - 1)) for i in range(count)]


def _fit_budget(info: VideoInfo, spec: SamplingSpec, *, num_frames: int) -> tuple[int, int, int]:
    """Height, width and the most frames that keep the video within `max_tokens`."""
    height, width = smart_resize(
        info.height,
        info.width,
        factor=spec.factor,
        min_pixels=spec.pixel_range[0],
        max_pixels=pixel_limit(spec, num_frames=num_frames),
    )
    if spec.max_tokens is None:
        return height, width, num_frames
    tokens_per_frame = height * width // spec.factor**2
    affordable = spec.max_tokens // tokens_per_frame
    if affordable == 0:
        raise BudgetError(
            f"max_tokens={spec.max_tokens}: want at least {tokens_per_frame}, one temporal patch "
            f"of {width}x{height}; raise it or lower max_pixels and min_pixels"
        )
    return height, width, min(num_frames, affordable * spec.temporal_patch_size)


def _sampled_fps(info: VideoInfo, spec: SamplingSpec, times: tuple[float, ...]) -> float:
    if spec.timestamps is not None:
        span = times[-1] - times[0]
        return (len(times) - 1) / span if span > 0 else DEFAULT_FPS
    begin, end = _stretch(info, spec)
    return len(times) / (end - begin) if info.duration > 0 else spec.fps or DEFAULT_FPS


def _checked_timestamps(timestamps: Sequence[float]) -> tuple[float, ...]:
    for time in timestamps:
        if not (_is_number(time) and 0 <= time < math.inf):
            raise UsageError(f"timestamp {time!r}: want seconds, a number of at least 0")
    times = tuple(float(time) for time in timestamps)
    if not times:
        raise UsageError("timestamps is empty: want at least one, in seconds")
    for before, after in pairwise(times):
        if after < before:
            raise UsageError(f"timestamps {before:g}, {after:g}: want them ascending; sort them")
    return times


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)
