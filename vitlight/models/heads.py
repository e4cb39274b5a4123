"""What gives the logits, and what goes into it: a network's features."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitlight.models.external import TimmModel

__all__ = ["LINEAR", "classifier_inputs", "classifier_layers"]

LINEAR = (nn.Linear, nn.modules.conv._ConvNd)


def classifier_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of a model of `build_model` that give the logits: one, or several where timm's model has several heads."""
    if not isinstance(model, TimmModel):
        return [model.get_submodule("head")]
    found = model.network.get_classifier()  # type: ignore[operator]
    heads = found if isinstance(found, (tuple, list)) else [found]
    linear = [[layer for layer in head.modules() if isinstance(layer, LINEAR)] for head in heads]
    return [layers[-1] for layers in linear if layers]  # some heads have a hidden layer


@contextmanager
def classifier_inputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """While this is open, each forward pass of `model` fills the list with what its classifier took, (B, D) a layer.

    The model runs uncompiled meanwhile: a compiled one doesn't look at hooks that came later.
    """
    caught: list[Tensor] = []

    def catch(layer: nn.Module, args: tuple[Any, ...]) -> None:
        caught.append(_as_vectors(layer, args[0].detach()))

    hooks = [layer.register_forward_pre_hook(catch) for layer in classifier_layers(model)]
    compiled, cast(Any, model)._compiled_call_impl = model._compiled_call_impl, None
    try:
        yield caught
    finally:
        cast(Any, model)._compiled_call_impl = compiled
        for hook in hooks:
            hook.remove()


def _as_vectors(layer: nn.Module, features: Tensor) -> Tensor:
    """(B, D): what some models of timm classify place by place is averaged over the places."""
    if features.ndim == 2:
        return features
    channels_last = isinstance(layer, nn.Linear)
    return torch.mean(features.flatten(1, -2), 1) if channels_last else features.flatten(2).mean(2)
