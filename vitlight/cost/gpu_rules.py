"""What a GPU does otherwise than a CPU that changes how much memory training takes; for tensors of no device (meta)."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["GpuRules"]

# torch's autocast lists for CUDA (docs of torch.amp, "CUDA Op-Specific Behavior"), as far as models use them.
_LOWER_PRECISION = {
    *("linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "mm", "bmm", "addmm", "baddbmm", "einsum"),
    "scaled_dot_product_attention",
}
_FLOAT32 = {"layer_norm", "group_norm", "softmax", "log_softmax", "sum", "prod", "pow", "exp", "norm"}


class GpuRules(TorchFunctionMode):
    """Attention is one fused kernel; under autocast products run in its dtype, norms and softmaxes in float32.

    As autocast does, a weight's cast is made once and kept until the context is left; with `keep_casts` off, as in blocks
    that are computed again, each of which is a context of its own, it is made anew.
    """

    def __init__(self, autocast_dtype: torch.dtype | None, keep_casts: bool = True) -> None:
        super().__init__()
        self.autocast_dtype = autocast_dtype
        self.keep_casts = keep_casts
        self._casts: dict[int, Tensor] = {}

    def __exit__(self, *exception: Any) -> None:
        self._casts.clear()
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if self.autocast_dtype is not None and name in _LOWER_PRECISION:
            args, kwargs = self._cast(args, self.autocast_dtype), self._cast(kwargs, self.autocast_dtype)
        elif self.autocast_dtype is not None and name in _FLOAT32:
            args, kwargs = self._cast(args, torch.float32), self._cast(kwargs, torch.float32)
        return fused_attention(*args, **kwargs) if name == "scaled_dot_product_attention" else func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if isinstance(value, dict):
            return {name: self._cast(item, dtype) for name, item in value.items()}
        if isinstance(value, tuple | list):
            return type(value)(self._cast(item, dtype) for item in value)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        is_weight = value.is_leaf and value.requires_grad
        if not (self.keep_casts and is_weight and dtype == self.autocast_dtype):
            return value.to(dtype)
        if id(value) not in self._casts:
            self._casts[id(value)] = value.to(dtype)
        return self._casts[id(value)]


def fused_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
    """As F.scaled_dot_product_attention, shapes and lifetimes only."""
    return _FusedAttention.apply(query, key, value, attn_mask)


class _FusedAttention(torch.autograd.Function):
    """The tensors of flash and memory-efficient attention: it keeps q, k, v, the output and a float32 number a row; the
    backward pass gives a bias its gradient for each image before it is summed."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        output = q.new_empty(*q.shape[:-3], q.shape[-2], q.shape[-3], v.shape[-1]).transpose(-2, -3)
        row_sums = q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, bias, output, row_sums)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, bias, _, _ = ctx.saved_tensors
        grad_bias = None
        if bias is not None and ctx.needs_input_grad[3]:
            grad_bias = q.new_empty(*q.shape[:-1], k.shape[-2]).sum_to_size(bias.shape)
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), grad_bias
