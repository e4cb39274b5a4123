"""From pixels to what networks take."""

from torch import Tensor

__all__ = ["normalized"]


def normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(images / 255 - mean) / std in float32, on the device and in the layout of `images`.

    images: uint8 (B, C, H, W). mean, std: float32 (1, C, 1, 1), of pixels in [0, 1].
    """
    scale = (1.0 / (255.0 * std)).to(images.device, non_blocking=True)
    shift = (-mean / std).to(images.device, non_blocking=True)
    return images.float().mul_(scale).add_(shift)
