"""Optimizers and their parameter groups."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vitlight.errors import InputError

__all__ = ["AdamW", "parameter_groups"]

# Where torch has a fused kernel for all that we train: one pass over the weights instead of about ten.
_FUSED_DEVICES = ("cpu", "cuda")


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
        """torch's AdamW over the model's trainable parameters, fused where their devices have the kernel.

        State saved by either form, or for weights in another memory format, can be loaded into it.
        """
        groups = parameter_groups(model, self.weight_decay)
        is_fused = all(weight.device.type in _FUSED_DEVICES for group in groups for weight in group["params"])
        optimizer = torch.optim.AdamW(
            groups, lr=self.lr, betas=(self.beta1, self.beta2), eps=self.eps, fused=is_fused or None
        )
        # A fused optimizer offers to undo the loss scale of fp16 by itself, inside its step. Gradients are clipped before
        # that, so Lightning would refuse to clip; without the offer it is undone first, as for any other optimizer.
        optimizer._step_supports_amp_scaling = False
        optimizer.register_load_state_dict_pre_hook(_keep_kernel)
        optimizer.register_load_state_dict_post_hook(_lay_out_as_weights)
        return optimizer


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The saved state, marked with the kernel of this optimizer instead of the one that saved it."""
    fused = optimizer.param_groups[0]["fused"]
    return {**state, "param_groups": [{**group, "fused": fused} for group in state["param_groups"]]}


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """The fused kernel walks a weight and its state in memory order and checks no strides: make them agree."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight).copy_(value)


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
