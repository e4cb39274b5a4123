"""Augmentation of training images: pure functions of (seed, epoch, key, repeat), the same wherever an image is processed."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitlight.data.hashing import hash_words, uniforms
from vitlight.data.policies import (
    BigVisionRandAugment,
    ColorJitter,
    Policy,
    ThreeAugment,
    TimmRandAugment,
    TrivialAugment,
)
from vitlight.errors import InputError, did_you_mean

__all__ = ["Augmentation", "centre_box", "erase", "random_box", "random_resized_box", "repeated_keys"]

Box = tuple[int, int, int, int]
Pixels = NDArray[np.uint8]
Draws = NDArray[np.float64]
Row = Draws | list[float]
EraseMode = Literal["pixel", "rand", "const"]

_ATTEMPTS = 10
_LOG_RATIO = math.log(4.0 / 3.0)
# Salts of the hash.
_CROP_AND_FLIP, _REPEAT, _ERASED = 11, 12, 13

# Which of an image's uniform numbers decide what. Each part has its place, so no setting changes another's draws.
_TOP, _LEFT, _FLIP = 2 * _ATTEMPTS, 2 * _ATTEMPTS + 1, 2 * _ATTEMPTS + 2
_JITTER = _FLIP + 1
_ERASE = _JITTER + 8
_POLICY = _ERASE + 2 * _ATTEMPTS + 4

# The settings that a policy reads, beside those that apply whatever the policy.
_READS: dict[str, tuple[str, ...]] = {
    "none": (),
    "randaugment_big_vision": ("num_ops", "magnitude"),
    "randaugment_timm": ("num_ops", "magnitude", "magnitude_std", "increasing"),
    "trivialaugment": (),
    "three_augment": (),
}
# Beyond 30 the paper of RandAugment tried nothing; timm clips at 10.
_MAX_MAGNITUDE = {"randaugment_big_vision": 30.0, "randaugment_timm": 10.0}


@dataclass(frozen=True)
class Augmentation:
    """Crop and resize, flip, policy, colour jitter, erasing, in this order.

    The crop is the random-resized one (Szegedy et al. 2014, arXiv 1409.4842), or with crop_side that of an image squeezed
    into a square. null takes what the policy's source has. A setting that is not read is an error. What each policy does:
    policies.py.

    Args:
        min_area: Smallest part of the image's area that a crop covers, in (0, 1]; 1 without jitter_ratio keeps it whole.
        jitter_ratio: Draw the aspect ratio log-uniformly from 3/4 to 4/3.
        crop_side: Instead, cut a box of this part of height and of width, in (0, 1], anywhere: 384/448 is BiT's resize to
            448 x 448 and random crop of 384. Needs min_area 1 and no jitter_ratio.
        flip: Mirror half of the images.
        interpolation: Of the crop's resize, antialiased: `bilinear` as torchvision's default, or `bicubic` as in DeiT.
        policy: Pixel operations on the resized crop.
        num_ops: Operations of one image, for both RandAugments; null: 2.
        magnitude: Strength of the RandAugments; null: 10 (big_vision, at most 30) or 9 (timm, at most 10).
        magnitude_std: Standard deviation of timm's magnitude; null: 0.5.
        increasing: timm's operations that are stronger at larger magnitudes (its `inc1`); null: true.
        color_jitter: Strength of brightness, contrast and saturation jitter; null: 0.3 after three_augment, else 0.
        hue_jitter: Largest turn of the hue, as a part of the colour circle, in [0, 0.5].
        erase_probability: Random erasing (Zhong et al. 2017, arXiv 1708.04896) of a box of 2 % to 1/3 of the image.
        erase_mode: What fills the box: `pixel` noise, uniform in 0..255, the paper's best; one `rand` colour; `const` grey
            128. null: pixel. timm's noise is normal, with the data's mean and standard deviation.
    """

    min_area: float = 0.08
    jitter_ratio: bool = True
    crop_side: float | None = None
    flip: bool = True
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    policy: Literal["none", "randaugment_big_vision", "randaugment_timm", "trivialaugment", "three_augment"] = "none"
    num_ops: int | None = None
    magnitude: float | None = None
    magnitude_std: float | None = None
    increasing: bool | None = None
    color_jitter: float | None = None
    hue_jitter: float = 0.0
    erase_probability: float = 0.0
    erase_mode: EraseMode | None = None

    def __post_init__(self) -> None:
        if self.policy not in _READS:
            raise InputError(
                f"data.augmentation.policy={self.policy} is not one of {', '.join(_READS)}"
                f"{did_you_mean(self.policy, _READS)}"
            )
        if self.interpolation not in ("bilinear", "bicubic"):
            raise InputError(f"data.augmentation.interpolation={self.interpolation} is not bilinear or bicubic")
        if not 0.0 < self.min_area <= 1.0:
            raise InputError(f"data.augmentation.min_area={self.min_area} is not in (0, 1]")
        if self.crop_side is not None:
            if not 0.0 < self.crop_side <= 1.0:
                raise InputError(f"data.augmentation.crop_side={self.crop_side} is not in (0, 1]")
            if self.min_area != 1.0 or self.jitter_ratio:
                raise InputError(
                    f"data.augmentation.crop_side={self.crop_side} takes the place of the random-resized crop; set min_area "
                    f"to 1.0 and jitter_ratio to false, not {self.min_area} and {str(self.jitter_ratio).lower()}"
                )
        for name in ("num_ops", "magnitude", "magnitude_std", "increasing"):
            value = getattr(self, name)
            if value is not None and name not in _READS[self.policy]:
                readers = " or ".join(policy for policy, names in _READS.items() if name in names)
                raise InputError(
                    f"data.augmentation.{name}={value} is not read by data.augmentation.policy={self.policy}; "
                    f"set it to null, or the policy to {readers}"
                )
        if self.num_ops is not None and self.num_ops < 1:
            raise InputError(f"data.augmentation.num_ops={self.num_ops} is not at least 1; for none set policy to none")
        if self.magnitude is not None and not 0.0 <= self.magnitude <= _MAX_MAGNITUDE[self.policy]:
            raise InputError(
                f"data.augmentation.magnitude={self.magnitude} is not in [0, {_MAX_MAGNITUDE[self.policy]:g}], "
                f"the range of data.augmentation.policy={self.policy}"
            )
        if self.magnitude_std is not None and not 0.0 <= self.magnitude_std < math.inf:
            raise InputError(f"data.augmentation.magnitude_std={self.magnitude_std} is not a number from 0 on")
        if self.color_jitter is not None and not 0.0 <= self.color_jitter < math.inf:
            raise InputError(f"data.augmentation.color_jitter={self.color_jitter} is not a number from 0 on")
        if not 0.0 <= self.hue_jitter <= 0.5:
            raise InputError(f"data.augmentation.hue_jitter={self.hue_jitter} is not in [0, 0.5]")
        if not 0.0 <= self.erase_probability <= 1.0:
            raise InputError(f"data.augmentation.erase_probability={self.erase_probability} is not in [0, 1]")
        if self.erase_mode not in (None, "pixel", "rand", "const"):
            raise InputError(f"data.augmentation.erase_mode={self.erase_mode} is not one of pixel, rand, const")
        if self.erase_mode is not None and self.erase_probability == 0.0:
            warnings.warn(
                f"data.augmentation.erase_mode={self.erase_mode} is not read: erase_probability is 0", stacklevel=3
            )

    @property
    def _policy(self) -> Policy | None:
        given = {name: value for name in _READS[self.policy] if (value := getattr(self, name)) is not None}
        match self.policy:
            case "randaugment_big_vision":
                return BigVisionRandAugment(**given)
            case "randaugment_timm":
                return TimmRandAugment(**given)
            case "trivialaugment":
                return TrivialAugment()
            case "three_augment":
                return ThreeAugment()
        return None

    @property
    def _jitter(self) -> ColorJitter | None:
        strength = self.color_jitter
        if strength is None:
            strength = 0.3 if self.policy == "three_augment" else 0.0
        return ColorJitter(strength, self.hue_jitter) if strength or self.hue_jitter else None

    @property
    def changes_pixels(self) -> bool:
        """Whether `distort` ever does anything."""
        return self._policy is not None or self._jitter is not None or self.erase_probability > 0.0

    def draws(
        self,
        seed: int,
        epochs: NDArray[np.int64],
        key_hash: NDArray[np.uint64],
        repeats: NDArray[np.int64] | None = None,
    ) -> Draws:
        """Uniform numbers (B, D) that decide all that happens to a batch's images; row i depends on the seed, epochs[i],
        key_hash[i] and repeats[i] alone. repeats (B,) counts the copies of an image in one epoch from 0; None: all 0."""
        count = _JITTER
        if self.changes_pixels:
            count = _POLICY + (self._policy.num_draws if self._policy else 0)
        return uniforms(count, _CROP_AND_FLIP, seed, epochs.astype(np.uint64), repeated_keys(key_hash, repeats))

    def box(self, height: int, width: int, draws: Row) -> Box:
        """The crop (top, left, height, width) of an image, from its row of draws; a list of them is the fastest."""
        if self.crop_side is not None:
            return random_box(height, width, draws, self.crop_side)
        return random_resized_box(height, width, draws, self.min_area, self.jitter_ratio)

    def is_flipped(self, draws: Row) -> bool:
        return self.flip and bool(draws[_FLIP] < 0.5)

    def distort(self, pixels: Pixels, draws: Row) -> Pixels:
        """Pixels (S, S, C) after policy, jitter and erasing, from the image's row of draws: a new array. C is 3 or 1;
        what grey images get is said in ops.py."""
        numbers = _as_floats(draws)
        policy, jitter = self._policy, self._jitter
        if policy is None and jitter is None:
            changed = pixels.copy()
        else:
            image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            if policy is not None:
                image = policy(image, numbers[_POLICY:])
            if jitter is not None:
                image = jitter(image, numbers[_JITTER:_ERASE])
            changed = np.array(image).reshape(pixels.shape)
        if self.erase_probability:
            erase(changed, numbers[_ERASE:_POLICY], self.erase_probability, self.erase_mode or "pixel")
        return changed


def repeated_keys(key_hash: NDArray[np.uint64], repeats: NDArray[np.int64] | None) -> NDArray[np.uint64]:
    """The key hashes (B,), made different for each repeat from 1 on and left as they are for repeat 0."""
    if repeats is None or not repeats.any():
        return key_hash
    return np.where(repeats == 0, key_hash, hash_words(_REPEAT, key_hash, repeats.astype(np.uint64)))


def _as_floats(draws: Row) -> list[float]:
    """Python's floats, which are several times faster to count with than NumPy's scalars."""
    return draws if isinstance(draws, list) else draws.tolist()


def random_resized_box(height: int, width: int, draws: Row, min_area: float, jitter_ratio: bool = True) -> Box:
    """Box (top, left, height, width): area uniform in [min_area, 1] of the image's, log aspect ratio uniform in
    +-log(4/3); the first of 10 attempts that fits, else the largest centred crop whose ratio is allowed."""
    numbers = _as_floats(draws[:_FLIP])
    for attempt in range(_ATTEMPTS):
        area = height * width * (min_area + (1.0 - min_area) * numbers[2 * attempt])
        ratio = math.exp(_LOG_RATIO * (2.0 * numbers[2 * attempt + 1] - 1.0)) if jitter_ratio else 1.0
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(numbers[_TOP] * (height - crop_height + 1))
            left = int(numbers[_LEFT] * (width - crop_width + 1))
            return top, left, crop_height, crop_width
    largest = math.exp(_LOG_RATIO) if jitter_ratio else 1.0
    crop_width, crop_height = min(width, round(height * largest)), min(height, round(width * largest))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def random_box(height: int, width: int, draws: Row, side: float) -> Box:
    """Box (top, left, height, width) of the part `side` of height and of width, its place uniform."""
    box_height, box_width = max(1, round(side * height)), max(1, round(side * width))
    top, left = int(draws[_TOP] * (height - box_height + 1)), int(draws[_LEFT] * (width - box_width + 1))
    return top, left, box_height, box_width


def centre_box(height: int, width: int, crop_fraction: float) -> Box:
    """The centred square box whose side is `crop_fraction` of the shorter side: what a resize and a central crop keep."""
    side = max(1, round(min(height, width) * crop_fraction))
    return (height - side) // 2, (width - side) // 2, side, side


def erase(pixels: Pixels, numbers: Sequence[float], probability: float, mode: EraseMode) -> None:
    """Random erasing, in place, from 24 uniform numbers: area uniform in [0.02, 1/3] of the image's, log ratio of height to
    width uniform in +-log(1/0.3), the first of 10 attempts that is smaller than the image; these are timm's parameters.

    The image is left as it is if none fits, which happens to narrow images alone.
    """
    if numbers[0] >= probability:
        return
    height, width, channels = pixels.shape
    for attempt in range(_ATTEMPTS):
        area = height * width * (0.02 + (1.0 / 3.0 - 0.02) * numbers[1 + 2 * attempt])
        ratio = math.exp(math.log(0.3) * (1.0 - 2.0 * numbers[2 + 2 * attempt]))
        box_height, box_width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if box_height < height and box_width < width:
            break
    else:
        return
    top = int(numbers[-3] * (height - box_height + 1))
    left = int(numbers[-2] * (width - box_width + 1))
    box = pixels[top : top + box_height, left : left + box_width]
    if mode == "const":
        box[:] = 128
        return
    shape = box.shape if mode == "pixel" else (1, 1, channels)
    num_words = -(-math.prod(shape) // 8)
    words = hash_words(_ERASED, int(numbers[-1] * 2**53), np.arange(num_words, dtype=np.uint64))
    box[:] = words.astype("<u8").view(np.uint8)[: math.prod(shape)].reshape(shape)
