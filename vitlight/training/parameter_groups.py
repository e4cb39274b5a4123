"""Parameter groups: which weights decay, and by which part of the rate each layer learns."""

from typing import Any, Literal

from torch import nn

from vitlight.training.network_parts import LINEAR, classifier_layers, layer_depths

__all__ = ["Decay", "parameter_groups"]

Decay = Literal["kernels", "all"]


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    head_weight_decay: float | None = None,
    decay: Decay = "kernels",
    layer_decay: float | None = None,
) -> list[dict[str, Any]]:
    """Groups that hold every trainable parameter once, each with its `weight_decay`, shallow before deep.

    decay: What decays: `kernels`, the weights of linear and convolution layers, or `all`.
    head_weight_decay: For what decays of the classifier; None: as everywhere.
    layer_decay: Groups also have `lr_scale`, layer_decay ** (layers above theirs), which their rate is to be multiplied by.
        InputError for a model of timm whose layers timm doesn't name.
    """
    layers = [module for module in model.modules() if isinstance(module, LINEAR)]
    kernels = {id(layer.weight) for layer in layers if layer.weight is not None}
    head: set[int] = set()
    if head_weight_decay is not None:
        head = {id(parameter) for layer in classifier_layers(model) for parameter in layer.parameters()}
    depths = {} if layer_decay is None else layer_depths(model)
    last = max(depths.values(), default=0)
    groups: dict[tuple[int, bool, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, is_decayed = depths[name] if depths else last, decay == "all" or id(parameter) in kernels
        in_head = is_decayed and id(parameter) in head
        group = groups.setdefault((depth, not is_decayed, in_head), {"params": []})
        group["params"].append(parameter)
        group["weight_decay"] = 0.0 if not is_decayed else weight_decay if not in_head else head_weight_decay
        if layer_decay is not None:
            group["lr_scale"] = layer_decay ** (last - depth)
    return [groups[key] for key in sorted(groups)]
