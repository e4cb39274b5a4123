"""CoAtNet (Dai et al. 2021, arXiv 2106.04803v2), Tables 3, 11 and 12, blocks as appendix A.1.

Differs from the paper: nothing known, but the paper leaves open what is chosen here: a LayerNorm before the final
pooling, and a hidden tanh layer before the classifier, without which no printed parameter count is reached. CoAtNet-6
ends 3072 wide: the printed 2048 gives 1.35 billion parameters, 3072 gives the printed 1.47 billion. The sizes of the
layouts that section 2.2 compares (C-C-C-C to ViT_REL) are not printed; see `STUDY`.

Shape letters: B batch, N tokens, C or D width, H W grid, K classes.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.coatnet_blocks import (
    Activation,
    BlockOptions,
    Downsample,
    MBConv,
    Norm,
    PoolType,
    TransformerBlock,
    conv,
    displacements,
    norm,
)
from vitlight.models.layers import (
    check_choice,
    check_images,
    check_positive,
    check_positive_items,
    check_rate,
    check_stages,
    check_switch,
    drop_path_ramp,
    lecun_normal_,
    run_block,
    zero_head,
)

__all__ = ["LADDER", "PUBLISHED", "STUDY", "TIMM_OPTIONS", "CoAtNet", "CoAtNetConfig", "resolve"]

BlockType = Literal["conv", "patches", "mbconv", "transformer"]
NormPosition = Literal["before_pool", "after_pool"]
ShortcutProjection = Literal["always", "on_change"]


@dataclass(frozen=True)
class CoAtNetConfig:
    """Everything that defines a CoAtNet. One entry a stage in `widths`, `depths`, `block_types` and `strides`.

    Stage 0 is the stem: "conv" (3x3 convolutions, the first with the stride) or "patches" (one convolution as large as
    its stride, as in ViT). Later stages are "mbconv" or "transformer".

    downsample: Which convolution of a striding MBConv strides: the 1x1 "expansion" (Eqn 5, the paper's main text) or the
        "depthwise" one (Table 9; slower, better when small).
    pool_type: Of the pooling that shrinks identity branches and the input of attention.
    shortcut_projection: Whether a stage's first block projects its identity branch "always", or only "on_change" of width.
    relative_attention: Whether attention has the bias tables (Table 6).
    conv_norm: "batch" or "layer" (over channels) normalisation in the stem and in MBConv (Table 8).
    norm_position: Of the last LayerNorm, before or after the mean over the grid.
    """

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    block_types: tuple[BlockType, ...] = ("conv", "mbconv", "mbconv", "transformer", "transformer")
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    head_dim: int = 32
    expansion: int = 4
    downsample: Downsample = "expansion"
    pool_type: PoolType = "max"
    shortcut_projection: ShortcutProjection = "always"
    relative_attention: bool = True
    conv_norm: Norm = "batch"
    stem_bias: bool = True
    se_activation: Activation = "gelu"
    norm_position: NormPosition = "before_pool"
    hidden_head: bool = True
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        check_stages(widths=self.widths, depths=self.depths, block_types=self.block_types, strides=self.strides)
        check_positive_items(widths=self.widths, depths=self.depths, strides=self.strides)
        check_positive(head_dim=self.head_dim, expansion=self.expansion, image_size=self.image_size)
        check_positive(in_channels=self.in_channels, num_classes=self.num_classes)
        check_rate(drop_path_rate=self.drop_path_rate)
        check_switch(relative_attention=self.relative_attention, stem_bias=self.stem_bias, hidden_head=self.hidden_head)
        check_choice(get_args(Downsample), downsample=self.downsample)
        check_choice(get_args(PoolType), pool_type=self.pool_type)
        check_choice(get_args(ShortcutProjection), shortcut_projection=self.shortcut_projection)
        check_choice(get_args(Norm), conv_norm=self.conv_norm)
        check_choice(get_args(Activation), se_activation=self.se_activation)
        check_choice(get_args(NormPosition), norm_position=self.norm_position)
        for i, block_type in enumerate(self.block_types):
            check_choice(("mbconv", "transformer") if i else ("conv", "patches"), **{f"block_types[{i}]": block_type})
            if block_type == "transformer" and self.widths[i] % self.head_dim:
                raise InputError(f"widths[{i}]={self.widths[i]} is not a multiple of head_dim={self.head_dim}")
        if "transformer" in self.block_types and "mbconv" in self.block_types[self.block_types.index("transformer") :]:
            raise InputError(f"block_types={self.block_types}: no mbconv stage may follow a transformer stage")
        if self.block_types[0] == "patches" and (self.depths[0] > 1 or self.image_size % self.strides[0]):
            raise InputError(
                f"block_types[0]='patches' needs depths[0]=1, not {self.depths[0]}, and an image_size that is a multiple "
                f"of strides[0]={self.strides[0]}, not {self.image_size}"
            )

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


# What timm's coatnet_N_224 do otherwise: give these to `build_model` for the same network.
TIMM_OPTIONS: dict[str, Any] = {
    "downsample": "depthwise",
    "pool_type": "avg",
    "shortcut_projection": "on_change",
    "stem_bias": False,
    "se_activation": "silu",
    "norm_position": "after_pool",
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


def _study(number: int, layout: str, widths: tuple[int, ...], depths: tuple[int, ...]) -> CoAtNetConfig:
    full = PUBLISHED[f"coatnet_{number}"]
    if layout == "vitrel":
        return replace(full, widths=widths, depths=depths, block_types=("patches", "transformer"), strides=(16, 1))
    stages: list[BlockType] = ["mbconv" if letter == "c" else "transformer" for letter in layout]
    return replace(full, depths=depths, block_types=("conv", *stages))


# The layouts that section 2.2 compares with C-C-T-T, which is CoAtNet itself: the letters say which stages are MBConv and
# which transformers; ViT_REL has a 16x16 patch stem and relative attention. The paper matches their sizes and prints none.
# Here widths are those of CoAtNet-N, and S2 and S3 (in ViT_REL width and depth) are chosen by search: forward MACs at 224
# lie within 3 % of CoAtNet-N's, parameters within 5 % (coatnet_0_vitrel: 18 % fewer).
STUDY = {
    f"coatnet_{number}_{layout}": _study(number, layout, widths, depths)
    for number, layout, widths, depths in (
        (0, "cccc", (), (2, 2, 5, 7, 2)),
        (0, "ccct", (), (2, 2, 6, 5, 2)),
        (0, "cttt", (), (2, 2, 1, 5, 2)),
        (0, "vitrel", (384, 384), (1, 11)),
        (1, "cccc", (), (2, 2, 12, 17, 2)),
        (1, "ccct", (), (2, 2, 12, 16, 2)),
        (1, "cttt", (), (2, 2, 2, 15, 2)),
        (1, "vitrel", (480, 480), (1, 14)),
        (2, "cccc", (), (2, 2, 12, 17, 2)),
        (2, "ccct", (), (2, 2, 12, 16, 2)),
        (2, "cttt", (), (2, 2, 2, 15, 2)),
        (2, "vitrel", (640, 640), (1, 15)),
        (3, "cccc", (), (2, 2, 12, 17, 2)),
        (3, "ccct", (), (2, 2, 11, 16, 2)),
        (3, "cttt", (), (2, 2, 3, 14, 2)),
        (3, "vitrel", (832, 832), (1, 20)),
    )
}


def resolve(arch: str) -> CoAtNetConfig | None:
    """The config of a listed name; None for any other."""
    return PUBLISHED.get(arch) or LADDER.get(arch) or STUDY.get(arch)


class CoAtNet(nn.Module):
    """CoAtNet; `config` says which."""

    activation_checkpointing = False

    def __init__(self, config: CoAtNetConfig) -> None:
        super().__init__()
        self.config = config
        options = BlockOptions(**{field.name: getattr(config, field.name) for field in fields(BlockOptions)})
        width_in = config.widths[0]
        stride = config.strides[0]
        if config.block_types[0] == "patches":
            patches = nn.Conv2d(config.in_channels, width_in, stride, stride=stride)
            lecun_normal_(patches.weight)
            nn.init.zeros_(cast(Tensor, patches.bias))
            self.stem = nn.Sequential(patches)
        else:
            self.stem = nn.Sequential(conv(config.in_channels, width_in, 3, stride, bias=config.stem_bias))
            for _ in range(config.depths[0] - 1):
                middle = conv(width_in, width_in, 3, bias=config.stem_bias)
                self.stem.extend([norm(width_in, config.conv_norm), nn.GELU(), middle])
        rates = iter(drop_path_ramp(config.drop_path_rate, sum(config.depths[1:])))
        self.stages = nn.ModuleList()
        for i in range(1, len(config.widths)):
            stage = nn.ModuleList()
            width = config.widths[i]
            for j in range(config.depths[i]):
                project = j == 0 and (config.shortcut_projection == "always" or width_in != width)
                shape = (width_in, width, config.strides[i] if j == 0 else 1, project, next(rates))
                if config.block_types[i] == "mbconv":
                    stage.append(MBConv(*shape, options))
                else:
                    stage.append(TransformerBlock(*shape, config.grids[i], options))
                width_in = width
            self.stages.append(stage)
            if config.block_types[i] == "transformer":  # one for all blocks of a stage
                self.register_buffer(f"displacements{i}", displacements(config.grids[i]), persistent=False)
        self.norm = nn.LayerNorm(width_in, eps=1e-6)
        if config.hidden_head:
            self.hidden = nn.Linear(width_in, width_in)
            lecun_normal_(self.hidden.weight)
            nn.init.zeros_(self.hidden.bias)
        self.head = zero_head(width_in, config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Feature map (B, H, W, D) after the last norm, where that stands before the pooling; images as in `forward`."""
        check_images(images, self.config.in_channels, self.config.image_size)
        x = self.stem(images)  # (B, C, H, W)
        checkpoint = self.activation_checkpointing and self.training
        channels_first = True
        for i, stage in enumerate(self.stages, start=1):
            context: tuple[Tensor, ...] = ()
            if self.config.block_types[i] == "transformer":
                context = (getattr(self, f"displacements{i}"),)
                if channels_first:
                    x, channels_first = x.permute(0, 2, 3, 1), False
            for block in cast(nn.ModuleList, stage):
                x = run_block(block, x, *context, checkpoint=checkpoint)
        x = x.permute(0, 2, 3, 1) if channels_first else x
        return self.norm(x) if self.config.norm_position == "before_pool" else x

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, K), float32, for images (B, in_channels, image_size, image_size)."""
        x = self.features(images).mean((1, 2))  # (B, D)
        if self.config.norm_position == "after_pool":
            x = self.norm(x)
        if self.config.hidden_head:
            x = torch.tanh(self.hidden(x))
        return self.head(x).float()
