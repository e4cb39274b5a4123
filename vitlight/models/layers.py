"""Layers and initialisers that more than one family uses.

Shape letters: B batch, N tokens, D width, H W grid, C channels, K classes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.errors import InputError

__all__ = [
    "Attention",
    "DropPath",
    "Mlp",
    "check_choice",
    "check_images",
    "check_positive",
    "check_rate",
    "check_stages",
    "drop_path_ramp",
    "lecun_normal_",
    "zero_head",
]


def check_positive(**values: int | Sequence[int]) -> None:
    """InputError unless every value, or every item of it, is an int of at least 1."""
    for name, value in values.items():
        items = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
        if not items or not all(isinstance(item, int) and not isinstance(item, bool) and item >= 1 for item in items):
            raise InputError(f"{name}={value!r} must be made of whole numbers of at least 1")


def check_rate(**values: float) -> None:
    """InputError unless every value lies in [0, 1)."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 <= value < 1:
            raise InputError(f"{name}={value!r} must lie in [0, 1)")


def check_choice(options: Sequence[Any], **values: Any) -> None:
    """InputError unless every value is one of `options`."""
    for name, value in values.items():
        if value not in options:
            raise InputError(f"{name}={value!r} must be one of {', '.join(map(repr, options))}")


def check_stages(**values: Sequence[Any]) -> None:
    """InputError unless every value is a tuple with one entry a stage, as many as the others have."""
    lengths = {len(value) if isinstance(value, tuple) else 0 for value in values.values()}
    if len(lengths) > 1 or 0 in lengths:
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        raise InputError(f"{shown} must be lists with one entry a stage, equally long")


def check_images(images: Tensor, in_channels: int, image_size: int) -> None:
    """InputError unless images are (B, in_channels, image_size, image_size)."""
    if images.shape[1:] != (in_channels, image_size, image_size):
        raise InputError(
            f"images are {tuple(images.shape)}, but the model was built for (B, {in_channels}, {image_size}, "
            f"{image_size}); build it with in_channels and image_size of the data"
        )


def drop_path_ramp(rate: float, depth: int) -> list[float]:
    """Drop rates that grow linearly from 0 at the first block to `rate` at the last (Huang et al. 2016, 1603.09382)."""
    return [rate * i / max(depth - 1, 1) for i in range(depth)]


def lecun_normal_(weight: Tensor) -> Tensor:
    """Fill in place with a normal of variance 1 / fan_in, cut at two standard deviations.

    0.8796 is the standard deviation of a unit normal cut at +-2; dividing by it gives back the wanted variance, as
    flax's `lecun_normal` does.
    """
    fan_in = weight[0].numel()
    std = math.sqrt(1 / fan_in) / 0.87962566103423978
    return nn.init.trunc_normal_(weight, std=std, a=-2 * std, b=2 * std)


def zero_head(width: int, num_classes: int) -> nn.Linear:
    """A classifier that starts at zero, so that every model's first loss is ln(num_classes)."""
    head = nn.Linear(width, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


class DropPath(nn.Module):
    """Stochastic depth: drops a whole branch for a sample with probability `rate`, and scales those kept by 1/(1-rate)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * kept.bernoulli_(1 - self.rate).div_(1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


class Mlp(nn.Module):
    """Two linear layers with a GELU between, (..., D) to (..., D). Init as big_vision: Xavier weights, biases near 0."""

    def __init__(self, width: int, hidden: int, dropout_rate: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout_rate)
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x)))))


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D_in) to (B, N, D), with an optional bias on the logits.

    One matrix product makes queries, keys and values, but Xavier's bound is taken for each of the three (D, D_in)
    matrices: over the joined one it would be sqrt(2) too small.
    """

    def __init__(self, width: int, num_heads: int, width_in: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width_in or width, 3 * width)
        self.proj = nn.Linear(width, width)
        for matrix in (*self.qkv.weight.chunk(3), self.proj.weight):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`bias` (heads, N, N) is added to the scaled products before the softmax."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # (B, heads, N, d)
        mask = None if bias is None else bias.to(q.dtype)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, N, D)
