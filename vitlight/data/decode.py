"""Bytes -> uint8 image, cropped and resized. JPEG goes through simplejpeg, everything else through Pillow."""

import io

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

__all__ = ["DecodeError", "crop_and_resize", "decode_image"]

Pixels = NDArray[np.uint8]
_JPEG_MAGIC = b"\xff\xd8\xff"
_MODES = {1: ("GRAY", "L"), 3: ("RGB", "RGB")}


class DecodeError(ValueError):
    """The bytes are not an image that can be decoded. The message says why; the caller adds shard and key."""


def decode_image(encoded: bytes, channels: int = 3) -> Pixels:
    """Pixels (H, W, C) in 0..255, converted to `channels` = 3 (RGB) or 1 (luma)."""
    jpeg_mode, pillow_mode = _MODES[channels]
    if encoded.startswith(_JPEG_MAGIC):
        try:
            return simplejpeg.decode_jpeg(encoded, colorspace=jpeg_mode, fastdct=False, fastupsample=False)
        except ValueError:
            pass  # CMYK and other rare JPEGs: Pillow decodes them, or says what is wrong
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            pixels = np.array(image if image.mode == pillow_mode else image.convert(pillow_mode))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DecodeError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def crop_and_resize(pixels: Pixels, box: tuple[int, int, int, int], size: int) -> Tensor:
    """The box (top, left, height, width) of pixels (H, W, C), resized to uint8 (size, size, C): bicubic, antialiased."""
    top, left, height, width = box
    crop = torch.from_numpy(pixels[top : top + height, left : left + width])
    if (height, width) == (size, size):
        return crop
    resized = F.interpolate(crop.permute(2, 0, 1)[None], (size, size), mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0)
