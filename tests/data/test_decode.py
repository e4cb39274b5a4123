import io

import numpy as np
import pytest
from PIL import Image

from vitlight.data.decode import DecodeError, crop_and_resize, decode_image


def encode(pixels: np.ndarray, form: str, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.fixture
def pixels():
    rows, columns = np.mgrid[0:40, 0:56]
    return np.stack([rows * 6, columns * 4, 255 - rows * 3], axis=2).astype(np.uint8)


@pytest.mark.parametrize("form", ["png", "webp", "bmp"])
def test_lossless_forms_decode_exactly(pixels, form):
    options = {"lossless": True} if form == "webp" else {}
    assert np.array_equal(decode_image(encode(pixels, form, **options)), pixels)


def test_jpeg_equals_pillow(pixels):
    encoded = encode(pixels, "jpeg", quality=95)
    with Image.open(io.BytesIO(encoded)) as image:
        reference = np.array(image.convert("RGB")).astype(int)
    assert np.abs(decode_image(encoded).astype(int) - reference).max() <= 3
    assert np.abs(decode_image(encoded).astype(int) - pixels).mean() < 3


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "I;16"])
def test_any_mode_becomes_rgb_or_luma(pixels, mode):
    grey = pixels[:, :, 0]
    encoded = encode(grey.astype(np.uint16), "png") if mode == "I;16" else encode(pixels, "png", mode)
    for channels in (1, 3):
        decoded = decode_image(encoded, channels)
        assert decoded.shape == (40, 56, channels)
        assert decoded.dtype == np.uint8


def test_cmyk_jpegs_decode(pixels):
    decoded = decode_image(encode(pixels, "jpeg", "CMYK", quality=95))
    assert np.abs(decoded.astype(int) - pixels).mean() < 6


def test_grey_images_repeat_their_channel(pixels):
    decoded = decode_image(encode(pixels[:, :, 0], "png"))
    assert np.array_equal(decoded, np.repeat(pixels[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("damage", [b"", b"no image", "cut png", "cut jpeg header"])
def test_what_is_no_image_is_said_to_be_none(pixels, damage):
    if damage == "cut png":
        damage = encode(pixels, "png")[:-40]
    elif damage == "cut jpeg header":
        damage = encode(pixels, "jpeg")[:20]
    with pytest.raises(DecodeError, match=r"\w"):
        decode_image(damage)


def test_crop_takes_the_box_and_resizing_keeps_flat_colour(pixels):
    whole = crop_and_resize(pixels, (3, 5, 20, 20), 20)
    assert np.array_equal(whole.numpy(), pixels[3:23, 5:25])
    flat = np.full((31, 17, 3), 200, np.uint8)
    assert (crop_and_resize(flat, (0, 0, 31, 17), 24).numpy() == 200).all()


@pytest.mark.parametrize("size", [12, 64])
def test_resizing_equals_pillow(pixels, size):
    box = (2, 4, 30, 40)
    with Image.fromarray(pixels) as image:
        crop = image.crop((4, 2, 44, 32)).resize((size, size), Image.Resampling.BICUBIC)
    ours = crop_and_resize(pixels, box, size).numpy().astype(int)
    assert np.abs(ours - np.array(crop).astype(int)).max() <= 2
