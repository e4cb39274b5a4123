"""Any model of timm by name, as `timm:NAME`: EfficientNet, ConvNeXt, NFNet and a thousand others, without their weights.

Differs from timm: logits are float32 under autocast too; a batch norm counts a batch once under activation checkpointing,
where timm alone counts it twice; images of another size than the model was built for are refused.

Shape letters: B batch, H W grid, K classes.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vitlight.errors import InputError, did_you_mean
from vitlight.models.layers import check_images, check_positive, check_rate

__all__ = ["TimmConfig", "TimmModel", "family", "resolve"]

_PREFIX = "timm:"


@dataclass(frozen=True)
class TimmConfig:
    """A model of timm. `options` are further arguments of its constructor, such as {"global_pool": "max"}."""

    name: str
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_positive(image_size=self.image_size, in_channels=self.in_channels, num_classes=self.num_classes)
        check_rate(drop_rate=self.drop_rate, drop_path_rate=self.drop_path_rate)
        if not isinstance(self.options, dict):
            raise InputError(f"options={self.options!r} must be arguments of timm's constructor by name")
        for name, ours in _OURS.items():
            if name in self.options:
                raise InputError(f"options has {name!r}, which vitlight calls {ours}; set that instead")


# Arguments of timm that have a field of their own.
_OURS = {
    "img_size": "image_size",
    "in_chans": "in_channels",
    "num_classes": "num_classes",
    "drop_rate": "drop_rate",
    "drop_path_rate": "drop_path_rate",
    "pretrained": "model.weights",
}


def resolve(arch: str) -> TimmConfig | None:
    """The config of `timm:NAME` at timm's own resolution for it; None for any other name.

    Raises InputError where timm doesn't have NAME, or isn't installed.
    """
    if not arch.startswith(_PREFIX):
        return None
    timm, name = _timm(), arch.removeprefix(_PREFIX)
    plain, _, tag = name.partition(".")
    if plain not in (names := timm.list_models()):
        near = did_you_mean(plain, names) or "; `timm.list_models()` has the names"
        raise InputError(f"arch {arch!r} is unknown to timm {timm.__version__}{near}")
    if tag:
        raise InputError(f"arch {arch!r} names weights, {tag!r}; use {_PREFIX}{plain}, which starts from fresh ones")
    return TimmConfig(plain, image_size=timm.get_pretrained_cfg(plain).input_size[-1])


# First words that say who trained or ported a model, or what its blocks have added.
_PREFIX_WORDS = ("tf", "dm", "eca", "ese", "gc", "legacy", "test", "wide")


def family(name: str) -> str:
    """The leading letters of a model's name in timm, with the number of a version: "efficientnetv2", "convnext"."""
    first, _, rest = name.partition("_")
    match = re.match(r"[a-z]+((?<=v)\d+)?", rest if first in _PREFIX_WORDS else first)
    return match[0] if match else name


class TimmModel(nn.Module):
    """A model of timm, `network`, with its config. InputError where timm can't build what the config says."""

    def __init__(self, config: TimmConfig) -> None:
        super().__init__()
        self.config = config
        self.network = _build(config)
        self._checkpointing = False
        self._hooks: list[RemovableHandle] = []

    @property
    def activation_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass; InputError on switching it on where timm can't."""
        return self._checkpointing

    @activation_checkpointing.setter
    def activation_checkpointing(self, enabled: bool) -> None:
        if enabled == self._checkpointing:
            return
        try:
            cast(Any, self.network).set_grad_checkpointing(enabled)
        except (AssertionError, AttributeError) as error:
            raise InputError(f"{_PREFIX}{self.config.name} has no activation checkpointing; leave it off") from error
        self._checkpointing = enabled
        while self._hooks:
            self._hooks.pop().remove()
        for norm in self.network.modules():
            if enabled and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                restore = partial(_restore_momentum, norm.momentum)
                self._hooks.append(norm.register_forward_pre_hook(_hold_statistics))
                self._hooks.append(norm.register_forward_hook(restore, always_call=True))

    def forward(self, images: Tensor) -> Tensor:
        """Class logits (B, K), float32, for images (B, in_channels, image_size, image_size)."""
        check_images(images, self.config.in_channels, self.config.image_size)
        return self.network(images).float()


def _hold_statistics(norm: Any, args: Any) -> None:
    """Before a batch norm: in a backward pass it runs a second time, and its statistics have this batch already."""
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1 and norm.training:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.sub_(1)


def _restore_momentum(momentum: float | None, norm: Any, args: Any, output: Any) -> None:
    norm.momentum = momentum


def _build(config: TimmConfig) -> nn.Module:
    timm, arch = _timm(), f"{_PREFIX}{config.name}"
    settings: dict[str, Any] = {ours: getattr(config, ours) for ours in ("num_classes", "drop_rate", "drop_path_rate")}
    settings |= {"in_chans": config.in_channels, **config.options}
    if timm.get_pretrained_cfg(config.name).fixed_input_size:
        settings["img_size"] = config.image_size
    while True:
        try:
            return timm.create_model(config.name, **settings)
        except (TypeError, ValueError, AssertionError) as error:
            match = re.search(r"unexpected keyword argument.*?'(\w+)'", str(error))
            refused = match[1] if match else None
            if refused in ("drop_rate", "drop_path_rate") and not settings[refused]:
                del settings[refused]  # some models have none, which is what 0 asks for
            elif refused is not None and refused in settings:
                raise InputError(f"{arch} has no setting {refused!r}; leave it out") from error
            else:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"{arch} can't be built at image_size={config.image_size}: {reason}") from error


def _timm() -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise InputError(f"architectures named {_PREFIX}NAME need timm; pip install 'vitlight[timm]'") from error
    return timm
