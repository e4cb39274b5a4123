"""AdamW and SGD that keep the mean of the gradients in bfloat16, which saves two bytes a weight.

As in optax (`scale_by_adam(mu_dtype=...)`, `trace(accumulator_dtype=...)`), which big_vision trains its ViTs with: a step
computes in float32 and only what it stores is rounded, so the update is made of the mean before rounding. The kernels
are torch's; a step holds a float32 copy of the mean for as long as it takes. Neither timm 1.0.31 nor pytorch_optimizer
4.1.0 has such an AdamW or SGD; their Adafactor computes its bfloat16 mean in bfloat16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from vitlight.training.parts import local_part

__all__ = ["HalfMomentumAdamW", "HalfMomentumSGD", "keep_momentum_dtype"]


def keep_momentum_dtype(optimizer: torch.optim.Optimizer, name: str, dtype: torch.dtype) -> None:
    """Make `load_state_dict` leave state `name` in `dtype`: torch casts all state to the dtype of the weights. From float32
    back to bfloat16 nothing is lost, so what was saved is what is loaded."""

    def cast(loaded: torch.optim.Optimizer) -> None:
        for state in loaded.state.values():
            if name in state:
                state[name] = state[name].to(dtype)

    optimizer.register_load_state_dict_post_hook(cast)


class HalfMomentumAdamW(torch.optim.AdamW):
    """torch's AdamW with a bfloat16 mean of the gradients, `exp_avg`; settings and state's names are torch's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_momentum_dtype(self, "exp_avg", torch.bfloat16)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _evaluate(closure)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {
                        "step": torch.zeros((), dtype=torch.float32, device=weight.device if group["fused"] else "cpu"),
                        "exp_avg": torch.zeros_like(weight, dtype=torch.bfloat16),
                        "exp_avg_sq": torch.zeros_like(weight),
                    }
            states = [self.state[weight] for weight in weights]
            means = [_read(state["exp_avg"], weight) for state, weight in zip(states, weights, strict=True)]
            adamw(
                [local_part(weight) for weight in weights],
                [local_part(weight.grad) for weight in weights],
                means,
                [local_part(state["exp_avg_sq"]) for state in states],
                [],
                [state["step"] for state in states],
                fused=group["fused"],
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            _store(states, "exp_avg", means)
        return loss


class HalfMomentumSGD(torch.optim.SGD):
    """torch's SGD with a bfloat16 `momentum_buffer`; settings and state's names are torch's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        keep_momentum_dtype(self, "momentum_buffer", torch.bfloat16)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = _evaluate(closure)
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight] = {"momentum_buffer": torch.zeros_like(weight, dtype=torch.bfloat16)}
            states = [self.state[weight] for weight in weights]
            buffers = [_read(state["momentum_buffer"], weight) for state, weight in zip(states, weights, strict=True)]
            sgd(
                [local_part(weight) for weight in weights],
                [local_part(weight.grad) for weight in weights],
                list(buffers),
                fused=group["fused"],
                weight_decay=group["weight_decay"],
                momentum=group["momentum"],
                lr=group["lr"],
                dampening=0.0,
                nesterov=group["nesterov"],
                maximize=False,
            )
            _store(states, "momentum_buffer", buffers)
        return loss


def _evaluate(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def _read(mean: Tensor, weight: Tensor) -> Tensor:
    """In the dtype of the weight; of a weight that is split over ranks this rank's part."""
    return local_part(mean).to(weight.dtype)


def _store(states: list[dict[str, Tensor]], name: str, values: list[Tensor]) -> None:
    for state, value in zip(states, values, strict=True):
        local_part(state[name]).copy_(value)
