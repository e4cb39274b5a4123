"""Layers and initialisers that more than one family uses.

Shape letters: B batch, N tokens, D width, H W grid, C channels, K classes.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from vitlight.errors import InputError

__all__ = [
    "Attention",
    "DropPath",
    "Gelu",
    "Mlp",
    "check_above_zero",
    "check_choice",
    "check_images",
    "check_positive",
    "check_positive_items",
    "check_rate",
    "check_stages",
    "check_switch",
    "drop_path_ramp",
    "lecun_normal_",
    "run_block",
    "zero_head",
]

Gelu = Literal["exact", "tanh"]


def check_positive(**values: int) -> None:
    """InputError unless every value is an int of at least 1."""
    for name, value in values.items():
        if not _is_positive(value):
            raise InputError(f"{name}={value!r} must be a whole number of at least 1")


def check_positive_items(**values: Sequence[int]) -> None:
    """InputError unless every value is made of ints of at least 1."""
    for name, value in values.items():
        if not value or not all(map(_is_positive, value)):
            raise InputError(f"{name}={value!r} must be made of whole numbers of at least 1")


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def check_above_zero(**values: float) -> None:
    """InputError unless every value is a number above 0 that float32 can hold."""
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value <= torch.finfo(torch.float32).max:
            raise InputError(f"{name}={value!r} must be a finite number above 0")


def check_switch(**values: bool) -> None:
    """InputError unless every value is true or false."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InputError(f"{name}={value!r} must be true or false")


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
    """Stochastic depth (Huang et al. 2016, 1603.09382) that does no work for the samples it drops.

    In training each sample goes through the branch with probability exactly 1 - `rate`, and what comes out is scaled by
    1 / (1 - rate). The branch sees B * (1 - rate) randomly chosen samples; where that is not a whole number, one more with
    the probability that is left, so the share varies less than in independent draws. A compiled model, whose shapes must
    stand still, always runs that one more and lets it count with that probability, and so does a batch of which less than
    one sample is to be kept: no branch goes without a gradient. Batch norms in the branch see the chosen samples alone.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, identity: Tensor, branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """identity + branch(x), (B, ...); `branch` takes any part of a batch."""
        if not self.training or self.rate == 0:
            return identity + branch(x)
        batch, keep = x.shape[0], 1 - self.rate
        num_kept, left = divmod(round(batch * keep, 6), 1)
        num_kept = int(num_kept)
        one_more_counts: bool | Tensor = True
        if left and (num_kept == 0 or torch.compiler.is_compiling()):
            num_kept, one_more_counts = num_kept + 1, torch.rand((), device=x.device) < left
        elif left:
            num_kept += torch.rand(()).item() < left  # drawn on the CPU: nothing waits for the device
        # Not a slice: torch 2.13's compiler fails on one that keeps all.
        kept = torch.randperm(batch, device=x.device).split((num_kept, batch - num_kept))[0]
        out = branch(x.index_select(0, kept))
        if one_more_counts is not True:
            counts = torch.ones(num_kept, device=x.device)
            counts[-1] *= one_more_counts
            out = out * counts.to(out.dtype).view(-1, *[1] * (out.ndim - 1))
        dtype = torch.promote_types(identity.dtype, out.dtype)
        return identity.to(dtype).index_add(0, kept, out.to(dtype), alpha=1 / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def run_block(block: nn.Module, *args: Any, checkpoint: bool) -> Any:
    """block(*args); with `checkpoint`, what it computes is not kept for the backward pass but computed a second time.

    Both times draw the same random numbers, and batch norms count the batch once. A compiled model keeps what blocks with
    batch norms compute: there a compiler can't leave the second count out.
    """
    if not checkpoint:
        return block(*args)
    norms = [m for m in block.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    if not norms:
        return torch.utils.checkpoint.checkpoint(block, *args, use_reentrant=False)
    if torch.compiler.is_compiling():
        return block(*args)
    return torch.utils.checkpoint.checkpoint(
        block, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), _statistics_kept(norms))
    )


@contextmanager
def _statistics_kept(norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.sub_(1)


class Mlp(nn.Module):
    """Two linear layers with a GELU between, (..., D) to (..., D). Init as big_vision: Xavier weights, biases near 0.

    gelu: "exact", or the "tanh" approximation that the JAX code of the ViT papers computes.
    """

    def __init__(self, width: int, hidden: int, dropout_rate: float = 0.0, gelu: Gelu = "exact") -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout_rate)
        self.approximate = "none" if gelu == "exact" else "tanh"
        for layer in (self.fc1, self.fc2):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.fc2(self.dropout(F.gelu(self.fc1(x), approximate=self.approximate))))


class Attention(nn.Module):
    """Multi-head self-attention, (B, N, D_in) to (B, N, D), with an optional bias on the logits.

    One matrix product makes queries, keys and values, but Xavier's bound is taken for each of the three (D, D_in)
    matrices: over the joined one it would be sqrt(2) too small.

    qk_norm: LayerNorm over each head's queries and keys (Dehghani et al. 2023, 2302.05442).
    fp32_softmax: Logits and softmax in float32 whatever the precision, written out: fused kernels keep the softmax in
    float32 but take logits from bfloat16 queries and keys.
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        width_in: int | None = None,
        qk_norm: bool = False,
        fp32_softmax: bool = False,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fp32_softmax = fp32_softmax
        self.qkv = nn.Linear(width_in or width, 3 * width)
        self.q_norm = nn.LayerNorm(width // num_heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(width // num_heads, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)
        for matrix in (*self.qkv.weight.chunk(3), self.proj.weight):
            nn.init.xavier_uniform_(matrix)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, bias: Tensor | None = None, num_queries: int | None = None) -> Tensor:
        """`bias` (heads, N, N) is added to the scaled products before the softmax. With `num_queries`, only what the first
        so many tokens gather: (B, num_queries, D)."""
        width = self.proj.in_features
        if num_queries is None:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        else:
            q = F.linear(x[:, :num_queries], self.qkv.weight[:width], self.qkv.bias[:width])
            q = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
            k, v = kv.unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        q, k = self.q_norm(q).to(v.dtype), self.k_norm(k).to(v.dtype)  # (B, heads, N, d)
        if self.fp32_softmax:
            x = _attend_in_float32(q, k, v, bias)
        elif _written_out_is_faster(q, bias):
            x = _attend(q, k, v, bias)
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
        return self.proj(x.transpose(1, 2).flatten(2))  # (B, N, D)


def _written_out_is_faster(q: Tensor, bias: Tensor | None) -> bool:
    """Training on a CPU: the fused kernel's backward is slow in bfloat16 and has no gradient for a bias.

    Forward and backward of 8 x 12 heads x 64 tokens x 32 on one core: 14.5 ms fused and 2.8 ms written out in bfloat16;
    with a bias 6.8 and 4.9 ms in float32. In float32 without a bias they are alike, and the fused kernel keeps less.
    """
    return (
        q.device.type == "cpu"
        and torch.is_grad_enabled()
        and (bias is not None or q.dtype != torch.float32)
        and not torch.jit.is_tracing()
    )


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, N, N)
    if bias is not None:
        logits.add_(bias.to(logits.dtype))
    return logits.softmax(-1).to(v.dtype) @ v


def _attend_in_float32(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    # Nothing is cast on meta, and torch knows no autocast there.
    with nullcontext() if q.is_meta else torch.autocast(q.device.type, enabled=False):
        logits = q.float() @ k.float().mT * q.shape[-1] ** -0.5
        weights = (logits if bias is None else logits + bias).softmax(-1)
    return weights.to(v.dtype) @ v
