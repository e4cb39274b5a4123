"""Adafactor (Shazeer & Stern 2018, arXiv 1804.04235) as Scaling Vision Transformers modified it (Zhai et al. 2021, arXiv
2106.04560, section 3.4): a mean of the updates that may be kept in bfloat16, a bound on the decay of the second moment, and
a learning rate that is neither relative to the step nor to the weights' size.

As in big_vision's `scale_by_adafactor`: factored over the two largest dimensions where both have at least 32 entries, no
clipping of single updates (gradients are clipped together, `trainer.gradient_clip_val`), and the mean is taken before
the learning rate. Differs from it: queries, keys and values of an attention are one matrix here, and share one
factorisation. Own code, because pytorch_optimizer's factors the last two dimensions, which are a convolution's 3 x 3, and
puts the learning rate inside the mean.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitlight.training.half_momentum import keep_momentum_dtype
from vitlight.training.parts import local_part, mean_of_parts, zeros_as_part

__all__ = ["Adafactor"]

_MIN_FACTORED = 32


class Adafactor(torch.optim.Optimizer):
    """Steps of `lr` times a mean of gradients over the root of their factored second moment; decay is times `lr`. Of a
    weight that is split over ranks each computes its own rows; means over rows are exchanged, one or two vectors a weight.

    beta1: Decay of the mean of the updates.
    beta2: Bound on the decay of the second moment, which at step t is 1 - t**-0.8.
    eps: Added to the squared gradients.
    momentum_dtype: Of the mean as it is stored; a step computes with it in the dtype of the weights.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1.0e-30,
        weight_decay: float = 0.0,
        momentum_dtype: torch.dtype = torch.float32,
    ) -> None:
        defaults = {"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)
        self.momentum_dtype = momentum_dtype
        keep_momentum_dtype(self, "exp_avg", momentum_dtype)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._step(weight, group)
        return loss

    def _step(self, weight: Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        grad, state, dims = local_part(weight.grad), self.state[weight], _factored_dims(weight)
        squared = grad.square().add_(group["eps"])
        moments = [squared] if dims is None else [mean_of_parts(squared, dim, weight) for dim in dims]
        names = ["exp_avg_sq"] if dims is None else ["exp_avg_sq_row", "exp_avg_sq_column"]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU: reading it waits for nothing
            state["exp_avg"] = torch.zeros_like(weight, dtype=self.momentum_dtype)
            if dims is None:
                state["exp_avg_sq"] = torch.zeros_like(weight)
            else:
                shapes = [[1 if each == dim else size for each, size in enumerate(weight.shape)] for dim in dims]
                state.update({name: zeros_as_part(weight, shape) for name, shape in zip(names, shapes, strict=True)})
        state["step"] += 1
        beta2 = min(group["beta2"], 1 - state["step"].item() ** -0.8)
        for name, moment in zip(names, moments, strict=True):
            local_part(state[name]).lerp_(moment, 1 - beta2)
        if dims is None:
            update = grad * local_part(state["exp_avg_sq"]).rsqrt()
        else:
            row, column = (local_part(state[name]) for name in names)
            update = grad * (row / mean_of_parts(row, dims[1], weight)).rsqrt_() * column.rsqrt()
        stored, part = local_part(state["exp_avg"]), local_part(weight)
        mean = stored.to(part.dtype, copy=True).lerp_(update, 1 - group["beta1"])
        stored.copy_(mean)
        part.mul_(1 - group["lr"] * group["weight_decay"]).add_(mean, alpha=-group["lr"])


def _factored_dims(weight: Tensor) -> tuple[int, int] | None:
    """The largest dimension and the next, whose means stand for the second moment; None where they are too small."""
    if weight.ndim < 2:
        return None
    *_, second, largest = sorted(range(weight.ndim), key=lambda dim: (weight.shape[dim], dim))
    return (largest, second) if weight.shape[second] >= _MIN_FACTORED else None
