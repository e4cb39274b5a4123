"""The blocks of a CoAtNet (Dai et al. 2021, arXiv 2106.04803v2), as its appendix A.1 has them.

Shape letters: B batch, N tokens, C or D width, H W grid.
"""

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.models.layers import Attention, DropPath, Mlp, lecun_normal_

__all__ = [
    "Activation",
    "BlockOptions",
    "Downsample",
    "MBConv",
    "Norm",
    "PoolType",
    "TransformerBlock",
    "conv",
    "displacements",
    "norm",
]

Activation = Literal["gelu", "silu"]
Downsample = Literal["expansion", "depthwise"]
Norm = Literal["batch", "layer"]
PoolType = Literal["max", "avg"]


@dataclass(frozen=True)
class BlockOptions:
    """What all blocks of a network have in common; CoAtNetConfig explains the fields."""

    expansion: int
    head_dim: int
    downsample: Downsample
    pool_type: PoolType
    relative_attention: bool
    conv_norm: Norm
    se_activation: Activation


def conv(width_in: int, width: int, kernel: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    layer = nn.Conv2d(width_in, width, kernel, stride=stride, padding=kernel // 2, bias=bias)
    lecun_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def depthwise(width: int, stride: int) -> nn.Conv2d:
    layer = DepthwiseConv2d(width, width, 3, stride=stride, padding=1, groups=width, bias=False)
    lecun_normal_(layer.weight)
    return layer


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution; where it strides in bfloat16 on a CPU, the gradient of its input is computed in float32.

    oneDNN has no fast kernel for that one: 8 images of 384 x 64 x 64 take 105 ms of a core, 5 ms in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == (1, 1) or x.device.type != "cpu" or not x.requires_grad:
            return super().forward(x)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), self.weight.to(dtype)
        else:
            weight = self.weight
        if x.dtype != torch.bfloat16:
            return super().forward(x)
        return _StridedDepthwise.apply(x, weight, self.stride, self.padding)


class _StridedDepthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, stride=stride, padding=padding, groups=weight.shape[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        geometry = (None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), weight.shape[0])
        backward = torch.ops.aten.convolution_backward
        shape = torch.empty_like(x, dtype=torch.float32)  # only its layout is read
        grad_x = backward(grad.float(), shape, weight.float(), *geometry, (True, False, False))[0]
        grad_weight = backward(grad, x, weight, *geometry, (False, True, False))[1]
        return grad_x.to(x.dtype), grad_weight, None, None


def gelu(x: Tensor) -> Tensor:
    """GELU of (B, C, H, W). The fast CPU kernel for bfloat16 takes tensors whose shape is in the order of their memory."""
    if x.is_contiguous(memory_format=torch.channels_last):
        return F.gelu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return F.gelu(x)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def norm(width: int, kind: Norm) -> nn.Module:
    """The normalisation of convolutional blocks, (B, C, H, W) to the same."""
    return nn.BatchNorm2d(width) if kind == "batch" else ChannelNorm(width, eps=1e-6)


class SqueezeExcite(nn.Module):
    """Channel gates (B, C) from the mean of (B, C, H, W) over the grid (Hu et al. 2017, arXiv 1709.01507)."""

    def __init__(self, width: int, hidden: int, activation: Activation) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.activation = F.gelu if activation == "gelu" else F.silu

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.fc2(self.activation(self.fc1(x.mean((2, 3))))))


class MBConv(nn.Module):
    """Inverted bottleneck, pre-activation, (B, C_in, H, W) to (B, C, H/stride, W/stride).

    `project_shortcut` makes the identity branch Proj(Pool(x)), as in a stage's first block. The expansion is counted from
    the width the block gives, and so is the squeeze-and-excitation bottleneck of a quarter of it.
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        project_shortcut: bool,
        drop_path_rate: float,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        hidden = options.expansion * width
        strides = (stride, 1) if options.downsample == "expansion" else (1, stride)
        self.pool = pool(stride, options.pool_type)
        self.shortcut: nn.Module = conv(width_in, width, 1) if project_shortcut else nn.Identity()
        self.norm1 = norm(width_in, options.conv_norm)
        self.expand = conv(width_in, hidden, 1, strides[0], bias=False)
        self.norm2 = norm(hidden, options.conv_norm)
        self.depthwise = depthwise(hidden, strides[1])
        self.norm3 = norm(hidden, options.conv_norm)
        self.se = SqueezeExcite(hidden, max(width // 4, 1), options.se_activation)
        self.project = conv(hidden, width, 1)
        self.drop_path = DropPath(drop_path_rate)

    def _branch(self, x: Tensor) -> Tensor:
        x = gelu(self.norm2(self.expand(self.norm1(x))))  # (B, hidden, H, W)
        x = gelu(self.norm3(self.depthwise(x)))
        return self._project(x, self.se(x))

    def _project(self, x: Tensor, gates: Tensor) -> Tensor:
        """project(gates * x): (B, hidden, H, W) and (B, hidden) to (B, C, H, W)."""
        height, width = x.shape[2:]
        small = height * width < 4 * self.project.out_channels
        if not self.training or small or torch.compiler.is_compiling():  # compiled both are as fast
            return self.project(x * gates[:, :, None, None])
        # The gates scale each image's kernel instead of its map, which is larger: fewer bytes to move and to keep.
        kernels = self.project.weight.flatten(1) * gates[:, None]  # (B, C, hidden)
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H * W, hidden)
        bias = cast(Tensor, self.project.bias).to(kernels.dtype)
        out = torch.baddbmm(bias, tokens, kernels.mT)
        return out.unflatten(1, (height, width)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.shortcut(self.pool(x)), self._branch, x)


class TransformerBlock(nn.Module):
    """Relative self-attention and FFN, pre-LN, (B, H, W, D_in) to (B, H/stride, W/stride, D); channels stand last.

    The bias table holds one entry a head and a displacement (dy, dx), and depends on no input (section 2.1).
    """

    def __init__(
        self,
        width_in: int,
        width: int,
        stride: int,
        project_shortcut: bool,
        drop_path_rate: float,
        grid: int,
        options: BlockOptions,
    ) -> None:
        super().__init__()
        self.grid = grid
        self.pool = pool(stride, options.pool_type)
        self.shortcut: nn.Module = nn.Identity()
        if project_shortcut:
            self.shortcut = projection = nn.Linear(width_in, width)
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)
        num_heads = width // options.head_dim
        self.norm1 = nn.LayerNorm(width_in, eps=1e-6)
        self.attn = Attention(width, num_heads, width_in)
        if options.relative_attention:
            self.bias_table = nn.Parameter(
                nn.init.trunc_normal_(torch.empty(num_heads, 2 * grid - 1, 2 * grid - 1), std=0.02)
            )
        else:
            self.register_parameter("bias_table", None)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, options.expansion * width)
        self.drop_path = DropPath(drop_path_rate)

    def relative_bias(self, displacements: Tensor) -> Tensor | None:
        """(heads, N, N): entry [h, i, j] is the table's for head h and the displacement from token i to token j."""
        if self.bias_table is None:
            return None
        num_tokens = self.grid**2
        return self.bias_table.flatten(1).index_select(1, displacements).view(-1, num_tokens, num_tokens)

    def _pooled(self, x: Tensor) -> Tensor:
        if isinstance(self.pool, nn.Identity):
            return x
        return self.pool(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)

    def _attend(self, x: Tensor, bias: Tensor | None) -> Tensor:
        tokens = self._pooled(self.norm1(x)).flatten(1, 2)  # (B, N, D_in)
        return self.attn(tokens, bias)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm2(x))

    def forward(self, x: Tensor, displacements: Tensor) -> Tensor:
        """displacements: see the function of that name, for this block's grid."""
        bias = self.relative_bias(displacements)
        # Both projections, the shortcut's and attention's, get tensors of one shape and layout, so that torch.compile takes
        # their biases' gradients for the one sum they are. For two in bfloat16 torch 2.13 writes C++ that doesn't build.
        identity = self.shortcut(self._pooled(x).flatten(1, 2).contiguous())  # (B, N, D)
        tokens = self.drop_path(identity, lambda part: self._attend(part, bias), x)
        return self.drop_path(tokens, self._feed_forward, tokens).unflatten(1, (self.grid, self.grid))


def displacements(grid: int) -> Tensor:
    """Where in a flattened bias table the displacement from token i to token j stands, for each pair: (N * N,), int32."""
    side = torch.arange(grid, dtype=torch.int32)
    steps = side[None, :] - side[:, None] + grid - 1  # (from, to), at least 0
    index = steps[:, None, :, None] * (2 * grid - 1) + steps[None, :, None, :]
    return index.flatten()


def pool(stride: int, pool_type: PoolType) -> nn.Module:
    """Over (B, C, H, W), windows as large as the stride; an odd grid rounds up, as strided convolutions do: 7 becomes 4."""
    if stride == 1:
        return nn.Identity()
    if pool_type == "max":
        return nn.MaxPool2d(stride, ceil_mode=True)
    return nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
