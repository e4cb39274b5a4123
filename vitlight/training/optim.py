"""The optimizer's settings, and the optimizer they stand for."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from vitlight.errors import InputError
from vitlight.training.adafactor import Adafactor
from vitlight.training.half_momentum import HalfMomentumAdamW, HalfMomentumSGD
from vitlight.training.lamb import Lamb
from vitlight.training.parameter_groups import Decay, parameter_groups

__all__ = ["Optimizer"]

Name = Literal["adamw", "sgd", "lamb", "adafactor"]
MomentumDtype = Literal["float32", "bfloat16"]

# What an optimizer reads besides what all read, and the values it has where a setting is null.
_READS: dict[str, dict[str, Any]] = {
    "adamw": {"beta1": 0.9, "beta2": 0.999, "eps": 1.0e-8, "momentum_dtype": "float32"},
    "sgd": {"momentum": 0.9, "nesterov": False, "momentum_dtype": "float32"},
    "lamb": {"beta1": 0.9, "beta2": 0.999, "eps": 1.0e-6},
    "adafactor": {"beta1": 0.9, "beta2": 0.999, "eps": 1.0e-30, "momentum_dtype": "float32"},
}
_NOT_READ_BY_ALL = ("beta1", "beta2", "eps", "momentum", "nesterov", "momentum_dtype")

# Where torch has a fused kernel for all that we train: one pass over the weights instead of about ten.
_FUSED_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Optimizer:
    """How gradients become steps. A setting that the named optimizer doesn't read is refused.

    Args:
        name: `adamw` (Loshchilov & Hutter 2017, 1711.05101) and `sgd`, both torch's; `lamb` (You et al. 2019, 1904.00962)
            as apex's FusedLAMB; `adafactor` as Scaling ViT (Zhai et al. 2021, 2106.04560) modified it.
        lr: Peak learning rate.
        weight_decay: Times the learning rate, taken off the weights by adamw and adafactor, and added to the gradients by
            sgd, to the step before its ratio of norms by lamb.
        head_weight_decay: Of the classifier; null: as weight_decay.
        decay: What decays: `kernels`, those of linear and convolution layers, or `all`, biases, norms, tokens and position
            embeddings too.
        beta1: Decay of the mean of the gradients; null: 0.9.
        beta2: Decay of the mean of their squares, for adafactor a bound on it; null: 0.999.
        eps: Added to the root of the latter, by adafactor to the squares; null: 1e-8, for lamb 1e-6, for adafactor 1e-30.
        momentum: Of sgd; null: 0.9.
        nesterov: Nesterov's momentum for sgd.
        momentum_dtype: In what the mean of the gradients is stored. The steps compute in the dtype of the weights.
        layer_decay: A layer's rate is lr * layer_decay ** (layers above it), the classifier's is lr (BEiT, 2106.08254).
        adaptive_clip: Each unit's gradient is cut to this part of the norm of its weights, but for the classifier's (Brock
            et al. 2021, 2102.06171), before `trainer.gradient_clip_val`.
    """

    name: Name = "adamw"
    lr: float = 1.0e-3
    weight_decay: float = 0.0
    head_weight_decay: float | None = None
    decay: Decay = "kernels"
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    momentum: float | None = None
    nesterov: bool = False
    momentum_dtype: MomentumDtype = "float32"
    layer_decay: float | None = None
    adaptive_clip: float | None = None

    def __post_init__(self) -> None:
        for name, options in (("name", Name), ("decay", Decay), ("momentum_dtype", MomentumDtype)):
            if getattr(self, name) not in get_args(options):
                raise InputError(
                    f"model.optimizer.{name}={getattr(self, name)} is not one of {', '.join(get_args(options))}"
                )
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _NOT_READ_BY_ALL and field.name not in _READS[self.name] and value != field.default:
                default = "null" if field.default is None else field.default
                raise InputError(
                    f"model.optimizer.{field.name}={value} is not read by model.optimizer.name={self.name}; set it to "
                    f"{str(default).lower()}, or choose another optimizer"
                )
        for name in ("lr", "weight_decay", "head_weight_decay", "eps"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise InputError(f"model.optimizer.{name}={value} is not a finite number from 0 up")
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < 1.0:
                raise InputError(f"model.optimizer.{name}={value} is not in [0, 1)")
        if self.nesterov and self.momentum == 0.0:
            raise InputError("model.optimizer.nesterov=true needs a model.optimizer.momentum above 0")
        if self.layer_decay is not None and not 0.0 < self.layer_decay <= 1.0:
            raise InputError(f"model.optimizer.layer_decay={self.layer_decay} is not in (0, 1]")
        if self.adaptive_clip is not None and not 0.0 < self.adaptive_clip < math.inf:
            raise InputError(f"model.optimizer.adaptive_clip={self.adaptive_clip} is not a finite number above 0")

    def parameter_groups(self, model: nn.Module) -> list[dict[str, Any]]:
        """The model's trainable parameters as `build` groups them. InputError for a `layer_decay` that can't be applied."""
        return parameter_groups(model, self.weight_decay, self.head_weight_decay, self.decay, self.layer_decay)

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """The optimizer over the model's trainable parameters, fused where torch and their devices have the kernel.

        The rate of a group is to be set as the schedule's times the group's `lr_scale`, if it has one. State saved by a
        fused or any other form, or for weights in another memory format, can be loaded into it.
        """
        groups = self.parameter_groups(model)
        weights = [weight for group in groups for weight in group["params"]]
        is_fused = all(weight.device.type in _FUSED_DEVICES for weight in weights)
        if self.name == "sgd" and any(isinstance(weight, DTensor) for weight in weights):
            is_fused = False  # torch 2.13 has no fused SGD for sharded weights
        read = {name: getattr(self, name) for name in _READS[self.name]}
        values = {name: _READS[self.name][name] if value is None else value for name, value in read.items()}
        optimizer: torch.optim.Optimizer
        if self.name == "adamw":
            adamw = torch.optim.AdamW if self.momentum_dtype == "float32" else HalfMomentumAdamW
            betas = (values["beta1"], values["beta2"])
            optimizer = adamw(groups, lr=self.lr, betas=betas, eps=values["eps"], fused=is_fused or None)
        elif self.name == "sgd":
            sgd = torch.optim.SGD if self.momentum_dtype == "float32" else HalfMomentumSGD
            momentum, nesterov = values["momentum"], values["nesterov"]
            optimizer = sgd(groups, lr=self.lr, momentum=momentum, nesterov=nesterov, fused=is_fused or None)
        elif self.name == "lamb":
            optimizer = Lamb(groups, lr=self.lr, betas=(values["beta1"], values["beta2"]), eps=values["eps"])
        else:
            dtype = getattr(torch, values.pop("momentum_dtype"))
            optimizer = Adafactor(groups, lr=self.lr, momentum_dtype=dtype, **values)
        if isinstance(optimizer, (torch.optim.AdamW, torch.optim.SGD)):
            # A fused optimizer offers to undo the loss scale of fp16 by itself, inside its step. Gradients are clipped
            # before that, so Lightning would refuse to clip; without the offer it is undone first, as for any other.
            optimizer._step_supports_amp_scaling = False
        optimizer.register_load_state_dict_pre_hook(_keep_kernel)
        optimizer.register_load_state_dict_post_hook(_lay_out_as_weights)
        return optimizer


def _keep_kernel(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """The saved state, marked with the kernel of this optimizer instead of the one that saved it."""
    kernel = {name: value for name, value in optimizer.param_groups[0].items() if name == "fused"}
    return {**state, "param_groups": [{**group, **kernel} for group in state["param_groups"]]}


def _lay_out_as_weights(optimizer: torch.optim.Optimizer) -> None:
    """The fused kernel walks a weight and its state in memory order and checks no strides: make them agree."""
    for weight, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == weight.shape and value.stride() != weight.stride():
                state[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)
