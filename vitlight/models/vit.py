"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), Table 1, and its larger and smaller relatives.

Differs from the paper: no hidden tanh layer before the classifier unless `representation_layer` (dropped since AugReg,
arXiv 2106.10270); `pool="gap"` (appendix D) and `pool="map"` (Scaling ViT) are options and use no class token;
initialisation follows big_vision (arXiv 2205.01580), whose head starts at zero.

Shape letters: B batch, N tokens, D width, H W patch grid, K classes.
"""

import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast, get_args

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
    drop_path_ramp,
    lecun_normal_,
    zero_head,
)

__all__ = ["LADDER", "PUBLISHED", "SIZES", "ViT", "ViTConfig", "resolve", "sincos2d"]

Pool = Literal["cls", "gap", "map"]
PositionEmbedding = Literal["learned", "sincos2d"]


@dataclass(frozen=True)
class ViTConfig:
    """Everything that defines a ViT. `pool` also says whether there is a class token: only "cls" has one."""

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int = 16
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    pool: Pool = "cls"
    posemb: PositionEmbedding = "learned"
    representation_layer: bool = False
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0

    def __post_init__(self) -> None:
        check_positive(width=self.width, depth=self.depth, num_heads=self.num_heads, mlp_dim=self.mlp_dim)
        check_positive(patch_size=self.patch_size, image_size=self.image_size)
        check_positive(in_channels=self.in_channels, num_classes=self.num_classes)
        check_rate(dropout_rate=self.dropout_rate, drop_path_rate=self.drop_path_rate)
        check_choice(get_args(Pool), pool=self.pool)
        check_choice(get_args(PositionEmbedding), posemb=self.posemb)
        if self.image_size % self.patch_size:
            below = self.image_size // self.patch_size * self.patch_size
            near = f"{below} or {below + self.patch_size}" if below else f"{self.patch_size}"
            raise InputError(
                f"image_size={self.image_size} is not a multiple of the patch size {self.patch_size}; use {near}"
            )
        if self.width % self.num_heads:
            raise InputError(f"width={self.width} is not a multiple of num_heads={self.num_heads}")
        if self.posemb == "sincos2d" and self.width % 4:
            raise InputError(f"posemb='sincos2d' needs a width that is a multiple of 4, not {self.width}")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size


class ViTSize(NamedTuple):
    width: int
    depth: int
    num_heads: int
    mlp_dim: int


# ti s b l h: ViT and AugReg (2106.10270) Table 1; m: DeiT III (2204.07118); so150m so400m: SoViT (2305.13035);
# giant (g) gigantic (G) and xs (there "s"): Scaling ViT (2106.04560) Table 2; e: PaLI (2209.06794).
SIZES = {
    "xs": ViTSize(256, 6, 8, 1024),
    "ti": ViTSize(192, 12, 3, 768),
    "s": ViTSize(384, 12, 6, 1536),
    "m": ViTSize(512, 12, 8, 2048),
    "b": ViTSize(768, 12, 12, 3072),
    "so150m": ViTSize(880, 18, 16, 2320),
    "l": ViTSize(1024, 24, 16, 4096),
    "so400m": ViTSize(1152, 27, 16, 4304),
    "h": ViTSize(1280, 32, 16, 5120),
    "giant": ViTSize(1408, 40, 16, 6144),
    "gigantic": ViTSize(1664, 48, 16, 8192),
    "e": ViTSize(1792, 56, 16, 15360),
}

# The size and patch pairs that a paper reports; any other patch size can be built by name too.
PUBLISHED = (
    *("vit_xs28", "vit_xs16", "vit_ti16", "vit_s32", "vit_s16", "vit_s8", "vit_m16"),
    *("vit_b32", "vit_b28", "vit_b16", "vit_b8", "vit_so150m14", "vit_l32", "vit_l16", "vit_so400m14"),
    *("vit_h14", "vit_giant14", "vit_gigantic14", "vit_e14"),
)

# Small images, 28 to 64 px: about 2.5, 10, 40 and 160 million MACs at 32 px, matched with the other families' ladders.
LADDER = {
    name: ViTConfig(*size, patch_size=4, image_size=32, pool="gap", posemb="sincos2d")
    for name, size in {
        "vit_nano1": ViTSize(32, 3, 2, 64),
        "vit_nano2": ViTSize(64, 3, 2, 192),
        "vit_nano3": ViTSize(96, 5, 3, 384),
        "vit_nano4": ViTSize(160, 8, 5, 640),
    }.items()
}


def resolve(arch: str) -> ViTConfig | None:
    """The config of `vit_<size><patch>` or of a ladder name; None where `arch` is neither."""
    if arch in LADDER:
        return LADDER[arch]
    match = re.fullmatch(r"vit_([a-z0-9]*[a-z])([1-9][0-9]*)", arch)
    if match is None or match[1] not in SIZES:
        return None
    patch_size = int(match[2])
    default = ViTConfig(*SIZES[match[1]])
    # An image size the patch divides, so that the config is valid before the caller's image_size is known.
    return replace(default, patch_size=patch_size, image_size=max(224 // patch_size, 1) * patch_size)


def sincos2d(grid: int, width: int, temperature: float = 10_000.0) -> Tensor:
    """Fixed 2-D sine-cosine position embedding (1, grid * grid, width), as in MoCo v3 (arXiv 2104.02057)."""
    omega = temperature ** -(torch.arange(width // 4, dtype=torch.float32) / max(width // 4 - 1, 1))
    side = torch.arange(grid, dtype=torch.float32)
    y, x = torch.meshgrid(side, side, indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)[None]


class Block(nn.Module):
    """Pre-LN encoder block, (B, N, D) to (B, N, D)."""

    def __init__(self, config: ViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.num_heads)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.mlp_dim, config.dropout_rate)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.dropout(self.attn(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class AttentionPool(nn.Module):
    """Multi-head attention pooling (Scaling ViT, section 3.2): one learned query over all tokens, then an MLP block."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.probe = nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, width))[None])
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, config.mlp_dim)
        for matrix in (self.q.weight, *self.kv.weight.chunk(2), self.proj.weight):
            nn.init.xavier_uniform_(matrix)
        for layer in (self.q, self.kv, self.proj):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, D)."""
        q = self.q(self.probe.expand(x.shape[0], -1, -1)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        pooled = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))  # (B, D)
        return pooled + self.mlp(self.norm(pooled))


class ViT(nn.Module):
    """Vision Transformer; `config` says which."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = nn.Conv2d(config.in_channels, width, config.patch_size, stride=config.patch_size)
        lecun_normal_(self.patch_embed.weight)
        nn.init.zeros_(cast(Tensor, self.patch_embed.bias))
        if config.pool == "cls":
            self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        num_tokens = config.grid**2 + (config.pool == "cls")
        if config.posemb == "learned":
            self.posemb = nn.Parameter(nn.init.normal_(torch.empty(1, num_tokens, width), std=width**-0.5))
        else:
            # A class token stands at no place: its row is zero.
            fixed = F.pad(sincos2d(config.grid, width), (0, 0, int(config.pool == "cls"), 0))
            self.register_buffer("posemb", fixed, persistent=False)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.blocks = nn.ModuleList(Block(config, r) for r in drop_path_ramp(config.drop_path_rate, config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if config.pool == "map":
            self.attention_pool = AttentionPool(config)
        if config.representation_layer:
            self.representation = nn.Linear(width, width)
            lecun_normal_(self.representation.weight)
            nn.init.zeros_(self.representation.bias)
        self.head = zero_head(width, config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Tokens (B, N, D) after the last norm, the class token first where there is one; images as in `forward`."""
        check_images(images, self.config.in_channels, self.config.image_size)
        x = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, H*W, D)
        if self.config.pool == "cls":
            x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.dropout(x + self.posemb)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, K), float32, for images (B, in_channels, image_size, image_size)."""
        x = self.features(images)
        if self.config.pool == "cls":
            x = x[:, 0]
        elif self.config.pool == "gap":
            x = x.mean(1)
        else:
            x = self.attention_pool(x)
        if self.config.representation_layer:
            x = torch.tanh(self.representation(x))
        return self.head(x).float()
