"""Models of a few thousand random numbers, one a family, with every kind of tensor that other projects name."""

from typing import Any

import torch
from torch import Tensor, nn

from vitlight.models import build_model

__all__ = ["VIT", "State", "bit", "coatnet", "copied", "resnet", "same_numbers", "vit"]

State = dict[str, Tensor]

VIT = {"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "num_classes": 5, "image_size": 32}
COATNET = {
    **{"widths": (8, 8, 16, 16, 32), "depths": (2, 1, 1, 2, 1), "head_dim": 8, "num_classes": 5, "image_size": 64},
    **{"shortcut_projection": "on_change", "norm_position": "after_pool"},
}
BIT = {"depths": (1, 1), "num_groups": 32, "num_classes": 5, "image_size": 32}


def vit(seed: int = 0, **options: Any) -> nn.Module:
    return randomised(build_model("vit_s16", **{**VIT, **options}), seed)


def coatnet(seed: int = 0, **options: Any) -> nn.Module:
    return randomised(build_model("coatnet_0", **{**COATNET, **options}), seed)


def bit(seed: int = 0, **options: Any) -> nn.Module:
    return randomised(build_model("bit_r50x1", **{**BIT, **options}), seed)


def resnet(seed: int = 0, **options: Any) -> nn.Module:
    shape = {"depths": (1, 1, 1, 1), "widths": (4, 8, 8, 8), "stem_width": 4, "num_classes": 5, "image_size": 32}
    return randomised(build_model("resnet50", **{**shape, **options}), seed)


@torch.no_grad()
def randomised(model: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5, generator=generator)
        else:
            tensor.fill_(seed + 3)
    return model


def copied(model: nn.Module) -> State:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_numbers(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
