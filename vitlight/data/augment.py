"""Where to crop and whether to flip: pure functions of (seed, epoch, key), the same wherever an image is processed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitlight.data.plan import uniforms
from vitlight.errors import InputError

__all__ = ["CropAndFlip", "centre_box", "random_resized_box"]

Box = tuple[int, int, int, int]
_ATTEMPTS = 10
_LOG_RATIO = float(np.log(4.0 / 3.0))
_CROP_AND_FLIP = 11


@dataclass(frozen=True)
class CropAndFlip:
    """Random-resized crop (Szegedy et al. 2014, arXiv 1409.4842) and horizontal flip.

    Args:
        min_area: Smallest part of the image's area that a crop covers, in (0, 1]; 1 without jitter_ratio keeps it whole.
        jitter_ratio: Draw the aspect ratio log-uniformly from 3/4 to 4/3.
        flip: Mirror half of the images.
    """

    min_area: float = 0.08
    jitter_ratio: bool = True
    flip: bool = True

    def __post_init__(self) -> None:
        if not 0.0 < self.min_area <= 1.0:
            raise InputError(f"data.augmentation.min_area={self.min_area} is not in (0, 1]")

    def draws(self, seed: int, epochs: NDArray[np.int64], key_hash: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Uniform numbers (B, 2 * attempts + 3) that decide the batch's crops and flips."""
        return uniforms(2 * _ATTEMPTS + 3, _CROP_AND_FLIP, seed, epochs.astype(np.uint64), key_hash)

    def box(self, height: int, width: int, draws: NDArray[np.float64]) -> Box:
        return random_resized_box(height, width, draws, self.min_area, self.jitter_ratio)

    def is_flipped(self, draws: NDArray[np.float64]) -> bool:
        return self.flip and bool(draws[-1] < 0.5)


def random_resized_box(
    height: int, width: int, draws: NDArray[np.float64], min_area: float, jitter_ratio: bool = True
) -> Box:
    """Box (top, left, height, width): area uniform in [min_area, 1] of the image's, log aspect ratio uniform in
    +-log(4/3); the first of 10 attempts that fits, else the largest centred crop whose ratio is allowed."""
    for attempt in range(_ATTEMPTS):
        area = height * width * (min_area + (1.0 - min_area) * draws[2 * attempt])
        ratio = float(np.exp(_LOG_RATIO * (2.0 * draws[2 * attempt + 1] - 1.0))) if jitter_ratio else 1.0
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(draws[-3] * (height - crop_height + 1))
            left = int(draws[-2] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    largest = float(np.exp(_LOG_RATIO)) if jitter_ratio else 1.0
    crop_width, crop_height = min(width, round(height * largest)), min(height, round(width * largest))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def centre_box(height: int, width: int, crop_fraction: float) -> Box:
    """The centred square box whose side is `crop_fraction` of the shorter side: what a resize and a central crop keep."""
    side = max(1, round(min(height, width) * crop_fraction))
    return (height - side) // 2, (width - side) // 2, side, side
