"""BiT ResNet-v2 (Kolesnikov et al. 2019, arXiv 1912.11370): pre-activation, GroupNorm, weight standardisation.

The paper's networks: depths 50, 101 and 152, widths x1, x3 and x4. Those of width x2 and depth 200 are in the ViT paper
(arXiv 2010.11929), Table 6.

Differs from the paper: nothing. timm's models divide a kernel by sqrt(variance + 1e-8): `weight_eps`.

Shape letters: B batch, C channels, H W grid, K classes.
"""

import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.layers import (
    DropPath,
    check_above_zero,
    check_images,
    check_positive,
    check_positive_items,
    check_rate,
    check_stages,
    drop_path_ramp,
    run_block,
    zero_head,
)

__all__ = ["DEPTHS", "PUBLISHED", "BiT", "BiTConfig", "resolve"]


@dataclass(frozen=True)
class BiTConfig:
    """Everything that defines a BiT network: stage i is 64 * 2**i * `width_factor` wide, and gives four times as much.

    A kernel is divided by sqrt(variance + `weight_eps`).
    """

    depths: tuple[int, ...]
    width_factor: int
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    num_groups: int = 32
    drop_path_rate: float = 0.0
    weight_eps: float = 1e-10

    def __post_init__(self) -> None:
        check_stages(depths=self.depths)
        check_positive_items(depths=self.depths)
        check_positive(width_factor=self.width_factor, image_size=self.image_size)
        check_positive(in_channels=self.in_channels, num_classes=self.num_classes, num_groups=self.num_groups)
        check_rate(drop_path_rate=self.drop_path_rate)
        check_above_zero(weight_eps=self.weight_eps)
        if 64 * self.width_factor % self.num_groups:
            raise InputError(f"num_groups={self.num_groups} does not divide the width {64 * self.width_factor}")


DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}

PUBLISHED = (
    *("bit_r50x1", "bit_r50x2", "bit_r50x3", "bit_r101x1", "bit_r101x3"),
    *("bit_r152x1", "bit_r152x2", "bit_r152x4", "bit_r200x3"),
)


def resolve(arch: str) -> BiTConfig | None:
    """The config of `bit_r<depth>x<1 to 4>`; None for any other name."""
    match = re.fullmatch(r"bit_r([0-9]+)x([1-4])", arch)
    if match is None or int(match[1]) not in DEPTHS:
        return None
    return BiTConfig(DEPTHS[int(match[1])], int(match[2]))


class StandardConv2d(nn.Conv2d):
    """Convolution whose kernel is brought to mean 0 and variance 1 (biased, plus `eps`) for each output channel."""

    def __init__(self, width_in: int, width: int, kernel: int, stride: int = 1, eps: float = 1e-10) -> None:
        super().__init__(width_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.eps = eps
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, standardised(self.weight, self.eps), None)


def standardised(kernel: Tensor, eps: float) -> Tensor:
    """(C, C_in, h, w), each kernel[c] less its mean and divided by sqrt(variance + eps), in the memory format it came in."""
    if kernel.stride(1) < kernel.stride(3):
        # Channels last: read in memory order, it need not be copied, and its gradient comes with the same strides, as DDP
        # wants it; also where height and width are 1 and both orders are the same.
        return standardised(kernel.permute(0, 2, 3, 1), eps).permute(0, 3, 1, 2)
    # Batch norm over (1, C, fan_in) is weight standardisation in one fused kernel, and rounds as timm's does. Layer norm of
    # the rows would take less than half the time, which is 4 % of a training step on a CPU.
    return F.batch_norm(kernel.flatten(1)[None], None, None, training=True, eps=eps).view_as(kernel)


class Block(nn.Module):
    """Pre-activation bottleneck, (B, C_in, H, W) to (B, 4 * width, H/stride, W/stride)."""

    def __init__(self, width_in: int, width: int, stride: int, drop_path_rate: float, config: BiTConfig) -> None:
        super().__init__()
        num_groups, eps = config.num_groups, config.weight_eps
        self.norm1 = nn.GroupNorm(num_groups, width_in)
        self.conv1 = StandardConv2d(width_in, width, 1, eps=eps)
        self.norm2 = nn.GroupNorm(num_groups, width)
        self.conv2 = StandardConv2d(width, width, 3, stride, eps=eps)
        self.norm3 = nn.GroupNorm(num_groups, width)
        self.conv3 = StandardConv2d(width, 4 * width, 1, eps=eps)
        self.shortcut = None
        if stride > 1 or width_in != 4 * width:
            self.shortcut = StandardConv2d(width_in, 4 * width, 1, stride, eps=eps)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        active = _norm_relu(self.norm1, x)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.drop_path(shortcut, self.branch, active)

    def branch(self, active: Tensor) -> Tensor:
        """What is added to the shortcut, from the map after the first norm and ReLU."""
        x = _norm_relu(self.norm2, self.conv1(active))
        return self.conv3(_norm_relu(self.norm3, self.conv2(x)))


def _norm_relu(norm: nn.Module, x: Tensor) -> Tensor:
    # In place: a norm keeps what it was given for the backward pass, not what it gave.
    return F.relu(norm(x), inplace=True)


class StemPool(nn.MaxPool2d):
    """3x3 max-pool at stride 2 over the map with a border of zeros, as the paper's code has it."""

    def __init__(self) -> None:
        super().__init__(3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (1, 1, 1, 1))
        if x.device.type != "cpu" or not x.is_contiguous():
            return super().forward(x)
        # On a CPU this pool is six times slower with channels first, which costs more than bringing them last and back.
        return super().forward(x.contiguous(memory_format=torch.channels_last)).contiguous()


class BiT(nn.Module):
    """BiT ResNet-v2; `config` says which."""

    def __init__(self, config: BiTConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        width_in = 64 * config.width_factor
        self.stem = nn.Sequential(
            StandardConv2d(config.in_channels, width_in, 7, stride=2, eps=config.weight_eps),
            StemPool(),
        )
        rates = iter(drop_path_ramp(config.drop_path_rate, sum(config.depths)))
        self.stages = nn.ModuleList()
        for i, depth in enumerate(config.depths):
            width = 64 * 2**i * config.width_factor
            stage = nn.Sequential()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                stage.append(Block(width_in, width, stride, next(rates), config))
                width_in = 4 * width
            self.stages.append(stage)
        self.norm = nn.GroupNorm(config.num_groups, width_in)
        self.head = zero_head(width_in, config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Feature map (B, C, H, W) after the last norm and ReLU; images as in `forward`."""
        check_images(images, self.config.in_channels, self.config.image_size)
        x = self.stem(images)
        for stage in self.stages:
            for block in stage.children():
                x = run_block(block, x, checkpoint=self.activation_checkpointing and self.training)
        return _norm_relu(self.norm, x)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, K), float32, for images (B, in_channels, image_size, image_size)."""
        return self.head(self.features(images).mean((2, 3))).float()
