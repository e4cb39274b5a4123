"""Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171, section 4.1)."""

import torch
from torch import Tensor, nn

from vitlight.training.network_parts import classifier_layers
from vitlight.training.parts import local_part, whole_norms

__all__ = ["clip_adaptively"]


@torch.no_grad()
def clip_adaptively(model: nn.Module, threshold: float) -> None:
    """Shrink the gradient of each unit to at most `threshold` times the norm of the unit's weights, or of 1e-3 where that is
    larger, so that what starts at zero can leave it. The classifier is left alone, as in the paper.

    A unit is what makes one output: a row of a linear layer, a kernel of a convolution; a vector is one unit as a whole, as
    in the paper's code. Weights that are split over ranks are so by units, and the norms of their vectors are exchanged, all
    at once.
    """
    head = {id(parameter) for layer in classifier_layers(model) for parameter in layer.parameters()}
    weights = [weight for weight in model.parameters() if weight.grad is not None and id(weight) not in head]
    vectors = [weight for weight in weights if weight.ndim < 2]
    if vectors:
        parts = [local_part(each).float() for weight in vectors for each in (weight, _gradient(weight))]
        norms = iter(whole_norms(parts, vectors[0]))
    for weight in weights:
        gradient = local_part(_gradient(weight))
        if weight.ndim < 2:
            norm, gradient_norm = next(norms), next(norms)
        else:
            norm, gradient_norm = _unit_norms(local_part(weight)), _unit_norms(gradient)
        most = norm.clamp(min=1e-3) * threshold
        gradient.mul_((most / gradient_norm.clamp(min=1e-6)).clamp(max=1.0).to(gradient.dtype))


def _gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None
    return weight.grad


def _unit_norms(x: Tensor) -> Tensor:
    """Float32 (C, 1, ...) of (C, ...)."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True, dtype=torch.float32)
