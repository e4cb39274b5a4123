import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from tests.data.packed import encoded, pixels_of
from vitlight.data.decode import DecodeError, decode_image
from vitlight.data.importers.convert import Conversion, convert, convert_pixels

KEEP, SMALL = Conversion(), Conversion(short_side=32)


def smooth(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A colour image without fine detail: upscaled noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize(
    ("image", "extension"),
    [
        (encoded(smooth(40, 50), "jpeg"), "jpg"),
        (encoded(smooth(40, 50)[:, :, 0], "jpeg"), "jpg"),
        (encoded(smooth(40, 50), "jpeg", exif=orientation(6)), "jpg"),
        (encoded(np.zeros((40, 50, 4), np.uint8), "png"), "png"),
        (encoded(smooth(40, 50), "webp"), "webp"),
        (encoded(smooth(40, 50), "bmp"), "bmp"),
    ],
)
@pytest.mark.parametrize("conversion", [KEEP, Conversion(short_side=40), Conversion(short_side=1000, quality=1)])
def test_what_needs_no_resizing_keeps_its_bytes(image, extension, conversion):
    assert convert(image, conversion) == (image, extension)


def test_cmyk_keeps_its_bytes_and_is_resized_as_rgb():
    buffer = io.BytesIO()
    Image.fromarray(smooth(64, 80)).convert("CMYK").save(buffer, "jpeg", quality=95)
    cmyk = buffer.getvalue()
    assert convert(cmyk, KEEP) == (cmyk, "jpg")
    resized, extension = convert(cmyk, SMALL)
    assert extension == "jpg"
    assert pixels_of(resized).shape == (32, 40, 3)
    assert psnr(pixels_of(resized), pixels_of(encoded(smooth(64, 80), "png"))[::2, ::2]) > 20


@pytest.mark.parametrize("form", ["tiff", "ppm", "gif"])
def test_kinds_that_are_not_stored_become_png_without_loss(form):
    pixels = smooth(40, 50)
    if form == "gif":
        pixels = np.asarray(Image.fromarray(pixels).quantize(16).convert("RGB"))
    image, extension = convert(encoded(pixels, form), KEEP)
    assert extension == "png"
    assert np.array_equal(pixels_of(image), pixels)


@pytest.mark.parametrize("form", ["png", "tiff", "ppm"])
def test_sixteen_bit_grey_keeps_its_high_byte(form):
    wide = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    image, extension = convert(encoded(wide, form), KEEP)
    assert extension == "png"
    assert np.array_equal(pixels_of(image), (wide >> 8).astype(np.uint8))
    assert np.array_equal(decode_image(image)[:, :, 0], (wide >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(150, 200, (32, 43)), (200, 150, (43, 32)), (33, 33, (32, 32)), (32, 900, (32, 900)), (33, 3300, (32, 3200))],
)
def test_the_short_side_is_met_and_the_ratio_kept(height, width, expected):
    for form in ("jpeg", "png"):
        image, _ = convert(encoded(smooth(height, width), form), SMALL)
        assert pixels_of(image).shape[:2] == expected
    assert pixels_of(convert_pixels(smooth(height, width), SMALL)[0]).shape[:2] == expected


@pytest.mark.parametrize(("height", "width"), [(601, 801), (803, 597), (256, 256), (129, 131), (67, 4000)])
def test_resizing_is_that_of_the_whole_image(height, width):
    """A JPEG is decoded at k/8 of its size where that is enough; the result is not shifted by it."""
    image = encoded(smooth(height, width)[:, :, 0], "jpeg", quality=95)  # grey: colours lose more when they are stored
    full = Image.fromarray(simplejpeg.decode_jpeg(image, "GRAY", fastdct=False)[:, :, 0])
    resized, _ = convert(image, Conversion(short_side=32, quality=100))
    size = pixels_of(resized).shape[::-1]
    assert psnr(pixels_of(resized), np.asarray(full.resize(size, Image.Resampling.BICUBIC))) > 48


def test_resizing_is_antialiased():
    """Stripes of one pixel become their mean: without antialiasing some would be black and some white."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 254
    image, _ = convert(encoded(stripes, "png"), SMALL)
    assert np.abs(pixels_of(image).astype(int)[:, 2:-2] - 127).max() <= 2


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_grey_stays_grey(form):
    grey = smooth(64, 64)[:, :, 0]
    image, extension = convert(encoded(grey, form), SMALL)
    with Image.open(io.BytesIO(image)) as opened:
        assert (opened.mode, opened.format, extension) == ("L", "JPEG", "jpg")


def test_transparency_and_palettes_are_dropped_as_in_training():
    pixels = smooth(64, 64)
    with_alpha = np.dstack([pixels, np.zeros((64, 64), np.uint8)])
    assert convert(encoded(with_alpha, "png"), SMALL) == convert(encoded(pixels, "png"), SMALL)
    buffer = io.BytesIO()
    palette = Image.fromarray(pixels).quantize(32)
    palette.save(buffer, "png", transparency=bytes(range(32)))
    flat = encoded(np.asarray(palette.convert("RGB")), "png")
    assert convert(buffer.getvalue(), SMALL) == convert(flat, SMALL)


def test_the_exif_orientation_is_not_applied():
    image = encoded(smooth(64, 128), "jpeg", exif=orientation(6))
    resized, _ = convert(image, SMALL)
    with Image.open(io.BytesIO(resized)) as opened:
        assert opened.size == (64, 32)
        assert not opened.getexif()


def test_quality_is_that_of_the_jpeg():
    image = encoded(smooth(300, 300), "png")
    sizes = {quality: len(convert(image, Conversion(64, quality))[0]) for quality in (50, 90, 100)}
    assert sizes[50] < sizes[90] < sizes[100]
    small, _ = convert(image, Conversion(64))
    assert simplejpeg.decode_jpeg_header(small) == (64, 64, "YCbCr", "420")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (encoded(smooth(200, 200), "jpeg")[:-500], "Premature end of JPEG"),
        (encoded(smooth(200, 200), "png")[:-500], "truncated"),
        (b"\xff\xd8\xff\xe0 none", "Truncated File Read"),
        (b"", "cannot identify"),
        (encoded(np.zeros((4, 4), np.float32), "tiff"), "its pixels are floating-point numbers"),
        (
            encoded(np.full((4, 4), 1 << 20, np.int32), "tiff"),
            "its values run from 1048576 to 1048576; they must fit into 16",
        ),
    ],
)
@pytest.mark.parametrize("conversion", [KEEP, SMALL])
def test_what_cannot_be_decoded_says_why(image, message, conversion):
    with pytest.raises(DecodeError, match=message):
        convert(image, conversion)
