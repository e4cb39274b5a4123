"""The convolutional front of hybrid ViTs (Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.1 and Table 6; Steiner et
al. 2021, arXiv 2106.10270, Table 1): a ResNet whose feature map takes the place of the image.

It is BiT's ResNet with the activation after the norm: a 7x7 convolution and a max-pool, both of stride 2, then bottleneck
units; GroupNorm of 32 groups and standardised convolutions throughout, padded as TensorFlow's "SAME".

Differs from the paper: a kernel is divided by sqrt(variance + 1e-8), as in timm, where the paper's code divides by the
standard deviation + 1e-5.

Shape letters: B batch, C channels, H W grid.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.bit import standardised
from vitlight.models.layers import check_positive_items, lecun_normal_, run_block

__all__ = ["HYBRIDS", "Backbone", "Hybrid", "HybridStem"]


@dataclass(frozen=True)
class HybridStem:
    """Bottleneck units of each stage; stage i has `stride` 4 * 2**i and gives 256 * 2**i channels. () is the stem alone."""

    depths: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.depths, tuple):
            raise InputError(f"depths={self.depths!r} of the hybrid's backbone must be a tuple with one entry a stage")
        if self.depths:
            check_positive_items(depths=self.depths)

    @property
    def stride(self) -> int:
        """Pixels of the image to one of the feature map, along a side."""
        return 4 * 2 ** max(len(self.depths) - 1, 0)

    @property
    def width(self) -> int:
        """Channels of the feature map."""
        return 256 * 2 ** (len(self.depths) - 1) if self.depths else 64


class Hybrid(NamedTuple):
    size: str
    stem: HybridStem
    patch_size: int


# The last number of a name is the total stride; R+Ti/16's is 32 (a stem of stride 4, patches of 8): the name is AugReg's.
# R26 and R50 with /32 are whole ResNets; in R50 with /16, stage 4's units stand in stage 3 instead (ViT, section 3.1).
HYBRIDS = {
    "vit_r_ti16": Hybrid("ti", HybridStem(), 8),
    "vit_r26_s32": Hybrid("s", HybridStem((2, 2, 2, 2)), 1),
    "vit_r50_b32": Hybrid("b", HybridStem((3, 4, 6, 3)), 1),
    "vit_r50_b16": Hybrid("b", HybridStem((3, 4, 9)), 1),
    "vit_r50_l32": Hybrid("l", HybridStem((3, 4, 6, 3)), 1),
    "vit_r50_l16": Hybrid("l", HybridStem((3, 4, 9)), 1),
}


class SameConv2d(nn.Conv2d):
    """Convolution with a standardised kernel and "SAME" padding, for sides that are a multiple of the stride."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1) -> None:
        super().__init__(width_in, width, kernel, stride=stride, bias=False)
        lecun_normal_(self.weight)
        # Where the sum is odd, the right and the bottom get one more than the left and the top.
        before, odd = divmod(max(kernel - stride, 0), 2)
        self.excess = (before, before + odd) * 2 if odd else None
        if not odd:
            self.padding = (before, before)

    def forward(self, x: Tensor) -> Tensor:
        padded = x if self.excess is None else F.pad(x, self.excess)
        return self._conv_forward(padded, standardised(self.weight, eps=1e-8), None)


class Unit(nn.Module):
    """Post-activation bottleneck, (B, C_in, H, W) to (B, 4 * width, H/stride, W/stride); the branch starts at zero."""

    def __init__(self, width_in: int, width: int, stride: int, norm_eps: float) -> None:
        super().__init__()
        self.conv1 = SameConv2d(width_in, width, 1)
        self.norm1 = nn.GroupNorm(32, width, eps=norm_eps)
        self.conv2 = SameConv2d(width, width, 3, stride)
        self.norm2 = nn.GroupNorm(32, width, eps=norm_eps)
        self.conv3 = SameConv2d(width, 4 * width, 1)
        self.norm3 = nn.GroupNorm(32, 4 * width, eps=norm_eps)
        nn.init.zeros_(self.norm3.weight)
        self.projects = stride > 1 or width_in != 4 * width
        if self.projects:
            self.shortcut = SameConv2d(width_in, 4 * width, 1, stride)
            self.shortcut_norm = nn.GroupNorm(32, 4 * width, eps=norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut_norm(self.shortcut(x)) if self.projects else x
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(shortcut + self.norm3(self.conv3(x)))


class Backbone(nn.Module):
    """Images (B, in_channels, H, W), sides a multiple of `config.stride`, to (B, config.width, H/stride, W/stride)."""

    def __init__(self, config: HybridStem, in_channels: int, norm_eps: float) -> None:
        super().__init__()
        self.stem = SameConv2d(in_channels, 64, 7, stride=2)
        self.stem_norm = nn.GroupNorm(32, 64, eps=norm_eps)
        self.stages = nn.ModuleList()
        width_in = 64
        for i, depth in enumerate(config.depths):
            width = 64 * 2**i
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(Unit(width_in, width, stride=2 if i > 0 and j == 0 else 1, norm_eps=norm_eps))
                width_in = 4 * width
            self.stages.append(stage)

    def forward(self, images: Tensor, checkpoint: bool = False) -> Tensor:
        """With `checkpoint`, units' activations are computed a second time for the backward pass."""
        x = F.relu(self.stem_norm(self.stem(images)))
        x = F.max_pool2d(x, 3, stride=2, ceil_mode=True)  # on an even side the same as "SAME", without the copy
        for stage in self.stages:
            for unit in cast(nn.Sequential, stage):
                x = run_block(unit, x, checkpoint=checkpoint)
        return x
