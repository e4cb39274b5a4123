"""The bytes an image is stored as: its own where they can stay, otherwise it is resized and encoded again."""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from vitlight.data.decode import DecodeError, decode_image

__all__ = ["QUALITY", "Conversion", "convert", "convert_pixels"]

Pixels = NDArray[np.uint8]

QUALITY = 95
_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "BMP": "bmp"}  # what keeps its bytes
_GREY_MODES = {"1", "L", "LA", "La"}
_WIDE_MODES = {"I", "I;16", "I;16L", "I;16B", "I;16N"}
_PILLOW_ERRORS = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Conversion:
    """How images are stored."""

    short_side: int | None = None
    """Pixels of the shorter side, for images that have more."""
    quality: int = QUALITY
    """Of a JPEG that is encoded again."""


def convert(encoded: bytes, conversion: Conversion) -> tuple[bytes, str]:
    """(bytes, extension) to store for an encoded image; every image is decoded to the end, to be sure of it.

    A JPEG, PNG, WebP or BMP that needs no resizing keeps its bytes, whatever its name; other kinds become PNG, by their
    first frame. What is resized becomes a JPEG with 4:2:0 colour, grey where it was grey; transparency is dropped and the
    EXIF orientation is not applied, both as in training. 16-bit grey loses its low byte: decoders would clip it to white.
    Raises DecodeError.
    """
    kept: str | None
    if encoded.startswith(b"\xff\xd8"):
        pixels, (height, width) = _decode_jpeg(encoded, conversion.short_side)
        kept = "jpg"
    else:
        pixels, kept = _decode_other(encoded)
        height, width = pixels.shape[:2]
    size = _target(height, width, conversion.short_side)
    if size is not None:
        return _encode_jpeg(_resize(pixels, (height, width), size), conversion.quality), "jpg"
    return (encoded, kept) if kept else (_encode_png(pixels), "png")


def convert_pixels(pixels: Pixels, conversion: Conversion) -> tuple[bytes, str]:
    """(bytes, extension) to store for raw pixels (H, W) or (H, W, 3): PNG, resized or not."""
    height, width = pixels.shape[:2]
    size = _target(height, width, conversion.short_side)
    return _encode_png(pixels if size is None else _resize(pixels, (height, width), size)), "png"


def _target(height: int, width: int, short_side: int | None) -> tuple[int, int] | None:
    """(height, width) to resize to, or None where the image stays as it is."""
    if short_side is None or min(height, width) <= short_side:
        return None
    scale = short_side / min(height, width)
    return max(short_side, round(height * scale)), max(short_side, round(width * scale))


def _decode_jpeg(encoded: bytes, short_side: int | None) -> tuple[Pixels, tuple[int, int]]:
    """Pixels, at most 1/8 in size and at least twice `short_side`, and the full (height, width)."""
    least = 0 if short_side is None else 2 * short_side
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(encoded)
        pixels = simplejpeg.decode_jpeg(
            encoded,
            colorspace="GRAY" if colorspace == "Gray" else "RGB",
            fastdct=False,
            fastupsample=False,
            min_height=least,
            min_width=least,
        )
    except ValueError:  # CMYK and other rare JPEGs
        pixels = decode_image(encoded)
        height, width = pixels.shape[:2]
    return (pixels[:, :, 0] if pixels.shape[2] == 1 else pixels), (height, width)


def _decode_other(encoded: bytes) -> tuple[Pixels, str | None]:
    """Pixels, and the extension under which the bytes can stay."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode in _WIDE_MODES:
                wide = np.asarray(image)
                if wide.min() < 0 or wide.max() > 0xFFFF:
                    raise DecodeError(f"its values run from {wide.min()} to {wide.max()}; they must fit into 16 bits")
                return (wide.astype(np.uint16) >> 8).astype(np.uint8), None
            if image.mode == "F":
                raise DecodeError("its pixels are floating-point numbers")
            if image.mode in _GREY_MODES:
                return np.array(image.convert("L")), _EXTENSIONS.get(image.format or "")
            flat = image.convert("RGBA") if image.mode in ("P", "PA") else image  # Pillow warns of P straight to RGB
            return np.array(flat.convert("RGB")), _EXTENSIONS.get(image.format or "")
    except _PILLOW_ERRORS as error:
        raise DecodeError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _resize(pixels: Pixels, full: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """Bicubic, antialiased, to `size`; `pixels` may have been decoded at k/8 of the `full` size.

    Decoding rounds k/8 of a side up, so the image ends inside the last row or column: without that, all of it would be
    shifted by up to half a pixel (38 instead of 54 dB from the resized full image, at 2000 x 1500 to 256).
    """
    eighths = next(k for k in range(8, 0, -1) if pixels.shape[:2] == tuple(-(-side * k // 8) for side in full))
    box = (0, 0, full[1] * eighths / 8, full[0] * eighths / 8)
    return np.asarray(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC, box=box))


def _encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    if pixels.ndim == 2:
        return simplejpeg.encode_jpeg(pixels[:, :, None], quality=quality, colorspace="GRAY", colorsubsampling="Gray")
    return simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")


def _encode_png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()
