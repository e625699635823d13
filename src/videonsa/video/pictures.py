"""One picture, in a file or in memory, as 8-bit RGB, through Pillow.

A picture that fits `LARGE_PIXELS` comes as Pillow converts it. A larger one is reduced while it is
read, part by part, so that its memory is bounded by its format's decoder.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from videonsa.errors import VideoError

LARGE_PIXELS = 2**25
"""Pixels above which a picture is reduced; models are shown less than half of it by default."""
BAND_PIXELS = 2**22
"""Pixels of a large picture that are converted together."""
MOST_BYTES = 900 * 10**6
"""What the decoder of a picture may take."""
_BYTES_PER_PIXEL = MappingProxyType(
    {"PNG": 5, "PPM": 5, "BMP": 5, "JPEG": 5, "progressive JPEG": 8, "TIFF": 9, "GIF": 9}
)
"""Of a format's decoder and Pillow's picture together: 3 or 4 bytes of the picture, and buffers.
A progressive JPEG is there as coefficients of 2 bytes before its pixels are."""
_BYTES_OF_OTHERS = 16
"""AVIF, JPEG 2000, WebP and animations: planes, or the whole picture twice or more."""
_DECODERS = MappingProxyType(
    {
        "webp": (".webp",),
        "avif": (".avif", ".avifs"),
        "jpg_2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    }
)
"""The features of Pillow that not every build has, and the suffixes that need them."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "BMP", "DIB", "GIF", "JPEG2000", "PPM", "TIFF")
"""What is opened, whatever a file is called. Others are interpreted by programs outside."""
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        *(suffix for suffixes in _DECODERS.values() for suffix in suffixes),
    }
)
_ORIENTATION = 0x0112
_TURNED = MappingProxyType(
    {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
)
"""What undoes each orientation of EXIF."""
_WHITE = (255, 255, 255, 255)


class Header(NamedTuple):
    """What a picture says of itself before its pixels are decoded."""

    width: int
    """As displayed."""
    height: int
    format: str
    """In lower case; empty for a picture that was made in memory."""
    num_pictures: int
    """Frames of an animation, or pages; 1 of most."""
    deep: str
    """The mode of levels with more than 8 bits; empty of others."""

    @property
    def reduced_by(self) -> int:
        """Both sides of the picture are divided by this as it is read."""
        return reduction(self.width, self.height)


def unreadable_suffixes() -> frozenset[str]:
    """Suffixes of images that this build of Pillow has no decoder for."""
    missing = (suffixes for name, suffixes in _DECODERS.items() if not features.check(name))
    return frozenset(suffix for suffixes in missing for suffix in suffixes)


def is_picture(path: Path) -> bool:
    """Whether the beginning of a file is that of an image, whatever it is called."""
    try:
        with _opened(path):
            return True
    except Image.DecompressionBombError:
        return True  # whoever opens it is told its size
    except Exception:  # Pillow passes on any exception of a format's parser.
        return False


@contextmanager
def open_picture(path: Path) -> Iterator[Image.Image]:
    """An image file, before its pixels are decoded.

    Raises:
        VideoError: it cannot be read, now or while it is open, or it is too large.

    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise VideoError(f"{path}: not a regular file: want an image")
        with _opened(path) as image:
            _check_size(path, image)
            yield image
    except VideoError:
        raise
    except Image.DecompressionBombError as error:
        raise VideoError(
            f"{path}: an image of more than {2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6} "
            "megapixels: want a smaller one; scale it down first"
        ) from error
    except Exception as error:  # Pillow passes on any exception of a format's parser.
        raise VideoError(_why_not_read(path, error)) from error


def _opened(path: Path) -> Image.Image:
    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def _check_size(path: Path, image: Image.Image) -> None:
    width, height = image.size
    kind = {"DIB": "BMP", "MPO": "JPEG"}.get(image.format or "", image.format or "")
    if kind == "JPEG" and image.info.get("progressive"):
        kind = "progressive JPEG"
    elif kind in ("PNG", "GIF") and getattr(image, "is_animated", False):
        kind = f"animated {kind}"
    most = MOST_BYTES // _BYTES_PER_PIXEL.get(kind, _BYTES_OF_OTHERS)
    if width * height > most:
        raise VideoError(
            f"{path}: an image of {width}x{height} is {width * height / 1e6:.0f} megapixels: want "
            f"at most {most // 10**6} of {kind}; scale it down first"
        )


def _why_not_read(path: Path, error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return (
            f"{path}: not an image that can be read (its content is of no format that is opened): "
            f"want {', '.join(name.lower() for name in FORMATS if name != 'DIB')}"
        )
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"{path}: not an image that can be read ({reason}): want a whole image; save it again"


def header_of(image: Image.Image) -> Header:
    """What an image says of itself."""
    # Pillow swaps the sides of a turned TIFF by itself.
    swapped = image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    width, height = image.size[::-1] if swapped else image.size
    deep = image.mode if image.mode[0] in "IF" else ""
    if not deep and any(";16" in str(tile) for tile in getattr(image, "tile", ())):
        deep = f"{image.mode};16"
    return Header(
        width=width,
        height=height,
        format=(image.format or "").lower(),
        num_pictures=getattr(image, "n_frames", 1),
        deep=deep,
    )


def reduction(width: int, height: int) -> int:
    """The factor by which both sides go down so that at most `LARGE_PIXELS` are left."""
    return max(1, math.ceil(math.sqrt(width * height / LARGE_PIXELS)))


def read_rgb(image: Image.Image, *, is_ours: bool = False) -> NDArray[np.uint8]:
    """The picture [H, W, 3], turned as EXIF says; what is transparent becomes white.

    Levels of more than 8 bits are scaled. A large picture is reduced by `reduction`. Where the
    image is nobody else's, a large JPEG is decoded at a part of its size, and stays so.
    """
    factor = reduction(*image.size)
    if factor > 1 and is_ours:
        image.draft(None, (image.width // factor, image.height // factor))
    image.load()
    turned = _TURNED.get(image.getexif().get(_ORIENTATION, 1))
    rgb = _in_rgb(image, factor=reduction(*image.size))
    return np.array(rgb if turned is None else rgb.transpose(turned))


def _in_rgb(image: Image.Image, *, factor: int) -> Image.Image:
    """The picture in RGB with its sides divided by `factor`."""
    convert = _converter(image)
    if factor == 1:
        return convert(image)
    small = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    for top, band in _bands(image, factor):
        small.paste(convert(band).reduce(factor), (0, top // factor))
    return small


def _bands(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """Copies of a few rows each, a multiple of `factor` in all but the last, and where they begin.

    A copy of the whole could be more than fits.
    """
    width, height = image.size
    rows = max(1, BAND_PIXELS // (width * factor)) * factor
    for top in range(0, height, rows):
        yield top, image.crop((0, top, width, min(top + rows, height)))


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """What turns the image, or a part of it, into RGB."""
    if image.mode[0] in "IF":
        low, high = _range_of(image)
        return lambda part: _scaled(part, low, high)
    if image.has_transparency_data:
        return _on_white
    return lambda part: part.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    opaque = Image.new("RGBA", image.size, _WHITE)
    return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")


def _range_of(image: Image.Image) -> tuple[float, float]:
    """The levels of a deep picture that become 0 and 255.

    What a format states where it does, else the least usual range that holds all levels: 0 to 1
    (floats), 0 to 255, 0 to 65535, or the lowest and the highest.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return 0.0, 65535.0
    low, high = math.inf, -math.inf
    for _, band in _bands(image, 1):
        levels = np.asarray(band)
        levels = levels[np.isfinite(levels)]
        if levels.size:
            low, high = min(low, float(levels.min())), max(high, float(levels.max()))
    if low > high:
        return 0.0, 1.0
    usual = (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0)
    within = [most for most in usual if low >= 0 and high <= most]
    return (0.0, within[0]) if within else (low, high)


def _scaled(image: Image.Image, low: float, high: float) -> Image.Image:
    """Levels from `low` to `high` as grey of 0 to 255; what is no number is as low."""
    levels = np.asarray(image).astype(np.float32)
    grey = np.rint((levels - low) * (255 / ((high - low) or 1.0)))
    grey = np.nan_to_num(grey, nan=0.0).clip(0, 255)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
