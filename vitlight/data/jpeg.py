"""JPEG -> pixels through simplejpeg: damage told from what it merely can't decode, and no rows decoded in vain.

simplejpeg decodes whole images only, but an image's height stands in its header. Told a smaller height, the decoder stops
there: the rows before are the same to the last bit, and the compressed data of those below are passed over. Much damage
shows only in that data, so this is for images that were decoded whole before.
"""

import re

import numpy as np
import simplejpeg
from numpy.typing import NDArray

__all__ = ["DamagedJpegError", "decode_rows", "decode_whole"]

Pixels = NDArray[np.uint8]

_COLOURSPACES = {1: "GRAY", 3: "RGB"}
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_SEQUENTIAL_FRAMES = (0xC0, 0xC1)  # Huffman-coded and of one pass; of progressive images each pass goes over all rows
_OTHER_FRAMES = frozenset(range(0xC2, 0xD0)) - {0xC4, 0xC8, 0xCC}
# The decoder reports what it notices first. Bytes left over behind the last row are what it notices where it was stopped
# early; and some cameras and editors leave them, so an image with nothing else amiss is taken as sound, as everywhere else.
_LEFT_OVER = re.compile(r"[0-9]+ extraneous bytes before marker 0xd[0-9a-f]$")
_DAMAGED = re.compile(r"^Corrupt JPEG data|^Premature end of JPEG")


class DamagedJpegError(ValueError):
    """The image breaks off, or its data are no valid codes: other decoders would make up the missing pixels."""


def decode_whole(encoded: bytes, channels: int) -> Pixels:
    """Pixels (H, W, channels), as accurately as the decoder can. Raises as decode_rows does."""
    height, width, _, _ = simplejpeg.decode_jpeg_header(encoded)
    return _decode(encoded, np.empty((height, width, channels), np.uint8))


def decode_rows(encoded: bytes, channels: int, height: int, width: int, last_row: int, factor: int = 1) -> Pixels:
    """Pixels (at least ceil(last_row / factor), ceil(width / factor), channels) of a JPEG of `height` x `width`: rows from
    the top, at 1/factor of the size, a power of two up to 8, with replicated chroma.

    Raises DamagedJpegError, and another ValueError for what isn't understood: no JPEG, or one of a rare kind.
    """
    where = _frame_header(encoded) if last_row < height else None
    num_rows = height
    if where is not None:
        at, unit = where
        num_rows = min(height, -(-last_row // unit) * unit)
        if num_rows < height:
            encoded = b"".join((encoded[: at + 5], num_rows.to_bytes(2, "big"), encoded[at + 7 :]))
    pixels = np.empty((-(-num_rows // factor), -(-width // factor), channels), np.uint8)
    return _decode(encoded, pixels, factor, fastupsample=True)


def _decode(encoded: bytes, pixels: Pixels, factor: int = 1, fastupsample: bool = False) -> Pixels:
    """Fills `pixels`, which have the size that 1/factor gives."""
    try:
        return simplejpeg.decode_jpeg(
            encoded,
            colorspace=_COLOURSPACES[pixels.shape[2]],
            fastdct=False,
            fastupsample=fastupsample,
            # Just what 1/factor gives: factors between powers of two exist, but without a fast transform; 3/8 takes longer
            # than 1/2.
            min_height=pixels.shape[0],
            min_width=pixels.shape[1],
            min_factor=factor,
            buffer=pixels,
        )
    except ValueError as error:
        if _LEFT_OVER.search(str(error)):
            return pixels
        if _DAMAGED.search(str(error)):
            raise DamagedJpegError(str(error)) from error
        raise


def _frame_header(encoded: bytes) -> tuple[int, int] | None:
    """Where the frame header begins, and the rows of its coding units; None for what can't be cut by rows."""
    at, found = 2, None
    while at + 4 <= len(encoded) and encoded[at] == 0xFF:
        marker, length = encoded[at + 1], int.from_bytes(encoded[at + 2 : at + 4], "big")
        if len(encoded) < at + 2 + length:
            return None
        if marker in _SEQUENTIAL_FRAMES and length > 8:
            num_components, factors = encoded[at + 9], encoded[at + 11 : at + 2 + length : 3]
            found = at, 8 * max(factor & 15 for factor in factors), num_components
        elif marker in _OTHER_FRAMES or marker == _END_OF_IMAGE:
            return None
        elif marker == _START_OF_SCAN:
            # One scan with all components; with a scan for each, the rows of the second come after all of the first.
            return found[:2] if found is not None and encoded[at + 4] == found[2] else None
        at += 2 + length
    return None
