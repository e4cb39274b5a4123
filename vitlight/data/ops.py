"""Pixel operations of the augmentation policies, on Pillow images of mode RGB or L. No randomness: see policies.py.

Every operation maps (image, argument) to an image of the same size and mode. Arguments:

=====================  ============================================================================================
rotate                 degrees, counter-clockwise about the image's centre
shear_x, shear_y       tangent: the output at (x, y) is read at (x + tangent * y, y), or (x, y + tangent * x)
translate_x, _y        pixels: the output at x is read at x + pixels
translate_x_part, _y   the same as a part of the width or height
color, contrast,       factor: 1 keeps the image, 0 gives its luma, its mean luma, black, a smoothed image;
brightness, sharpness  above 1 moves away from that
posterize              number of high bits kept, 0 to 8
solarize               threshold: values from there on are inverted
solarize_add           what is added to values below 128, clipped to 255
hue                    turn, as a part of the colour circle, in [-0.5, 0.5]
blur                   standard deviation of a Gaussian, in pixels
autocontrast,          unused
equalize, invert,
grayscale, identity
=====================  ============================================================================================

On grey images (mode L) `color`, `hue` and `grayscale` change nothing; the others act on luma.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageFilter, ImageOps

__all__ = ["COLOR_OPS", "GEOMETRIC_OPS", "Resampling", "Step", "apply_step", "cutout"]

Image_ = Image.Image
Affine = tuple[float, float, float, float, float, float]
Resampling = Image.Resampling


class Step(NamedTuple):
    """One operation with all that decides it. Geometric ones read with `resample` and fill what lies outside with `fill`,
    the grey value of every channel."""

    op: str
    argument: float = 0.0
    resample: Resampling = Resampling.NEAREST
    fill: int = 128


@lru_cache(maxsize=1024)
def _posterize_table(bits: int) -> list[int]:
    mask = 256 - (1 << (8 - bits))
    return [value & mask for value in range(256)]


@lru_cache(maxsize=1024)
def _solarize_table(threshold: float) -> list[int]:
    return [value if value < threshold else 255 - value for value in range(256)]


@lru_cache(maxsize=1024)
def _solarize_add_table(addition: int) -> list[int]:
    return [min(255, value + addition) if value < 128 else value for value in range(256)]


def _look_up(image: Image_, table: list[int]) -> Image_:
    return image.point(table * len(image.getbands()))


def _color(image: Image_, factor: float) -> Image_:
    return image if image.mode == "L" else ImageEnhance.Color(image).enhance(factor)


def _grayscale(image: Image_, _: float) -> Image_:
    return image.convert("L").convert(image.mode)


def _hue(image: Image_, turn: float) -> Image_:
    if image.mode == "L":
        return image
    # Pillow's hue has 256 steps; torchvision turns it by int(255 * turn) of them, and so do we.
    shift = int(turn * 255)
    hue, saturation, value = image.convert("HSV").split()
    turned = hue.point([(step + shift) % 256 for step in range(256)])
    return Image.merge("HSV", (turned, saturation, value)).convert("RGB")


COLOR_OPS: dict[str, Callable[[Image_, float], Image_]] = {
    "identity": lambda image, _: image,
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "equalize": lambda image, _: ImageOps.equalize(image),
    "invert": lambda image, _: ImageOps.invert(image),
    "grayscale": _grayscale,
    "color": _color,
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "hue": _hue,
    "blur": lambda image, deviation: image.filter(ImageFilter.GaussianBlur(deviation)),
    "posterize": lambda image, bits: _look_up(image, _posterize_table(int(bits))),
    "solarize": lambda image, threshold: _look_up(image, _solarize_table(threshold)),
    "solarize_add": lambda image, addition: _look_up(image, _solarize_add_table(int(addition))),
}

# The map from output to input coordinates, given the argument, width and height.
_MATRICES: dict[str, Callable[[float, int, int], Affine]] = {
    "shear_x": lambda tangent, _w, _h: (1, tangent, 0, 0, 1, 0),
    "shear_y": lambda tangent, _w, _h: (1, 0, 0, tangent, 1, 0),
    "translate_x": lambda pixels, _w, _h: (1, 0, pixels, 0, 1, 0),
    "translate_y": lambda pixels, _w, _h: (1, 0, 0, 0, 1, pixels),
    "translate_x_part": lambda part, width, _h: (1, 0, part * width, 0, 1, 0),
    "translate_y_part": lambda part, _w, height: (1, 0, 0, 0, 1, part * height),
}
GEOMETRIC_OPS = frozenset({"rotate", *_MATRICES})


def apply_step(image: Image_, step: Step) -> Image_:
    """The image after one operation. Raises KeyError for an operation that the two tables don't have."""
    if step.op in COLOR_OPS:
        return COLOR_OPS[step.op](image, step.argument)
    fill = (step.fill,) * len(image.getbands())
    if step.op == "rotate":
        return image.rotate(step.argument, step.resample, fillcolor=fill)
    matrix = _MATRICES[step.op](step.argument, *image.size)
    return image.transform(image.size, Image.Transform.AFFINE, matrix, step.resample, fillcolor=fill)


def cutout(image: Image_, top: int, left: int, height: int, width: int, fill: int = 128) -> Image_:
    """The image with a box painted grey; parts of the box may lie outside (DeVries & Taylor 2017, arXiv 1708.04552)."""
    painted = image.copy()
    painted.paste((fill,) * len(image.getbands()), (left, top, left + width, top + height))
    return painted
