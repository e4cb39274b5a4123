"""The architectures, by name: ViT, CoAtNet, ResNet, BiT and timm's. One string, `arch`, says which and how large."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, cast

from torch import nn

from vitlight.errors import InputError, did_you_mean
from vitlight.models import bit, coatnet, external, resnet, vit_config
from vitlight.models.bit import BiT, BiTConfig
from vitlight.models.coatnet import CoAtNet, CoAtNetConfig
from vitlight.models.external import TimmConfig, TimmModel
from vitlight.models.resnet import ResNet, ResNetConfig
from vitlight.models.vit import ViT
from vitlight.models.vit_config import ViTConfig

__all__ = [
    "BiT",
    "BiTConfig",
    "CoAtNet",
    "CoAtNetConfig",
    "Config",
    "Family",
    "ResNet",
    "ResNetConfig",
    "TimmConfig",
    "TimmModel",
    "ViT",
    "ViTConfig",
    "arch_family",
    "build_config",
    "build_model",
    "default_image_size",
    "list_archs",
    "set_activation_checkpointing",
]

Family = str  # "vit", "coatnet", "resnet", or what `external.family` makes of a name in timm
Config = ViTConfig | CoAtNetConfig | ResNetConfig | BiTConfig | TimmConfig

# Family, listed names, and the function that gives a name's config or None.
_FAMILIES: tuple[tuple[Family, tuple[str, ...], Callable[[str], Config | None]], ...] = (
    ("vit", (*vit_config.LADDER, *vit_config.PUBLISHED), vit_config.resolve),
    ("coatnet", (*coatnet.LADDER, *coatnet.PUBLISHED, *coatnet.STUDY), coatnet.resolve),
    ("resnet", (*resnet.LADDER, *resnet.PUBLISHED), resnet.resolve),
    ("resnet", bit.PUBLISHED, bit.resolve),
)


def list_archs() -> list[str]:
    """Every published architecture and the ladders for small images, by family, small to large.

    `build_model` also takes `vit_<size><patch>` at other patch sizes, `bit_r<50|101|152|200>x<1 to 4>`, and `timm:NAME`.
    """
    return [name for _, names, _ in _FAMILIES for name in names]


def arch_family(arch: str) -> Family:
    """The family whose curve `arch` belongs to; BiT counts as "resnet". InputError for an unknown name.

    A model of timm has its name's leading letters, such as "convnext".
    """
    return _find(arch)[0]


def default_image_size(arch: str) -> int:
    """The side in pixels that `arch` is listed at: 32 for the ladders, timm's own for its models, else 224
    or the multiple of the patch below it."""
    return _find(arch)[1].image_size


def build_config(arch: str, num_classes: int = 1000, image_size: int = 224, **overrides: Any) -> Config:
    """The frozen config `build_model` would build; arguments and errors as there."""
    _, config = _find(arch)
    options = [field.name for field in fields(config) if field.name != "name"]
    for name in overrides:
        if name not in options:
            near = did_you_mean(name, options) or f"; it has {', '.join(options)}"
            raise InputError(f"{arch} has no setting {name!r}{near}")
    values: dict[str, Any] = {"num_classes": num_classes, "image_size": image_size}
    values |= {name: tuple(value) if isinstance(value, list) else value for name, value in overrides.items()}
    return replace(config, **values)


def build_model(arch: str, num_classes: int = 1000, image_size: int = 224, **overrides: Any) -> nn.Module:
    """The model named `arch`, freshly initialised, with its frozen config as `.config`.

    `overrides` are fields of that config, such as `in_channels=1` or `drop_path_rate=0.1`. Under
    `torch.device("meta")` nothing is allocated. Logits of the returned model are (B, num_classes), float32.

    Raises InputError for an unknown name, setting or value, and an image_size that the architecture can't take.
    """
    config = build_config(arch, num_classes, image_size, **overrides)
    match config:
        case ViTConfig():
            return ViT(config)
        case CoAtNetConfig():
            return CoAtNet(config)
        case ResNetConfig():
            return ResNet(config)
        case BiTConfig():
            return BiT(config)
        case TimmConfig():
            return TimmModel(config)


def set_activation_checkpointing(model: nn.Module, enabled: bool) -> None:
    """Whether a model of `build_model` keeps only what enters each block for the backward pass, and computes the rest a
    second time: less memory for about a third more work, with the same gradients. InputError where timm's model can't."""
    assert hasattr(model, "activation_checkpointing"), f"{type(model).__name__} is none of build_model's"
    cast(Any, model).activation_checkpointing = enabled


def _find(arch: str) -> tuple[Family, Config]:
    for family, _, resolve in _FAMILIES:
        config = resolve(arch)
        if config is not None:
            return family, config
    if (config := external.resolve(arch)) is not None:
        return external.family(config.name), config
    raise InputError(f"arch {arch!r} is unknown{did_you_mean(arch, list_archs()) or '; `vitlight models` lists them'}")
