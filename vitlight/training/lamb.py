"""LAMB (You et al. 2019, arXiv 1904.00962), the form of apex's FusedLAMB that DeiT III and ResNet Strikes Back train with.

Differs from the paper: both moments are corrected for their bias, the ratio of norms is not bounded, and weights without
decay keep plain Adam steps. apex also clips all gradients to a common norm of 1 before the step; that is
`trainer.gradient_clip_val=1.0` here. Own code, because pytorch_optimizer's has the paper's bound of 10 on the norm of the
weights, corrects no second moment and takes the ratio for every weight; none of these can be switched.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vitlight.training.parts import local_part, whole_norms

__all__ = ["Lamb"]


class Lamb(torch.optim.Optimizer):
    """Adam's step plus the decay term, brought to the norm of each weight tensor times `lr`. Of weights that are split over
    ranks, each computes its own part, and the norms are exchanged once a group.

    params: Weights or groups of them; groups whose `weight_decay` is 0 take Adam's step as it is.
    betas: Decay of the mean of the gradients, and of the mean of their squares.
    eps: Added to the root of the latter.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1.0e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if weights:
                self._step(weights, group)
        return loss

    def _step(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        for weight in weights:
            if not self.state[weight]:
                self.state[weight] = {
                    "step": torch.zeros(()),  # on the CPU: reading it waits for nothing
                    "exp_avg": torch.zeros_like(weight),
                    "exp_avg_sq": torch.zeros_like(weight),
                }
        states = [self.state[weight] for weight in weights]
        for state in states:
            state["step"] += 1
        beta1, beta2 = group["betas"]
        parts = [local_part(weight) for weight in weights]
        grads = [local_part(weight.grad) for weight in weights if weight.grad is not None]
        means = [local_part(state["exp_avg"]) for state in states]
        squares = [local_part(state["exp_avg_sq"]) for state in states]
        steps = [state["step"].item() for state in states]

        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - beta2**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, [1 - beta1**step for step in steps])
        torch._foreach_div_(updates, roots)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parts, alpha=group["weight_decay"])
            norms, update_norms = whole_norms([*parts, *updates], weights[0]).chunk(2)
            ratios = torch.where((norms > 0) & (update_norms > 0), norms / update_norms, 1.0)
            torch._foreach_mul_(updates, ratios.unbind())
        torch._foreach_add_(parts, updates, alpha=-group["lr"])
