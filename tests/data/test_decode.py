import io

import numpy as np
import pytest
import torch
from PIL import Image

from vitlight.data.decode import (
    DecodeError,
    crop_and_resize,
    decode_crop,
    decode_for_crop,
    decode_image,
    resize_and_centre,
)


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


def test_sixteen_bits_keep_their_upper_eight():
    grey = np.array([[0, 255, 256, 0x8000], [1000, 40_000, 65_000, 0xFFFF]], np.uint16)
    decoded = decode_image(encode(grey, "png"), 1)[:, :, 0]
    assert np.array_equal(decoded, grey >> 8)


def test_palettes_with_transparency_decode_without_a_warning():
    image = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4)).convert("P")
    buffer = io.BytesIO()
    image.save(buffer, "png", transparency=bytes([0, 128] + [255] * 14))
    assert np.array_equal(decode_image(buffer.getvalue(), 1)[:, :, 0], np.arange(16).reshape(4, 4))


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
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_resizing_equals_pillow(pixels, size, interpolation):
    box = (2, 4, 30, 40)
    with Image.fromarray(pixels) as image:
        resampling = Image.Resampling[interpolation.upper()]
        crop = image.crop((4, 2, 44, 32)).resize((size, size), resampling)
    ours = crop_and_resize(pixels, box, size, interpolation).numpy().astype(int)
    assert np.abs(ours - np.array(crop).astype(int)).max() <= 2


def smooth(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 100 * np.sin(rows / a + columns / b) for a, b in ((40, 60), (55, 35), (70, 90))]
    return np.stack(waves, axis=2).astype(np.uint8)


@pytest.mark.parametrize("form", ["jpeg", "png"])
@pytest.mark.parametrize("box", [(0, 0, 375, 500), (31, 57, 224, 224), (10, 20, 90, 120), (374, 499, 1, 1)])
def test_a_crop_is_what_decoding_and_cropping_give(form, box):
    encoded = encode(smooth(375, 500), form, **({"quality": 90} if form == "jpeg" else {}))
    asked = []
    crop = decode_crop(encoded, 3, 64, lambda height, width: asked.append((height, width)) or box)
    assert asked == [(375, 500)]
    assert torch.equal(crop, decode_crop(encoded, 3, 64, lambda height, width: box, is_sound=True))
    assert crop.shape == (64, 64, 3)
    exact = crop_and_resize(decode_image(encoded), box, 64).numpy().astype(int)
    difference = np.abs(crop.numpy().astype(int) - exact)
    assert difference.mean() <= (1.0 if form == "jpeg" else 0.0)  # JPEG: colours replicated, cosine transform scaled
    assert difference.max() <= (8 if form == "jpeg" else 0)


@pytest.mark.parametrize(("side", "factor"), [(127, 1), (128, 2), (304, 4), (704, 8), (1408, 8)])
def test_a_large_crop_is_decoded_at_the_smallest_size_that_holds_it(side, factor):
    encoded = encode(smooth(1504, 2000), "jpeg")
    pixels, box = decode_for_crop(encoded, 1, 64, lambda height, width: (96, 48, side, side), is_sound=True)
    assert pixels.shape[1] == 2000 // factor
    assert box == (
        96 // factor,
        48 // factor,
        round((96 + side) / factor) - 96 // factor,
        round((48 + side) / factor) - 48 // factor,
    )
    assert box[0] + box[2] <= pixels.shape[0] <= (96 + side + 16) // factor
    exact = crop_and_resize(decode_image(encoded, 1), (96, 48, side, side), 64).numpy().astype(int)
    assert np.abs(crop_and_resize(pixels, box, 64).numpy().astype(int) - exact).max() <= 3


def test_crops_of_damaged_and_rare_jpegs(pixels):
    encoded = encode(pixels, "jpeg", quality=95)
    whole = lambda height, width: (0, 0, height, width)  # noqa: E731
    with pytest.raises(DecodeError):
        decode_crop(encoded[: len(encoded) // 2], 3, 16, whole)
    cmyk = encode(pixels, "jpeg", "CMYK", quality=95)
    assert decode_crop(cmyk, 3, 16, whole).shape == (16, 16, 3)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (256, 256), (100, 90)])
def test_the_evaluation_view_is_resized_then_cut_from_the_centre(height, width):
    """Resize(floor(224 / 0.875)) and CenterCrop(224), spelled out with Pillow."""
    image = Image.fromarray(smooth(height, width))
    short, long = min(height, width), max(height, width)
    size = (256, 256 * long // short) if width <= height else (256 * long // short, 256)
    resized = np.array(image.resize(size, Image.Resampling.BICUBIC)).astype(int)
    top, left = round((size[1] - 224) / 2), round((size[0] - 224) / 2)
    view = resize_and_centre(np.array(image), 224, 0.875).numpy().astype(int)
    assert view.shape == (224, 224, 3)
    difference = np.abs(view - resized[top : top + 224, left : left + 224])
    assert difference.max() <= 2  # both round to uint8 between the two passes of the resize
    assert difference.mean() < 0.1
