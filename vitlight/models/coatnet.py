"""CoAtNet (Dai et al. 2021, arXiv 2106.04803v2), Tables 3, 11 and 12, blocks as appendix A.1.

Differs from the paper: nothing known, but the paper leaves open what is chosen here: a LayerNorm before the final
pooling, and a hidden tanh layer before the classifier, without which no printed parameter count is reached. CoAtNet-6
ends 3072 wide: the printed 2048 gives 1.35 billion parameters, 3072 gives the printed 1.47 billion.

Shape letters: B batch, N tokens, C or D width, H W grid, K classes.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.layers import (
    Attention,
    DropPath,
    Mlp,
    check_choice,
    check_images,
    check_positive,
    check_rate,
    check_stages,
    drop_path_ramp,
    lecun_normal_,
    zero_head,
)

__all__ = ["LADDER", "PUBLISHED", "CoAtNet", "CoAtNetConfig", "resolve"]

BlockType = Literal["conv", "mbconv", "transformer"]
Downsample = Literal["expansion", "depthwise"]


@dataclass(frozen=True)
class CoAtNetConfig:
    """Everything that defines a CoAtNet. One entry a stage in `widths`, `depths`, `block_types` and `strides`.

    Stage 0 is the stem, the only one of type "conv". `downsample` says which convolution of a striding MBConv strides:
    the 1x1 "expansion" (Eqn 5, the paper's main text) or the "depthwise" one (Table 9; slower, better when small).
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block_types: tuple[BlockType, ...] = ("conv", "mbconv", "mbconv", "transformer", "transformer")
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    head_dim: int = 32
    expansion: int = 4
    downsample: Downsample = "expansion"
    hidden_head: bool = True
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        check_stages(widths=self.widths, depths=self.depths, block_types=self.block_types, strides=self.strides)
        check_positive(widths=self.widths, depths=self.depths, strides=self.strides, head_dim=self.head_dim)
        check_positive(expansion=self.expansion, image_size=self.image_size)
        check_positive(in_channels=self.in_channels, num_classes=self.num_classes)
        check_rate(drop_path_rate=self.drop_path_rate)
        check_choice(get_args(Downsample), downsample=self.downsample)
        for i, block_type in enumerate(self.block_types):
            check_choice(("mbconv", "transformer") if i else ("conv",), **{f"block_types[{i}]": block_type})
            if block_type == "transformer" and self.widths[i] % self.head_dim:
                raise InputError(f"widths[{i}]={self.widths[i]} is not a multiple of head_dim={self.head_dim}")
        if "transformer" in self.block_types and "mbconv" in self.block_types[self.block_types.index("transformer") :]:
            raise InputError(f"block_types={self.block_types}: no mbconv stage may follow a transformer stage")

    @property
    def grids(self) -> tuple[int, ...]:
        """Side of the grid after each stage; a stride rounds up, 7 becomes 4."""
        side = self.image_size
        return tuple(side := -(-side // stride) for stride in self.strides)


# CoAtNet-6 and -7 run two thirds of S2's blocks at twice the width as an MBConv part of S3, before its transformers.
_SPLIT_S3: tuple[BlockType, ...] = ("conv", "mbconv", "mbconv", "mbconv", "transformer", "transformer")
_SPLIT_STRIDES = (2, 2, 2, 2, 1, 2)

PUBLISHED = {
    "coatnet_0": CoAtNetConfig((64, 96, 192, 384, 768), (2, 2, 3, 5, 2)),
    "coatnet_1": CoAtNetConfig((64, 96, 192, 384, 768), (2, 2, 6, 14, 2)),
    "coatnet_2": CoAtNetConfig((128, 128, 256, 512, 1024), (2, 2, 6, 14, 2)),
    "coatnet_3": CoAtNetConfig((192, 192, 384, 768, 1536), (2, 2, 6, 14, 2)),
    "coatnet_4": CoAtNetConfig((192, 192, 384, 768, 1536), (2, 2, 12, 28, 2)),
    "coatnet_5": CoAtNetConfig((192, 256, 512, 1280, 2048), (2, 2, 12, 28, 2), head_dim=64),
    "coatnet_6": CoAtNetConfig(
        (192, 192, 384, 768, 1536, 3072), (2, 2, 4, 8, 42, 2), _SPLIT_S3, _SPLIT_STRIDES, head_dim=128
    ),
    "coatnet_7": CoAtNetConfig(
        (192, 256, 512, 1024, 2048, 3072), (2, 2, 4, 8, 42, 2), _SPLIT_S3, _SPLIT_STRIDES, head_dim=128
    ),
}


def _small(widths: tuple[int, ...], depths: tuple[int, ...]) -> CoAtNetConfig:
    # Grids 14, 7, 7, 4 at 28 px: attention over 49 tokens, then 16. The wide expansion never runs on the stem's grid,
    # which makes a training step on a CPU about 1.2 times as fast, at equal MACs, as an MBConv stage there.
    block_types: tuple[BlockType, ...] = ("conv", "mbconv", "transformer", "transformer")
    return CoAtNetConfig(widths, depths, block_types, (2, 2, 1, 2), head_dim=16, hidden_head=False, image_size=32)


# Small images, 28 to 64 px: about 2.5, 10, 40 and 160 million MACs at 32 px, matched with the other families' ladders.
LADDER = {
    "coatnet_nano1": _small((16, 24, 32, 48), (2, 1, 1, 1)),
    "coatnet_nano2": _small((32, 32, 64, 128), (2, 1, 1, 1)),
    "coatnet_nano3": _small((48, 64, 96, 192), (2, 2, 2, 2)),
    "coatnet_nano4": _small((64, 128, 192, 384), (2, 2, 3, 2)),
}


def resolve(arch: str) -> CoAtNetConfig | None:
    """The config of a listed name; None for any other."""
    return PUBLISHED.get(arch) or LADDER.get(arch)


def _conv(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    conv = nn.Conv2d(width_in, width, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=bias)
    lecun_normal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class SqueezeExcite(nn.Module):
    """Channel gates from the mean over the grid (Hu et al. 2017, arXiv 1709.01507), (B, C, H, W) to the same."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.sigmoid(self.fc2(F.gelu(self.fc1(x.mean((2, 3))))))  # (B, C)
        return x * gates[:, :, None, None]


class MBConv(nn.Module):
    """Inverted bottleneck, pre-activation, (B, C_in, H, W) to (B, C, H/stride, W/stride).

    `first` marks a stage's first block, whose identity branch is Proj(Pool(x)). The expansion is counted from the
    width the block gives, and so is the squeeze-and-excitation bottleneck of a quarter of it.
    """

    def __init__(
        self, width_in: int, width: int, stride: int, first: bool, drop_path_rate: float, config: CoAtNetConfig
    ) -> None:
        super().__init__()
        hidden = config.expansion * width
        strides = (stride, 1) if config.downsample == "expansion" else (1, stride)
        self.pool = _pool(stride)
        self.shortcut: nn.Module = _conv(width_in, width, 1) if first else nn.Identity()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(width_in),
            _conv(width_in, hidden, 1, strides[0], bias=False),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
            _conv(hidden, hidden, 3, strides[1], groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.GELU(),
            SqueezeExcite(hidden, max(width // 4, 1)),
            _conv(hidden, width, 1),
            DropPath(drop_path_rate),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(self.pool(x)) + self.branch(x)


class TransformerBlock(nn.Module):
    """Relative self-attention and FFN, pre-LN, (B, H, W, D_in) to (B, H/stride, W/stride, D); channels stand last.

    The bias table holds one entry a head and a displacement (dy, dx), and depends on no input (section 2.1).
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        first: bool,
        drop_path_rate: float,
        grid: int,
        config: CoAtNetConfig,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.pool = _pool(stride)
        self.shortcut: nn.Module = nn.Identity()
        if first:
            self.shortcut = projection = nn.Linear(width_in, width)
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        num_heads = width // config.head_dim
        self.norm1 = nn.LayerNorm(width_in, eps=1e-6)
        self.attn = Attention(width, num_heads, width_in)
        self.bias_table = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(num_heads, 2 * grid - 1, 2 * grid - 1), std=0.02)
        )
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, config.expansion * width)
        self.drop_path = DropPath(drop_path_rate)

    def relative_bias(self) -> Tensor:
        """(heads, N, N): entry [h, i, j] is the table's for head h and the displacement from token i to token j.

        Windows of the table are views, so no index tensor is kept: window (a, b) starts at the displacement (a, b)
        below the lowest, which is what token (H-1-a, W-1-b) sees.
        """
        windows = self.bias_table.unfold(1, self.grid, 1).unfold(2, self.grid, 1)  # (heads, H, W, H, W)
        return windows.flip(1, 2).flatten(3, 4).flatten(1, 2)

    def _pooled(self, x: Tensor) -> Tensor:
        if isinstance(self.pool, nn.Identity):
            return x
        return self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self._pooled(self.norm1(x)).flatten(1, 2)  # (B, N, D_in)
        attended = self.attn(tokens, self.relative_bias()).unflatten(1, (self.grid, self.grid))
        x = self.shortcut(self._pooled(x)) + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))


def _pool(stride: int) -> nn.Module:
    # An odd grid rounds up, as strided convolutions do: 7 becomes 4.
    return nn.MaxPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()


class CoAtNet(nn.Module):
    """CoAtNet; `config` says which."""

    def __init__(self, config: CoAtNetConfig) -> None:
        super().__init__()
        self.config = config
        width_in = config.widths[0]
        self.stem = nn.Sequential(_conv(config.in_channels, width_in, 3, config.strides[0]))
        for _ in range(config.depths[0] - 1):
            self.stem.extend([nn.BatchNorm2d(width_in), nn.GELU(), _conv(width_in, width_in, 3)])
        rates = iter(drop_path_ramp(config.drop_path_rate, sum(config.depths[1:])))
        self.stages = nn.ModuleList()
        for i in range(1, len(config.widths)):
            stage = nn.Sequential()
            for j in range(config.depths[i]):
                shape = (width_in, config.widths[i], config.strides[i] if j == 0 else 1, j == 0, next(rates))
                if config.block_types[i] == "mbconv":
                    stage.append(MBConv(*shape, config))
                else:
                    stage.append(TransformerBlock(*shape, config.grids[i], config))
                width_in = config.widths[i]
            self.stages.append(stage)
        self.norm = nn.LayerNorm(width_in, eps=1e-6)
        if config.hidden_head:
            self.hidden = nn.Linear(width_in, width_in)
            lecun_normal_(self.hidden.weight)
            nn.init.zeros_(self.hidden.bias)
        self.head = zero_head(width_in, config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Feature map (B, H, W, D) after the last norm; images as in `forward`."""
        check_images(images, self.config.in_channels, self.config.image_size)
        x = self.stem(images)  # (B, C, H, W)
        channels_first = True
        for stage, block_type in zip(self.stages, self.config.block_types[1:], strict=True):
            if channels_first and block_type == "transformer":
                x, channels_first = x.permute(0, 2, 3, 1), False
            x = stage(x)
        return self.norm(x.permute(0, 2, 3, 1) if channels_first else x)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, K), float32, for images (B, in_channels, image_size, image_size)."""
        x = self.features(images).mean((1, 2))  # (B, D)
        if self.config.hidden_head:
            x = torch.tanh(self.hidden(x))
        return self.head(x).float()
