"""From pixels to what networks take."""

import torch
from torch import Tensor

from vitlight.errors import InputError

__all__ = ["Normalization", "normalized", "per_channel"]


class Normalization:
    """(images / 255 - mean) / std in float32. mean, std: float32 (1, C, 1, 1), of pixels in [0, 1].

    What it needs of them is on a device once. Where the channels are innermost in memory, the constants stand there for a
    whole row of pixels: one a channel would be taken in turn for each pixel, which took 4 to 8 times as long on a CPU.
    """

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        self._scale, self._shift = 1.0 / (255.0 * std), -mean / std
        self._constants: dict[tuple[torch.device, int], tuple[Tensor, Tensor]] = {}

    def __call__(self, images: Tensor) -> Tensor:
        """Of uint8 (B, C, H, W), on their device and in their layout."""
        in_rows = not images.is_contiguous() and images.is_contiguous(memory_format=torch.channels_last)
        key = (images.device, images.shape[3] if in_rows else 1)
        if key not in self._constants:
            self._constants[key] = (self._spread(self._scale, *key), self._spread(self._shift, *key))
        scale, shift = self._constants[key]
        return images.float().mul_(scale).add_(shift)

    @staticmethod
    def _spread(values: Tensor, device: torch.device, width: int) -> Tensor:
        return values.expand(-1, -1, -1, width).contiguous(memory_format=torch.channels_last).to(device)


def normalized(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """`Normalization(mean, std)` of some images."""
    return Normalization(mean, std)(images)


def per_channel(name: str, value: float | list[float], num_channels: int) -> Tensor:
    """data.mean or data.std, one number or one a channel, as float32 (1, C, 1, 1). InputError for another number of
    values."""
    values = [float(each) for each in value] if isinstance(value, list) else [float(value)] * num_channels
    if len(values) != num_channels:
        raise InputError(f"data.{name} has {len(values)} values for data.channels={num_channels}")
    if name == "std" and min(values) <= 0:
        raise InputError(f"data.std={value} is not positive")
    return torch.tensor(values).view(1, num_channels, 1, 1)
