"""Vision Transformer (Dosovitskiy et al. 2020, arXiv 2010.11929), Table 1, and its larger and smaller relatives.

Differs from the paper: no hidden tanh layer before the classifier unless `representation_layer` (dropped since AugReg,
arXiv 2106.10270); `pool="gap"` (appendix D) and `pool="map"` (Scaling ViT) are options and use no class token unless
asked; initialisation follows big_vision (arXiv 2205.01580), whose head starts at zero.

With `pool="cls"` a training step computes the last block for the class token alone: no other token's output reaches the
loss, so logits and gradients are the same. In evaluation mode the whole block runs, which is what MACs are counted on.

Shape letters: B batch, N tokens, D width, H W patch grid, C channels, P patch side, K classes.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.models.hybrid import Backbone
from vitlight.models.layers import (
    Attention,
    DropPath,
    Mlp,
    check_images,
    drop_path_ramp,
    lecun_normal_,
    run_block,
    zero_head,
)
from vitlight.models.vit_config import ViTConfig

__all__ = ["ViT", "sincos2d"]


def sincos2d(grid: int, width: int, temperature: float = 10_000.0, over: int | None = None) -> Tensor:
    """Fixed 2-D sine-cosine position embedding (1, grid * grid, width), as in MoCo v3 (arXiv 2104.02057).

    over: the patches' middles are those of a grid of so many along one side; None: of `grid`.
    """
    omega = temperature ** -(torch.arange(width // 4, dtype=torch.float32) / max(width // 4 - 1, 1))
    side = torch.arange(grid, dtype=torch.float32)
    if over is not None:
        side = (side + 0.5) * (over / grid) - 0.5
    y, x = torch.meshgrid(side, side, indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (x, y)]
    return torch.cat([f(angle) for angle in angles for f in (torch.sin, torch.cos)], dim=1)[None]


class PatchEmbed(nn.Conv2d):
    """Patches that don't overlap, each through one linear map: (B, C, H*P, W*P) to (B, H*W, D).

    A convolution by its weight (D, C, P, P), but computed as a matrix product: the tokens come out contiguous, and faster
    (forward and backward of 8 images of 128 px, width 768, P 16, bfloat16, one CPU core: 19 ms against 32).
    """

    def __init__(self, in_channels: int, width: int, patch_size: int) -> None:
        super().__init__(in_channels, width, patch_size, stride=patch_size)
        lecun_normal_(self.weight)
        nn.init.zeros_(cast(Tensor, self.bias))

    def forward(self, x: Tensor) -> Tensor:
        side = self.kernel_size[0]
        x = x.unflatten(3, (-1, side)).unflatten(2, (-1, side))  # (B, C, H, P, W, P)
        return F.linear(x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), self.weight.flatten(1), self.bias)


class Block(nn.Module):
    """Pre-LN encoder block, (B, N, D) to (B, N, D), or to (B, num_outputs, D): the first tokens alone."""

    def __init__(self, config: ViTConfig, drop_path_rate: float) -> None:
        super().__init__()
        width, eps = config.width, config.norm_eps
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(
            width, config.num_heads, qk_norm=config.qk_norm, fp32_softmax=config.fp32_softmax, norm_eps=eps
        )
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, config.mlp_dim, config.dropout_rate, config.gelu)
        self.scaled = config.layer_scale is not None
        if config.layer_scale is not None:
            self.scale1 = nn.Parameter(torch.full((width,), float(config.layer_scale)))
            self.scale2 = nn.Parameter(torch.full((width,), float(config.layer_scale)))
        self.dropout = nn.Dropout(config.dropout_rate)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor, num_outputs: int | None = None) -> Tensor:
        def attend(x: Tensor) -> Tensor:
            x = self.dropout(self.attn(self.norm1(x), num_queries=num_outputs))
            return x * self.scale1 if self.scaled else x

        def transform(x: Tensor) -> Tensor:
            x = self.mlp(self.norm2(x))
            return x * self.scale2 if self.scaled else x

        x = self.drop_path(x if num_outputs is None else x[:, :num_outputs], attend, x)
        return cast(Tensor, self.drop_path(x, transform, x))


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
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = Mlp(width, config.mlp_dim, gelu=config.gelu)
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

    activation_checkpointing: bool = False

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        in_channels = config.in_channels
        if config.backbone is not None:
            self.backbone = Backbone(config.backbone, in_channels, config.backbone_norm_eps)
            in_channels = config.backbone.width
        self.patch_embed = PatchEmbed(in_channels, width, config.patch_size)
        num_rows = config.grid**2
        if config.has_class_token:
            self.class_token = nn.Parameter(torch.zeros(1, 1, width))
            num_rows += config.posemb_on_class_token
        if config.num_registers:
            self.registers = nn.Parameter(nn.init.normal_(torch.empty(1, config.num_registers, width), std=1e-6))
        if config.posemb == "learned":
            self.posemb = nn.Parameter(nn.init.normal_(torch.empty(1, num_rows, width), std=width**-0.5))
        elif config.posemb == "sincos2d":
            self.register_buffer("posemb", sincos2d(config.grid, width, over=config.posemb_grid), persistent=False)
        self.dropout = nn.Dropout(config.dropout_rate)
        self.blocks = nn.ModuleList(Block(config, r) for r in drop_path_ramp(config.drop_path_rate, config.depth))
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        if config.pool == "map":
            self.attention_pool = AttentionPool(config)
        if config.representation_layer:
            self.representation = nn.Linear(width, width)
            lecun_normal_(self.representation.weight)
            nn.init.zeros_(self.representation.bias)
        self.head = zero_head(width, config.num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Tokens (B, N, D): class token, registers, patches row by row, of those there are; images as in `forward`.

        They are after the last norm, or before it with norm_position="after_pool", which norms the pooled vector alone.
        """
        tokens = self._encode(images)
        return self.norm(tokens) if self.config.norm_position == "before_pool" else tokens

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, K), float32, for images (B, in_channels, image_size, image_size)."""
        config = self.config
        x = self._encode(images, num_outputs=1 if config.pool == "cls" and self.training else None)
        if config.norm_position == "before_pool":
            x = self.norm(x)
        if config.pool == "cls":
            x = x[:, 0]
        else:
            patches = x[:, config.num_prefix_tokens :]
            x = patches.mean(1) if config.pool == "gap" else self.attention_pool(patches)
        if config.norm_position == "after_pool":
            x = self.norm(x)
        if config.representation_layer:
            x = torch.tanh(self.representation(x))
        return self.head(x).float()

    def _embed(self, images: Tensor, checkpoint: bool) -> Tensor:
        """Tokens (B, N, D) as the first block takes them."""
        x = images if self.config.backbone is None else self.backbone(images, checkpoint)
        x = self.patch_embed(x)  # (B, H*W, D)
        prefix: list[Tensor] = []
        if self.config.has_class_token:
            prefix.append(self.class_token)
        if self.config.num_registers:
            prefix.append(self.registers)
        if self.config.posemb != "none":
            num_patches = x.shape[1]
            x = x + self.posemb[:, -num_patches:]
            if self.posemb.shape[1] > num_patches:
                prefix[0] = prefix[0] + self.posemb[:, :1]
        if prefix:
            x = torch.cat([*(tokens.expand(x.shape[0], -1, -1) for tokens in prefix), x], dim=1)
        return self.dropout(x)

    def _encode(self, images: Tensor, num_outputs: int | None = None) -> Tensor:
        """Tokens (B, N, D) after the last block, before the last norm; the first `num_outputs` of them where given."""
        check_images(images, self.config.in_channels, self.config.image_size)
        checkpoint = self.activation_checkpointing and self.training
        x = self._embed(images, checkpoint)
        *blocks, last = self.blocks
        for block in blocks:
            x = run_block(block, x, checkpoint=checkpoint)
        return run_block(last, x, num_outputs, checkpoint=checkpoint)
