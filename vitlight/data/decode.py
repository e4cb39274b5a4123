"""Bytes -> uint8 image, cropped and resized. JPEG goes through simplejpeg, everything else through Pillow."""

import io
from collections.abc import Callable

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vitlight.data.jpeg import DamagedJpegError, decode_rows, decode_whole

__all__ = [
    "Box",
    "DecodeError",
    "crop_and_resize",
    "decode_crop",
    "decode_for_crop",
    "decode_image",
    "resize_and_centre",
]

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]
"""top, left, height, width"""

_JPEG_MAGIC = b"\xff\xd8\xff"
_MODES = {1: "L", 3: "RGB"}


class DecodeError(ValueError):
    """The bytes are not an image that can be decoded. The message says why; the caller adds shard and key."""


def decode_image(encoded: bytes, channels: int = 3) -> Pixels:
    """Pixels (H, W, C) in 0..255, converted to `channels` = 3 (RGB) or 1 (luma), as accurately as the decoder can."""
    if encoded.startswith(_JPEG_MAGIC):
        try:
            return decode_whole(encoded, channels)
        except DamagedJpegError as error:
            raise DecodeError(str(error)) from error
        except ValueError:
            pass  # rare kinds: Pillow decodes them, or says what is wrong
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.array(_in_mode(image, _MODES[channels]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode == mode:
        return image
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would cut off at 255 instead of dividing by 256
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")
    return image.convert(mode)


def decode_crop(
    encoded: bytes,
    channels: int,
    size: int,
    choose_box: Callable[[int, int], Box],
    *,
    interpolation: str = "bicubic",
    is_sound: bool = False,
) -> Tensor:
    """A training crop, uint8 (size, size, C): the box that `choose_box(height, width)` gives, resized."""
    pixels, box = decode_for_crop(encoded, channels, size, choose_box, is_sound=is_sound)
    return crop_and_resize(pixels, box, size, interpolation)


def decode_for_crop(
    encoded: bytes, channels: int, size: int, choose_box: Callable[[int, int], Box], *, is_sound: bool = False
) -> tuple[Pixels, Box]:
    """Pixels of an image, perhaps made smaller, and the box in them that `choose_box(height, width)` gives.

    A JPEG whose crop is at least twice `size` is decoded at a half, a quarter or an eighth of its size, in the inverse
    cosine transform, which costs a fraction of decoding it whole; and its colours, stored at half the resolution, are not
    interpolated before the resize. Evaluation takes neither short cut: see decode_image. One that is known to be sound is
    decoded no further than the last row of the crop, which changes no pixel of it.
    """
    if encoded.startswith(_JPEG_MAGIC):
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
            box = choose_box(height, width)
            factor = next((f for f in (8, 4, 2) if min(box[2:]) >= f * size), 1)
            last_row = box[0] + box[2] if is_sound else height
            pixels = decode_rows(encoded, channels, height, width, last_row, factor)
        except DamagedJpegError as error:
            raise DecodeError(str(error)) from error
        except ValueError:
            pass
        else:
            return pixels, _scaled(box, factor, pixels.shape[:2])
    pixels = decode_image(encoded, channels)
    return pixels, choose_box(*pixels.shape[:2])


def _scaled(box: Box, factor: int, decoded: tuple[int, ...]) -> Box:
    """The box in an image of 1/factor of the size, of which `decoded` (rows, columns) are there."""
    if factor == 1:
        return box
    (top, left, height, width), (num_rows, num_columns) = box, decoded
    first_row, first_column = round(top / factor), round(left / factor)
    last_row = min(max(round((top + height) / factor), first_row + 1), num_rows)
    last_column = min(max(round((left + width) / factor), first_column + 1), num_columns)
    return first_row, first_column, last_row - first_row, last_column - first_column


def crop_and_resize(pixels: Pixels, box: Box, size: int, interpolation: str = "bicubic") -> Tensor:
    """The box of pixels (H, W, C), resized to uint8 (size, size, C): `bicubic` or `bilinear`, antialiased."""
    top, left, height, width = box
    crop = torch.from_numpy(pixels[top : top + height, left : left + width])
    return crop if (height, width) == (size, size) else _resize(crop, size, size, interpolation)


def _resize(image: Tensor, height: int, width: int, interpolation: str = "bicubic") -> Tensor:
    # Of a single image torch can't tell its layout; said explicitly, it takes the fast path and keeps it: 0.15 for 0.24 ms.
    planes = image.permute(2, 0, 1)[None].contiguous(memory_format=torch.channels_last)
    return F.interpolate(planes, (height, width), mode=interpolation, antialias=True)[0].permute(1, 2, 0)


def resize_and_centre(pixels: Pixels, size: int, crop_fraction: float) -> Tensor:
    """The evaluation view, uint8 (size, size, C): the shorter side becomes floor(size / crop_fraction), the longer one keeps
    the ratio, rounded down, and the centre is cut out: what timm and torchvision do."""
    height, width = pixels.shape[:2]
    short = int(size / crop_fraction)
    rows, columns = (short, short * width // height) if height <= width else (short * height // width, short)
    image = torch.from_numpy(pixels)
    if (rows, columns) != (height, width):
        image = _resize(image, rows, columns)
    top, left = round((rows - size) / 2), round((columns - size) / 2)
    return image[top : top + size, left : left + size]
