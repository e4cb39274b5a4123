"""In which order a network's maps and kernels lie in memory: channels first (contiguous) or last."""

from typing import Literal, get_args

import torch
from torch import nn

from vitlight.errors import InputError

__all__ = ["MemoryFormat", "choose_memory_format"]

MemoryFormat = Literal["auto", "channels_last", "contiguous"]

# Kinds of layer, device and arithmetic that are slower with channels last; every other convolutional network is as fast or
# faster with it, and its images come that way from the loader.
_CONTIGUOUS: tuple[tuple[type[nn.Module], str, str], ...] = (
    # BiT R50x1, forward and backward of 8 images of 128 px, one core, torch 2.13: 623 ms with channels last, 531 without.
    (nn.GroupNorm, "cpu", "bf16"),
)


def choose_memory_format(
    wanted: MemoryFormat, model: nn.Module, device_type: str, precision: str
) -> torch.memory_format:
    """The format for a model's kernels and images; torch.preserve_format where nothing depends on it, as in a ViT.

    precision: as Lightning names it, for example "bf16-mixed". InputError where `wanted` is no such format.
    """
    if wanted not in get_args(MemoryFormat):
        raise InputError(f"model.memory_format={wanted} is not one of {', '.join(get_args(MemoryFormat))}")
    # A convolution whose windows don't overlap, such as a patch embedding, is a product of matrices.
    layers = list(model.modules())
    if not any(isinstance(each, nn.Conv2d) and each.kernel_size != each.stride for each in layers):
        return torch.preserve_format
    if wanted == "auto":
        is_slow = any(
            device == device_type
            and precision.startswith(arithmetic)
            and any(isinstance(each, kind) for each in layers)
            for kind, device, arithmetic in _CONTIGUOUS
        )
        wanted = "contiguous" if is_slow else "channels_last"
    return torch.channels_last if wanted == "channels_last" else torch.contiguous_format
