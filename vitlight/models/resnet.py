"""ResNet v1.5 (He et al. 2015, arXiv 1512.03385), Table 1; and wide (Zagoruyko and Komodakis 2016, arXiv 1605.07146).

Differs from the paper: a bottleneck strides in its 3x3 convolution, not in the first 1x1 ("v1.5"; a little better);
the last norm of each residual branch starts at scale 0 (Goyal et al. 2017, arXiv 1706.02677), and so does the head.

Shape letters: B batch, C channels, H W grid, K classes.
"""

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.layers import (
    DropPath,
    check_choice,
    check_images,
    check_positive,
    check_positive_items,
    check_rate,
    check_stages,
    check_switch,
    drop_path_ramp,
    run_block,
    zero_head,
)

__all__ = ["LADDER", "PUBLISHED", "ResNet", "ResNetConfig", "resolve"]

BlockType = Literal["basic", "bottleneck"]
Stem = Literal["imagenet", "small"]


@dataclass(frozen=True)
class ResNetConfig:
    """Everything that defines a ResNet. One entry a stage in `widths`, `depths` and `strides`.

    A bottleneck of width w gives 4w channels, and its 3x3 convolution has `bottleneck_factor` * w. `stem` is "imagenet"
    (7x7 at stride 2, then 3x3 max-pool at stride 2) or "small" (3x3 at `stem_stride`, for images of 64 px and less),
    `stem_width` channels wide.
    """

    block_type: BlockType
    depths: tuple[int, ...]
    widths: tuple[int, ...] = (64, 128, 256, 512)
    strides: tuple[int, ...] = (1, 2, 2, 2)
    bottleneck_factor: int = 1
    stem: Stem = "imagenet"
    stem_width: int = 64
    stem_stride: int = 2
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0
    zero_init_residual: bool = True

    def __post_init__(self) -> None:
        check_stages(depths=self.depths, widths=self.widths, strides=self.strides)
        check_positive_items(depths=self.depths, widths=self.widths, strides=self.strides)
        check_positive(stem_width=self.stem_width, stem_stride=self.stem_stride, image_size=self.image_size)
        check_positive(in_channels=self.in_channels, num_classes=self.num_classes)
        check_rate(drop_path_rate=self.drop_path_rate)
        check_choice(get_args(BlockType), block_type=self.block_type)
        check_choice(get_args(Stem), stem=self.stem)
        check_positive(bottleneck_factor=self.bottleneck_factor)
        check_switch(zero_init_residual=self.zero_init_residual)
        if self.block_type == "basic" and self.bottleneck_factor != 1:
            raise InputError(
                f"bottleneck_factor={self.bottleneck_factor} has no meaning with block_type='basic'; set it to 1"
            )


PUBLISHED = {
    "resnet18": ResNetConfig("basic", (2, 2, 2, 2)),
    "resnet34": ResNetConfig("basic", (3, 4, 6, 3)),
    "resnet50": ResNetConfig("bottleneck", (3, 4, 6, 3)),
    "resnet101": ResNetConfig("bottleneck", (3, 4, 23, 3)),
    "resnet152": ResNetConfig("bottleneck", (3, 8, 36, 3)),
    "wide_resnet50_2": ResNetConfig("bottleneck", (3, 4, 6, 3), bottleneck_factor=2),
    "wide_resnet101_2": ResNetConfig("bottleneck", (3, 4, 23, 3), bottleneck_factor=2),
}


def _small(stem_width: int, widths: tuple[int, ...], depths: tuple[int, ...]) -> ResNetConfig:
    # Grids 14 (the stem), 7 and 4 at 28 px: no block runs on the stem's grid, where norms and activations, not
    # multiply-adds, take the time of a CPU.
    return ResNetConfig("basic", depths, widths, (2, 2), stem="small", stem_width=stem_width, image_size=32)


# Small images, 28 to 64 px: about 2.5, 10, 40 and 160 million MACs at 32 px, matched with the other families' ladders.
LADDER = {
    "resnet_nano1": _small(16, (32, 80), (1, 1)),
    "resnet_nano2": _small(48, (64, 160), (1, 1)),
    "resnet_nano3": _small(64, (96, 192), (2, 2)),
    "resnet_nano4": _small(96, (160, 320), (3, 3)),
}


def resolve(arch: str) -> ResNetConfig | None:
    """The config of a listed name; None for any other."""
    return PUBLISHED.get(arch) or LADDER.get(arch)


def _conv(width_in: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(width_in, width, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


class Block(nn.Module):
    """Residual block, (B, C_in, H, W) to (B, C, H/stride, W/stride), its convolutions (kernel, stride) in a row."""

    def __init__(self, width_in: int, width: int, stride: int, drop_path_rate: float, config: ResNetConfig) -> None:
        super().__init__()
        if config.block_type == "basic":
            shapes = [(width_in, width, 3, stride), (width, width, 3, 1)]
        else:
            inner = config.bottleneck_factor * width
            shapes = [(width_in, inner, 1, 1), (inner, inner, 3, stride), (inner, 4 * width, 1, 1)]
        self.convs = nn.ModuleList(_conv(*shape) for shape in shapes)
        self.norms = nn.ModuleList(nn.BatchNorm2d(shape[1]) for shape in shapes)
        width_out = shapes[-1][1]
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or width_in != width_out:
            self.shortcut = nn.Sequential(_conv(width_in, width_out, 1, stride), nn.BatchNorm2d(width_out))
        self.drop_path = DropPath(drop_path_rate)
        if config.zero_init_residual:
            nn.init.zeros_(cast(Tensor, self.norms[-1].weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.drop_path(self.shortcut(x), self.branch, x), inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        """What is added to the shortcut."""
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            # In place: a norm keeps what it was given for the backward pass, not what it gave.
            x = norm(conv(F.relu(x, inplace=True) if i else x))
        return x


class ResNet(nn.Module):
    """ResNet v1.5; `config` says which."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        kernel, stride = (7, 2) if config.stem == "imagenet" else (3, config.stem_stride)
        self.stem = nn.Sequential(
            _conv(config.in_channels, config.stem_width, kernel, stride),
            nn.BatchNorm2d(config.stem_width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1) if config.stem == "imagenet" else nn.Identity(),
        )
        rates = iter(drop_path_ramp(config.drop_path_rate, sum(config.depths)))
        width_in = config.stem_width
        self.stages = nn.ModuleList()
        for width, depth, stage_stride in zip(config.widths, config.depths, config.strides, strict=True):
            stage = nn.Sequential()
            for i in range(depth):
                stage.append(Block(width_in, width, stage_stride if i == 0 else 1, next(rates), config))
                width_in = width if config.block_type == "basic" else 4 * width
            self.stages.append(stage)
        self.head = zero_head(width_in, config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Feature map (B, C, H, W) of the last stage; images as in `forward`."""
        check_images(images, self.config.in_channels, self.config.image_size)
        x = self.stem(images)
        for stage in self.stages:
            for block in stage.children():
                x = run_block(block, x, checkpoint=self.activation_checkpointing and self.training)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, K), float32, for images (B, in_channels, image_size, image_size)."""
        return self.head(self.features(images).mean((2, 3))).float()
