"""The filters of the layer that sees the image, and their principal components.

Shape letters: F filters, C channels, P kernel side.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitlight.analysis.insight.capture import plain_network
from vitlight.models.bit import BiT, standardised
from vitlight.models.hybrid import SameConv2d
from vitlight.models.vit import ViT

__all__ = ["NUM_COMPONENTS", "Filters", "as_pictures", "first_filters", "principal_components"]

NUM_COMPONENTS = 28  # as many as figure 7 of the ViT paper shows


@dataclass(frozen=True)
class Filters:
    """kernels (F, C, P, P), float32 on the CPU, as they are applied; layer: the module's path; stride: in pixels."""

    kernels: Tensor
    layer: str
    stride: int


def first_filters(network: nn.Module) -> Filters | None:
    """The first convolution's kernels: ViT's patch embedding, the stem of a hybrid, CoAtNet, ResNet or BiT, and of timm's
    models the first convolution that takes an image's channels; None where there is none. Kernels that are standardised when
    they are applied (BiT, hybrids) are given so."""
    network = plain_network(network)
    config = cast(Any, network).config
    named = dict(network.named_modules())
    if isinstance(network, ViT):
        name = "backbone.stem" if config.backbone is not None else "patch_embed"
    elif "stem.0" in named:
        name = "stem.0"
    else:
        convolutions = (n for n, m in named.items() if isinstance(m, nn.Conv2d) and m.in_channels == config.in_channels)
        name = next(convolutions, "")
    layer = named.get(name)
    if not isinstance(layer, nn.Conv2d):
        return None
    kernels = layer.weight.detach().float().cpu()
    if isinstance(network, BiT):
        kernels = standardised(kernels, config.weight_eps)
    elif isinstance(layer, SameConv2d):
        kernels = standardised(kernels, 1e-8)
    return Filters(kernels, name, layer.stride[0])


def principal_components(kernels: Tensor, count: int = NUM_COMPONENTS) -> tuple[Tensor, Tensor]:
    """The first components (n, C, P, P) of kernels (F, C, P, P) and the share of the variance that each explains, (n,).

    The mean kernel is taken off first; n is at most `count` and the rank that is possible. Components have length 1, and the
    sign with which their largest entry is positive.
    """
    flat = kernels.double().flatten(1)
    centred = flat - flat.mean(0)
    _, values, rows = torch.linalg.svd(centred, full_matrices=False)
    n = min(count, max(len(flat) - 1, 1), rows.shape[0])
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    rows = rows * torch.where(largest < 0, -1.0, 1.0)
    variances = values.square()
    total = variances.sum()
    shares = variances / total if total > 0 else torch.zeros_like(variances)
    return rows[:n].unflatten(1, kernels.shape[1:]).float(), shares[:n].float()


def as_pictures(kernels: Tensor) -> Tensor:
    """Kernels (n, C, P, P) as uint8 pictures (n, P, P, 3), each scaled by its own largest absolute entry: a weight of 0 is
    middle grey, in every channel alike. Three channels are red, green and blue; of any other number the mean is shown
    in grey.
    """
    shown = kernels if kernels.shape[1] == 3 else kernels.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    scale = shown.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(shown.dtype).tiny)
    return (127.5 * (1 + shown / scale)).round().to(torch.uint8).permute(0, 2, 3, 1)
