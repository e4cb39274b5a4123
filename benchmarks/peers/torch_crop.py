"""Decode with simplejpeg, crop, resize with torch, flip: the fastest plain Python transform known here. It is given to every
peer that leaves the transform to the user, instead of the slower Pillow or torchvision ones of their examples."""

import io

import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image

from peers.case import Case, random_box, read_range, seconds_each


def decode(encoded: bytes, fast: bool = False) -> np.ndarray:
    """Pixels (H, W, 3). fast: chroma is repeated, not interpolated; else simplejpeg's default flags."""
    if encoded[:2] == b"\xff\xd8":
        return simplejpeg.decode_jpeg(encoded, fastupsample=fast)
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(image.convert("RGB"))


class CropResizeFlip:
    """Pixels (H, W, 3) -> uint8 tensor (3, S, S): random-resized crop, antialiased bicubic, mirrored half of the time."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.rng: np.random.Generator | None = None  # made in the worker, so that workers draw differently

    def __call__(self, pixels: np.ndarray) -> torch.Tensor:
        if self.rng is None:
            info = torch.utils.data.get_worker_info()
            self.rng = np.random.default_rng(info.seed if info else 0)
        height, width = pixels.shape[:2]
        left, top, w, h = random_box(width, height, self.rng)
        crop = torch.from_numpy(pixels[top : top + h, left : left + w]).permute(2, 0, 1)[None]
        image = F.interpolate(crop, (self.size, self.size), mode="bicubic", antialias=True)[0]
        return image.flip(2) if self.rng.random() < 0.5 else image


def stage_seconds(case: Case, fast: bool = False) -> dict[str, float]:
    """Of the parts that the peers with this transform have in common."""
    torch.set_num_threads(1)
    members = case.members()[:64]
    encoded = [read_range(member) for member in members]
    pixels = [decode(item) for item in encoded]
    transform = CropResizeFlip(case.output_size)
    images = [transform(item) for item in pixels]
    return {
        "decode": seconds_each(lambda item: decode(item, fast), encoded),
        "resize": seconds_each(transform, pixels),
        "collate": seconds_each(torch.stack, [images]) / len(images),
    }
