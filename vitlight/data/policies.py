"""Augmentation policies: which pixel operations an image gets, as pure functions of uniform numbers in [0, 1).

The two RandAugments (Cubuk et al. 2019, arXiv 1909.13719) share a name and little else:

========================  ======================================  ===================================================
                          randaugment_big_vision                  randaugment_timm
========================  ======================================  ===================================================
source                    big_vision/pp/archive/autoaugment.py,   timm 1.0 data/auto_augment.py, as configured by
                          `randaug(num_ops, magnitude)`           `rand-m{magnitude}-n{num_ops}-mstd{std}-inc{0,1}`
operations                16, cutout among them                   15, no cutout
an operation is applied   always                                  with probability 1/2
magnitude                 the same for every image, may pass 10   normal around it, clipped to [0, 10]
solarize, posterize       milder at larger magnitudes             stronger, with `increasing`
colour factors            0.1 + 0.18 x magnitude                  1 +- 0.09 x magnitude, at least 0.1 (`increasing`)
translation               10 pixels x magnitude                   0.045 of the side x magnitude
reads pixels              nearest                                 bilinear or bicubic, at random
========================  ======================================  ===================================================

Both draw operations with replacement, turn, shear and move either way with probability 1/2, and fill with grey 128
(timm's training script fills with the data set's mean colour instead).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

from PIL import Image

from vitlight.data.ops import GEOMETRIC_OPS, Resampling, Step, apply_step, cutout

__all__ = ["BigVisionRandAugment", "ColorJitter", "Policy", "ThreeAugment", "TimmRandAugment", "TrivialAugment"]

_HIGHEST_LEVEL = 10.0
_STANDARD_NORMAL = NormalDist()


class Policy(Protocol):
    """`num_draws` uniform numbers decide what happens to an image; the order of their uses never changes."""

    @property
    def num_draws(self) -> int: ...

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image: ...


def _choose(draw: float, count: int) -> int:
    return int(draw * count)


def _signed(value: float, draw: float) -> float:
    return value if draw < 0.5 else -value


def _normal(draw: float) -> float:
    """The standard normal's quantile. A draw is a multiple of 2**-53, so half of that keeps off the infinite end."""
    return _STANDARD_NORMAL.inv_cdf(draw + 2.0**-54)


# From a level on the scale of 10 to an operation's argument, before a sign is drawn for the SIGNED ones.
LevelMap = Callable[[float], float]


def _factor(level: float) -> float:
    return level / _HIGHEST_LEVEL * 1.8 + 0.1


BIG_VISION: dict[str, LevelMap] = {
    "autocontrast": lambda _: 0.0,
    "equalize": lambda _: 0.0,
    "invert": lambda _: 0.0,
    "rotate": lambda level: level / _HIGHEST_LEVEL * 30.0,
    # TensorFlow clamps shifts of uint8 to 0..7, so at least one bit is kept and more than eight are eight.
    "posterize": lambda level: min(8, max(1, int(level / _HIGHEST_LEVEL * 4))),
    # The threshold is cast to uint8 and wraps: level 10 inverts everything (google-research/big_vision issue 110).
    "solarize": lambda level: int(level / _HIGHEST_LEVEL * 256) % 256,
    "color": _factor,
    "contrast": _factor,
    "brightness": _factor,
    "sharpness": _factor,
    "shear_x": lambda level: level / _HIGHEST_LEVEL * 0.3,
    "shear_y": lambda level: level / _HIGHEST_LEVEL * 0.3,
    "translate_x": lambda level: level / _HIGHEST_LEVEL * 100.0,
    "translate_y": lambda level: level / _HIGHEST_LEVEL * 100.0,
    "cutout": lambda level: int(level / _HIGHEST_LEVEL * 40),
    "solarize_add": lambda level: int(level / _HIGHEST_LEVEL * 110),
}


@dataclass(frozen=True)
class BigVisionRandAugment:
    """RandAugment as big_vision and the TensorFlow lineage before it have it. The magnitude is one for all operations.

    Differs: shears turn about the corner of the first pixel, not its centre (at most 0.15 pixels at magnitude 10), and
    luma is Pillow's, within one grey level of TensorFlow's.
    """

    num_ops: int = 2
    magnitude: float = 10.0

    @property
    def num_draws(self) -> int:
        return 4 * self.num_ops

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        for first in range(0, self.num_draws, 4):
            choice, sign, row, column = draws[first : first + 4]
            op = list(BIG_VISION)[_choose(choice, len(BIG_VISION))]
            argument = BIG_VISION[op](self.magnitude)
            if op == "cutout":
                # A box of 2 x argument around a pixel drawn from the whole image; what lies outside is cut off.
                pad, (width, height) = int(argument), image.size
                top, left = _choose(row, height) - pad, _choose(column, width) - pad
                image = cutout(image, top, left, 2 * pad, 2 * pad)
            else:
                image = apply_step(image, Step(op, _signed(argument, sign) if op in GEOMETRIC_OPS else argument))
        return image


TIMM: dict[str, LevelMap] = {
    "autocontrast": lambda _: 0.0,
    "equalize": lambda _: 0.0,
    "invert": lambda _: 0.0,
    "rotate": lambda level: level / _HIGHEST_LEVEL * 30.0,
    "posterize": lambda level: int(level / _HIGHEST_LEVEL * 4),
    "solarize": lambda level: min(256, int(level / _HIGHEST_LEVEL * 256)),
    "solarize_add": lambda level: min(128, int(level / _HIGHEST_LEVEL * 110)),
    "color": _factor,
    "contrast": _factor,
    "brightness": _factor,
    "sharpness": _factor,
    "shear_x": lambda level: level / _HIGHEST_LEVEL * 0.3,
    "shear_y": lambda level: level / _HIGHEST_LEVEL * 0.3,
    "translate_x_part": lambda level: level / _HIGHEST_LEVEL * 0.45,
    "translate_y_part": lambda level: level / _HIGHEST_LEVEL * 0.45,
}
# The `inc1` variants: a larger level is always the stronger change. Factors are given as the distance from 1.
TIMM_INCREASING: dict[str, LevelMap] = {
    **TIMM,
    "posterize": lambda level: 4 - int(level / _HIGHEST_LEVEL * 4),
    "solarize": lambda level: 256 - min(256, int(level / _HIGHEST_LEVEL * 256)),
    **dict.fromkeys(("color", "contrast", "brightness", "sharpness"), lambda level: level / _HIGHEST_LEVEL * 0.9),
}
_FACTOR_OPS = ("color", "contrast", "brightness", "sharpness")


@dataclass(frozen=True)
class TimmRandAugment:
    """RandAugment as timm has it; the defaults are `rand-m9-mstd0.5-inc1`, the recipe of DeiT and its successors."""

    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    increasing: bool = True

    @property
    def num_draws(self) -> int:
        return 5 * self.num_ops

    def step(self, op: str, level: float, sign: float, resample: Resampling) -> Step:
        """The operation at a level in [0, 10]; `sign` < 0.5 keeps an argument's sign, else turns it around."""
        argument = (TIMM_INCREASING if self.increasing else TIMM)[op](level)
        if op in GEOMETRIC_OPS:
            argument = _signed(argument, sign)
        elif op in _FACTOR_OPS and self.increasing:
            argument = max(0.1, 1.0 + _signed(argument, sign))
        return Step(op, argument, resample)

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        for first in range(0, self.num_draws, 5):
            choice, is_applied, deviation, sign, filter_choice = draws[first : first + 5]
            if is_applied < 0.5:
                level = self.magnitude + self.magnitude_std * _normal(deviation)
                level = max(0.0, min(_HIGHEST_LEVEL, level))
                resample = Resampling.BILINEAR if filter_choice < 0.5 else Resampling.BICUBIC
                image = apply_step(image, self.step(list(TIMM)[_choose(choice, len(TIMM))], level, sign, resample))
        return image


_NUM_BINS = 31
# The largest argument of the operations that grow evenly with the bin and get a sign; factors as distances from 1.
TRIVIAL_RANGES: dict[str, float] = {
    "shear_x": 0.99,
    "shear_y": 0.99,
    "translate_x": 32.0,
    "translate_y": 32.0,
    "rotate": 135.0,
    "brightness": 0.99,
    "color": 0.99,
    "contrast": 0.99,
    "sharpness": 0.99,
}
TRIVIAL_OPS = ("identity", *TRIVIAL_RANGES, "posterize", "solarize", "autocontrast", "equalize")


@dataclass(frozen=True)
class TrivialAugment:
    """TrivialAugment Wide (Müller & Hutter 2021, arXiv 2103.10158) as torchvision has it: one operation out of 14, at one
    of 31 strengths, nothing to tune. Pixels are read nearest, the outside is black; translations are in whole pixels,
    at most 32 of them at any image size. Differs: strength 15 translates by 16 pixels, of which float32 makes 15 there."""

    @property
    def num_draws(self) -> int:
        return 3

    @staticmethod
    def step(op: str, strength: int, sign: float) -> Step:
        """The operation at strength 0 to 30; `sign` < 0.5 keeps an argument's sign, else turns it around."""
        part = strength / (_NUM_BINS - 1)
        argument = 0.0
        if op in TRIVIAL_RANGES:
            argument = _signed(part * TRIVIAL_RANGES[op], sign)
            if op in _FACTOR_OPS:
                argument += 1.0
            elif op.startswith("translate"):
                argument = int(argument)
        elif op == "posterize":
            argument = 8 - round(part * 6)
        elif op == "solarize":
            argument = 255.0 * (_NUM_BINS - 1 - strength) / (_NUM_BINS - 1)
        return Step(op, argument, fill=0)

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        choice, strength, sign = draws[:3]
        op = TRIVIAL_OPS[_choose(choice, len(TRIVIAL_OPS))]
        return apply_step(image, self.step(op, _choose(strength, _NUM_BINS), sign))


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation (factors uniform in 1 +- strength, at least 0) and hue (a turn uniform in +- hue) in
    random order, with torchvision's ranges. Those of strength 0 are left out."""

    strength: float
    hue: float = 0.0

    @property
    def num_draws(self) -> int:
        return 8

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        for op in sorted(range(4), key=draws[4:8].__getitem__):
            if op == 3 and self.hue:
                image = apply_step(image, Step("hue", (2.0 * draws[3] - 1.0) * self.hue))
            elif op < 3 and self.strength:
                lowest = max(0.0, 1.0 - self.strength)
                factor = lowest + (1.0 + self.strength - lowest) * draws[op]
                image = apply_step(image, Step(("brightness", "contrast", "color")[op], factor))
        return image


@dataclass(frozen=True)
class ThreeAugment:
    """3-Augment (Touvron et al. 2022, arXiv 2204.07118): grey, solarized from 128 on, or blurred with a standard
    deviation of 0.1 to 2 pixels, one of the three for every image, as augment.py of the DeiT repository has it. Colour
    jitter of 0.3 follows there; it is a setting of its own."""

    @property
    def num_draws(self) -> int:
        return 2

    def __call__(self, image: Image.Image, draws: Sequence[float]) -> Image.Image:
        choice, deviation = draws[:2]
        steps = (Step("grayscale"), Step("solarize", 128), Step("blur", 0.1 + 1.9 * deviation))
        return apply_step(image, steps[_choose(choice, 3)])
