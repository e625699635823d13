"""One picture in a file as 8-bit RGB: formats, levels, transparency, size."""

import os

import numpy as np
import pytest
from PIL import Image, ImageOps

from videonsa.errors import VideoError
from videonsa.video import pictures
from videonsa.video.pictures import header_of, open_picture, read_rgb

RAMP = np.arange(256, dtype=np.float64).reshape(8, 32)
"""Every level of 8 bits once."""
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def rgb_of(path):
    with open_picture(path) as image:
        return read_rgb(image, is_ours=True)


def deep(name):
    """The ramp as deep levels, and as which file."""
    images = {
        "grey.png": (RAMP * 257).astype("<u2"),
        "little.tif": (RAMP * 257).astype("<u2"),
        "big.tif": (RAMP * 257).astype(">u2"),
        "grey.pgm": (RAMP * 257).astype("<u2"),
        "int16.tif": (RAMP * 257).astype(np.int32),
        "int8.tif": RAMP.astype(np.int32),
        "signed.tif": (RAMP * 1000 - 99_000).astype(np.int32),
        "unit.tif": (RAMP / 255).astype(np.float32),
        "float8.tif": RAMP.astype(np.float32),
        "float.tif": (RAMP * 31 - 1000).astype(np.float32),
    }
    return Image.fromarray(images[name])


@pytest.mark.parametrize(
    "name",
    [
        *("grey.png", "little.tif", "big.tif", "grey.pgm", "int16.tif", "int8.tif", "signed.tif"),
        *("unit.tif", "float8.tif", "float.tif"),
    ],
)
def test_levels_of_more_than_8_bits_are_scaled_to_all_of_8(tmp_path, name):
    deep(name).save(tmp_path / name)
    with open_picture(tmp_path / name) as image:
        assert header_of(image).deep[0] in "IF"
        picture = read_rgb(image)
    assert np.array_equal(picture, np.repeat(RAMP.astype(np.uint8)[..., None], 3, axis=2))


def test_a_dark_picture_of_16_bits_stays_dark(tmp_path):
    Image.fromarray(np.full((8, 8), 200, dtype="<u2")).save(tmp_path / "dark.png")
    Image.fromarray(np.full((8, 8), 200, dtype="<u2")).save(tmp_path / "dark.pgm")
    assert rgb_of(tmp_path / "dark.png").max() == 1
    assert rgb_of(tmp_path / "dark.pgm").max() == 1


def test_floats_that_are_no_numbers_are_dark_and_spoil_no_others(tmp_path):
    levels = np.array([[np.nan, 0.0, 0.5, 1.0, np.inf, -np.inf]], dtype=np.float32)
    Image.fromarray(levels).save(tmp_path / "odd.tif")
    assert rgb_of(tmp_path / "odd.tif")[0, :, 0].tolist() == [0, 0, 128, 255, 255, 0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "LA", "RGBA", "PA"])
def test_other_modes_are_as_pillow_converts_them_on_white(tmp_path, mode):
    alpha = Image.fromarray(NOISE[..., 0])
    image = Image.fromarray(NOISE).convert("P" if mode == "PA" else mode.removesuffix("A") or "L")
    if mode == "PA":
        image.save(tmp_path / "image.png", transparency=bytes(range(256)))
    else:
        if mode in ("LA", "RGBA"):
            image = Image.fromarray(NOISE).convert(mode)
            image.putalpha(alpha)
        image.save(tmp_path / ("image.tif" if mode == "CMYK" else "image.png"))
    (path,) = tmp_path.iterdir()
    with Image.open(path) as image:
        white = Image.new("RGBA", image.size, "white")
        wanted = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
        if mode == "CMYK":
            wanted = image.convert("RGB")
    assert np.array_equal(rgb_of(path), np.asarray(wanted))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_pictures_are_turned_as_exif_says(tmp_path, orientation, suffix):
    path = tmp_path / f"image.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(path, exif=exif, **({"quality": 95} if suffix == "jpg" else {}))
    with Image.open(path) as image:
        wanted = np.asarray(ImageOps.exif_transpose(image))
    with open_picture(path) as image:
        header = header_of(image)
        picture = read_rgb(image)
    assert np.array_equal(picture, wanted)
    assert (header.height, header.width) == wanted.shape[:2]


@pytest.mark.parametrize("name", ["eps.png", "eps.tif", "eps.jpg", "plain.eps"])
def test_interpreted_formats_are_not_opened_whatever_the_suffix(tmp_path, name, monkeypatch):
    def ran(*args, **kwargs):
        raise AssertionError("a program outside was started")

    monkeypatch.setattr("subprocess.Popen.__init__", ran)
    Image.fromarray(NOISE).save(tmp_path / name, format="EPS")
    with pytest.raises(VideoError, match="its content is of no format that is opened"):
        rgb_of(tmp_path / name)


def test_the_suffix_does_not_decide_what_an_image_is(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "image.jpg", format="PNG")
    assert np.array_equal(rgb_of(tmp_path / "image.jpg"), NOISE)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        *(("png", "RGB"), ("png", "RGBA"), ("png", "I;16")),
        *(("tif", "RGB"), ("tif", "RGBA"), ("tif", "I;16")),
        *(("jpg", "RGB"), ("webp", "RGB")),
    ],
)
def test_a_large_picture_is_reduced_in_bands_and_looks_the_same(tmp_path, monkeypatch, kind, mode):
    rows, columns = np.mgrid[0:152, 0:200]
    smooth = np.stack([rows, columns, (rows + columns) // 2], axis=-1).astype(np.uint8)
    image = Image.fromarray(smooth)
    image = Image.fromarray(rows.astype("<u2") * 257) if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / f"large.{kind}", exif=exif, quality=90)
    whole = rgb_of(tmp_path / f"large.{kind}")
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 152 * 200 // 10)
    monkeypatch.setattr(pictures, "BAND_PIXELS", 2000)
    with open_picture(tmp_path / f"large.{kind}") as image:
        assert header_of(image).reduced_by == 4
        small = read_rgb(image, is_ours=True)
    assert small.shape[0] * small.shape[1] <= 152 * 200 // 10
    wanted = np.asarray(Image.fromarray(whole).resize(small.shape[1::-1], Image.Resampling.BOX))
    assert np.abs(small.astype(int) - wanted).max() <= 6


def test_deep_levels_of_a_large_picture_have_one_range(tmp_path, monkeypatch):
    levels = np.repeat(np.arange(100, dtype=np.float32)[:, None] * 10, 20, axis=1)
    Image.fromarray(levels).save(tmp_path / "large.tif")
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 500)
    monkeypatch.setattr(pictures, "BAND_PIXELS", 100)
    column = rgb_of(tmp_path / "large.tif")[:, 0, 0]
    assert (np.diff(column.astype(int)) > 0).all()
    assert column[0] < 5
    assert column[-1] > 250


@pytest.mark.parametrize(
    ("name", "options", "kind"),
    [
        ("a.png", {}, "PNG"),
        ("a.jpg", {}, "JPEG"),
        ("b.jpg", {"progressive": True}, "progressive JPEG"),
        ("a.tif", {}, "TIFF"),
        ("a.webp", {}, "WEBP"),
        ("a.bmp", {}, "BMP"),
    ],
)
def test_what_its_decoder_would_take_too_much_for_is_refused(
    tmp_path, monkeypatch, name, options, kind
):
    Image.fromarray(NOISE).save(tmp_path / name, **options)
    monkeypatch.setattr(pictures, "MOST_BYTES", 48 * 64)
    with pytest.raises(VideoError, match=f"64x48 is 0 megapixels: want at most 0 of {kind};"):
        rgb_of(tmp_path / name)


def test_a_header_that_claims_more_than_any_picture_may_have_is_refused(tmp_path):
    path = tmp_path / "claims.bmp"
    Image.new("1", (8, 8)).save(path)
    data = bytearray(path.read_bytes())
    data[18:26] = (60_000).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(VideoError, match="an image of more than 178 megapixels"):
        rgb_of(path)


def test_a_large_jpeg_of_the_caller_keeps_its_size(tmp_path, monkeypatch):
    Image.fromarray(NOISE).save(tmp_path / "a.jpg")
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 100)
    with Image.open(tmp_path / "a.jpg") as image:
        assert read_rgb(image).size <= 300
        assert image.size == (64, 48)


def test_what_never_ends_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(VideoError, match="not a regular file: want an image"):
        rgb_of(tmp_path / "pipe.png")
