"""Optimizers and their parameter groups."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitlight.errors import InputError

__all__ = ["AdamW", "parameter_groups"]


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2017, 1711.05101): the decay is multiplied by the learning rate, as in torch.

    Args:
        lr: Peak learning rate.
        weight_decay: Of matrices and convolution kernels only; biases, norms, tokens, position embeddings and other
            vectors are not decayed.
        beta1: Decay of the mean of the gradients.
        beta2: Decay of the mean of their squares.
        eps: Added to the root of the latter.
    """

    lr: float = 1.0e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1.0e-8

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise InputError(f"model.optimizer.{name}={getattr(self, name)} is not a finite number from 0 up")
        for name in ("beta1", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"model.optimizer.{name}={getattr(self, name)} is not in [0, 1)")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            parameter_groups(model, self.weight_decay), lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups that hold every trainable parameter once: the kernels of linear and convolution layers, with decay,
    and the rest, without."""
    kernels = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, (nn.Linear, nn.modules.conv._ConvNd)) and module.weight is not None
    }
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if id(parameter) in kernels]
    others = [parameter for parameter in parameters if id(parameter) not in kernels]
    assert len(decayed) + len(others) == len(parameters)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
