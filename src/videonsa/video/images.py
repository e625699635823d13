"""Images as sources: one, an animated one, a list of them, or those of a folder, through Pillow."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from videonsa.errors import VideoError
from videonsa.video.container import TIME_TOLERANCE, SourceFrame
from videonsa.video.framelist import FOLDER_FPS, FrameList, HeldPicture
from videonsa.video.pictures import (
    IMAGE_SUFFIXES,
    Header,
    header_of,
    open_picture,
    read_rgb,
    unreadable_suffixes,
)
from videonsa.video.sampling import FOLDER, IMAGE, LIST, VideoInfo
from videonsa.video.segments import Layout, Segment, whole_layout

VIDEO_SUFFIXES = frozenset(
    {
        *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
        *(".flv", ".wmv", ".3gp", ".ogv", ".vob", ".mxf"),
    }
)
ANIMATED = frozenset({"png", "webp", "avif", "gif"})
"""Formats whose further pictures have times: in others they are pages, or another view."""
MOST_ANIMATED_PIXELS = 2 * 10**9
"""Of all frames of an animation; its times are known only once all are decoded."""
DEFAULT_PERIOD = 100
"""Milliseconds of a frame of an animation that states none."""
MOST_HEADERS = 2048
"""Headers that are read, evenly spread, to say what is not alike in a list of pictures."""
MOST_NAMED = 3
Picture = Path | HeldPicture


class ImageFrames:
    """An image (duration 0), a list of images, or those of a folder, `img2` before `img10`.

    Images of other sizes than the first are resized to the first's shape.
    """

    def __init__(self, source: Picture | FrameList) -> None:
        notes: list[str] = []
        self._times: Sequence[float] | None = None
        if isinstance(source, FrameList):
            self._pictures: Sequence[Picture] = source.pictures
            fps, kind = source.fps, LIST
            self._times = source.times
            if source.folder is not None:
                kind = FOLDER
                self._pictures, passed_over = _images_in(source.folder)
                notes += passed_over
        else:
            self._pictures, fps, kind = [source], 0.0, IMAGE
        first = _header(self._pictures[0])
        count = len(self._pictures)
        duration = count / fps if fps else 0.0
        if self._times is not None:
            begin, last = self._times[0], self._times[-1]
            # The last is on screen for as long as the others are on average.
            period = (last - begin) / (count - 1) if count > 1 else 1 / FOLDER_FPS
            duration, fps = last + period, 1 / period
        self.info = VideoInfo(
            path=str(source),
            duration=duration,
            num_frames=count,
            fps=fps,
            width=first.width,
            height=first.height,
            codec=first.format,
            container=kind,
            notes=(*notes, *_differences(self._pictures, first)),
            times=_uneven(self._times),
        )

    def layout(self, targets: Sequence[float], *, keyframes: bool) -> Layout:
        """All images in one part, whatever is wanted of them."""
        several = keyframes or not self.info.is_image
        return whole_layout(targets, problem="images have no keyframes" if several else None)

    @contextmanager
    def reader(self, layout: Layout) -> Iterator[Callable[[Segment], Iterator[SourceFrame]]]:
        """What reads the only segment."""
        yield lambda segment: self.frames()

    def frames(self) -> Iterator[SourceFrame]:
        """One frame an image; an image is read when its pixels are asked for."""
        period = 1 / (self.info.fps or FOLDER_FPS)
        times = self._times or [index * period for index in range(len(self._pictures))]
        ends = [*times[1:], times[-1] + period]
        for picture, time, end in zip(self._pictures, times, ends, strict=True):
            yield SourceFrame(
                time=time,
                end=end,
                after_error=False,
                damaged=False,
                rgb=partial(_read, picture),
            )


class Animation:
    """An animated image: a video whose frames have times of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_picture(path) as image:
            header = header_of(image)
            _check_length(path, header)
            self._stated = header.num_pictures
            shown = _shown(image, header.num_pictures)
            durations = list(_durations(image, shown))
        notes = []
        if shown[0] > 0:
            notes.append("its first picture is left out: it is for what shows no animations")
        if len(durations) < len(shown):
            notes.append(f"{len(durations)} frames decode of the {len(shown)} stated")
        if not all(durations):
            notes.append(f"frames that state no duration are taken as {DEFAULT_PERIOD} ms")
        ends = [
            end / 1000 for end in accumulate(duration or DEFAULT_PERIOD for duration in durations)
        ]
        self._times = (0.0, *ends[:-1])
        self.info = VideoInfo(
            path=str(path),
            duration=ends[-1],
            num_frames=len(ends),
            fps=len(ends) / ends[-1],
            width=header.width,
            height=header.height,
            codec=header.format,
            container="animation",
            notes=(*notes, *_reading_notes([header])),
            times=_uneven(self._times),
        )

    def layout(self, targets: Sequence[float], *, keyframes: bool) -> Layout:
        """All frames in one part: each builds on the one before."""
        return whole_layout(targets, problem="animated images have no keyframes")

    @contextmanager
    def reader(self, layout: Layout) -> Iterator[Callable[[Segment], Iterator[SourceFrame]]]:
        """What reads the only segment."""
        yield lambda segment: self.frames()

    def frames(self) -> Iterator[SourceFrame]:
        """The frames in order."""
        spans = pairwise([*self._times, self.info.duration])
        with open_picture(self._path) as image:
            for index, (time, end) in zip(_shown(image, self._stated), spans, strict=False):
                image.seek(index)
                yield SourceFrame(
                    time=time,
                    end=end,
                    after_error=False,
                    damaged=False,
                    rgb=partial(_same, read_rgb(image)),
                )


def open_image(path: Path) -> ImageFrames | Animation:
    """An image file, animated or not.

    Raises:
        VideoError: it cannot be read.

    """
    header = _header(path)
    animated = header.num_pictures > 1 and header.format in ANIMATED
    return Animation(path) if animated else ImageFrames(path)


def _same(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return picture


def _check_length(path: Path, header: Header) -> None:
    pixels = header.width * header.height * header.num_pictures
    if pixels > MOST_ANIMATED_PIXELS:
        raise VideoError(
            f"{path}: an animation of {header.num_pictures} frames of "
            f"{header.width}x{header.height}: want at most {MOST_ANIMATED_PIXELS // 10**6} "
            "megapixels in all; convert it to a video"
        )


def _shown(image: Image.Image, num_pictures: int) -> range:
    """The pictures of an animation that are its frames: the first may be for other viewers."""
    return range(int(bool(getattr(image, "default_image", False))), num_pictures)


def _durations(image: Image.Image, shown: range) -> Iterator[float]:
    """Milliseconds of each frame that decodes, up to the first that does not; 0 if not stated."""
    for index in shown:
        try:
            image.seek(index)
            image.load()
            duration = float(image.info.get("duration", 0))
        except Exception:  # Pillow lets through whatever a format's parser meets.
            if index == shown[0]:
                raise
            return
        yield duration if 0 < duration < math.inf else 0.0


def _uneven(times: Sequence[float] | None) -> Sequence[float] | None:
    """Times that do not follow from a rate: they begin later than at 0, or not evenly."""
    if times is None:
        return None
    period = times[-1] / max(1, len(times) - 1)
    even = all(abs(time - index * period) < TIME_TOLERANCE / 2 for index, time in enumerate(times))
    return None if even else times


def _images_in(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder in order, and what else is in it, in words."""
    images, others = images_among(folder, names_in(folder))
    if not images:
        held = f" (it holds {_names(others)})" if others else ""
        raise VideoError(
            f"{folder}: a folder without images{held}: want frames as jpg, png, webp, avif, tif, "
            "bmp, ppm, jp2 or gif"
        )
    passed_over = f"passed over in the folder, as no images that are read here: {_names(others)}"
    return images, [passed_over] if others else []


def names_in(folder: Path) -> list[str]:
    """What a folder holds, in any order, but for what is hidden.

    Raises:
        VideoError: it cannot be read.

    """
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".")]
    except OSError as error:
        reason = (error.strerror or "not possible").lower()
        raise VideoError(f"{folder}: cannot be read: {reason}: name one you may read") from error


def images_among(folder: Path, names: Iterable[str]) -> tuple[list[Path], list[Path]]:
    """The images among what a folder holds, `img2` before `img10`, and the others.

    Raises:
        VideoError: there are videos among them.

    """
    paths = sorted((folder / name for name in names), key=natural_key)
    known = (IMAGE_SUFFIXES | {".gif"}) - unreadable_suffixes()
    images = [path for path in paths if path.suffix.lower() in known and path.is_file()]
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos:
        raise VideoError(
            f"{folder}: a folder that holds videos ({_names(videos)}) and {len(images)} images: "
            "name the video itself, or a folder that holds the images alone"
        )
    taken = set(images)
    return images, [path for path in paths if path not in taken]


def _names(paths: Sequence[Path]) -> str:
    """A few of the names, and how many more there are."""
    more = len(paths) - MOST_NAMED
    named = ", ".join(path.name for path in paths[:MOST_NAMED])
    return f"{named} and {more} more" if more > 0 else named


def natural_key(path: Path) -> list[tuple[bool, int, str]]:
    """What paths sort by: digits as numbers; the name itself breaks ties, as of img1 and img01."""
    parts = re.split(r"([0-9]+)", path.name)
    key = [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts]
    return [(digits, number, "" if digits else part) for digits, number, part in key] + [
        (False, 0, path.name)
    ]


def _differences(pictures: Sequence[Picture], first: Header) -> Iterator[str]:
    """What is not alike in a list of pictures, or not taken as it is, one line each."""
    step = -(-len(pictures) // MOST_HEADERS)
    headers = [first]
    for picture in pictures[1::step]:
        try:
            headers.append(_header(picture))
        except VideoError:
            continue  # It is lost only where it is sampled, and that is said then.
    looked = f" ({len(headers)} of {len(pictures)} were looked at)" if step > 1 else ""
    sizes = Counter((header.width, header.height) for header in headers)
    other = len(headers) - sizes.pop((first.width, first.height))
    if other:
        width, height = sizes.most_common(1)[0][0]
        yield (
            f"{other} of {len(headers)} images have another size than the first's "
            f"{first.width}x{first.height}, such as {width}x{height}: they are resized to its "
            f"shape{looked}"
        )
    yield from _reading_notes(headers)
    more = [header for header in headers if header.num_pictures > 1]
    if more:
        whose = "it is" if len(headers) == 1 else f"{len(more)} of {len(headers)} images are"
        yield (
            f"{whose} of several pictures, up to {max(header.num_pictures for header in more)}: "
            "the first of each is taken"
        )


def _reading_notes(headers: Sequence[Header]) -> Iterator[str]:
    """What is scaled to read pictures."""
    deep = [header.deep for header in headers if header.deep]
    if deep:
        what = f" of {len(deep)} of {len(headers)} images" if len(headers) > 1 else ""
        yield f"levels of more than 8 bits{what} (mode {deep[0]}) are scaled to 0 to 255"
    factor = max(header.reduced_by for header in headers)
    if factor > 1:
        large = max(headers, key=lambda header: header.reduced_by)
        yield (
            f"a picture of {large.width}x{large.height} is reduced while it is read, its sides by "
            f"{factor} or more, for bounded memory"
        )


def _header(picture: Picture) -> Header:
    if isinstance(picture, HeldPicture):
        return picture.header()
    if picture.suffix.lower() in VIDEO_SUFFIXES:
        raise VideoError(
            f"{picture}: a video in the place of an image: want images; pass one video by itself"
        )
    with open_picture(picture) as image:
        return header_of(image)


def _read(picture: Picture) -> NDArray[np.uint8]:
    if isinstance(picture, HeldPicture):
        return picture.read()
    with open_picture(picture) as image:
        return read_rgb(image, is_ours=True)
