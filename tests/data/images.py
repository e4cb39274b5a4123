"""A small image with all that the operations look at: smooth parts, edges, noise, colour, both ends of the range."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["colourful", "grey_image", "rgb_image"]


def colourful(height: int = 40, width: int = 56, seed: int = 0) -> NDArray[np.uint8]:
    """Pixels (height, width, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    waves = [np.sin(7 * rows + 3 * columns), np.cos(5 * columns * rows + 1), np.sin(9 * columns - 4 * rows)]
    pixels = 130 + 90 * np.stack(waves, axis=2) + rng.normal(0, 6, (height, width, 3))
    pixels[height // 4 : height // 2, width // 4 : width // 3] = (250, 20, 140)
    return np.clip(pixels, 12, 240 + 15 * (rows > 0.3)[:, :, None]).astype(np.uint8)


def rgb_image() -> Image.Image:
    return Image.fromarray(colourful())


def grey_image() -> Image.Image:
    return Image.fromarray(colourful()[:, :, 0])
