"""Which part of a network a weight belongs to: the classifier, and the depth of its layer."""

import torch
from torch import nn

from vitlight.errors import InputError
from vitlight.models import TimmModel
from vitlight.models.heads import LINEAR, classifier_layers

__all__ = ["LINEAR", "classifier_layers", "layer_depths", "set_head_bias"]


@torch.no_grad()
def set_head_bias(model: nn.Module, value: float) -> None:
    """Let every class start with this bias. InputError where the classifier has none."""
    biases = [layer.bias for layer in classifier_layers(model) if isinstance(layer.bias, nn.Parameter)]
    if not biases:
        raise InputError(f"model.head_bias_init={value}: the classifier of this model.arch has no bias; leave it out")
    for bias in biases:
        bias.fill_(value)


def layer_depths(model: nn.Module) -> dict[str, int]:
    """Depth of the layer that each weight is in, by the weight's name.

    Numbered as BEiT's layer-wise rates are (Bao et al. 2021, arXiv 2106.08254, its `optim_factory.py`): 0 for all that comes
    before the first block, blocks from 1 in their order, and one more for all that comes after the last. Models of timm
    are numbered as timm does. InputError where timm says nothing of a model's layers.
    """
    if isinstance(model, TimmModel):
        return _timm_depths(model)
    depths, depth, passed_blocks = {name: 0 for name, _ in model.named_parameters(recurse=False)}, 0, False
    for child_name, child in model.named_children():
        prefixes = {child_name: 0}
        if child_name in ("blocks", "stages"):
            blocks = {f"{child_name}.{name}": block for name, block in child.named_children()}
            if child_name == "stages":
                stages, blocks = blocks, {}
                for stage_name, stage in stages.items():
                    blocks |= {f"{stage_name}.{name}": block for name, block in stage.named_children()}
            prefixes = {name: depth + i for i, name in enumerate(blocks, start=1)}
            depth, passed_blocks = depth + len(blocks), True
        elif passed_blocks:
            prefixes = {child_name: depth + 1}
        for prefix, at in prefixes.items():
            depths |= {f"{prefix}.{name}": at for name, _ in model.get_submodule(prefix).named_parameters()}
    assert passed_blocks, f"{type(model).__name__} has neither blocks nor stages"
    return depths


def _timm_depths(model: TimmModel) -> dict[str, int]:
    matcher = getattr(model.network, "group_matcher", None)
    if matcher is None:
        raise InputError(
            f"model.optimizer.layer_decay needs to know a model's layers, and timm doesn't say those of "
            f"{model.config.name}; leave it out"
        )
    from timm.models import group_parameters

    named = group_parameters(model.network, matcher(coarse=False), reverse=True)
    return {f"network.{name}": depth for name, depth in named.items()}
