"""Adaptive gradient clipping (Brock et al. 2021, arXiv 2102.06171, section 4.1)."""

import torch
from torch import Tensor, nn

from vitlight.training.network_parts import classifier_layers

__all__ = ["clip_adaptively"]


@torch.no_grad()
def clip_adaptively(model: nn.Module, threshold: float) -> None:
    """Shrink the gradient of each unit to at most `threshold` times the norm of the unit's weights, or of 1e-3 where that is
    larger, so that what starts at zero can leave it. The classifier is left alone, as in the paper.

    A unit is what makes one output: a row of a linear layer, a kernel of a convolution; a vector is one unit as a whole, as
    in the paper's code.
    """
    head = {id(parameter) for layer in classifier_layers(model) for parameter in layer.parameters()}
    for weight in model.parameters():
        if weight.grad is not None and id(weight) not in head:
            # Not in place: the norm of a sharded vector is a sum over ranks, which has to be made first.
            most = _unit_norms(weight).clamp(min=1e-3) * threshold
            weight.grad.mul_((most / _unit_norms(weight.grad).clamp(min=1e-6)).clamp(max=1.0).to(weight.grad.dtype))


def _unit_norms(x: Tensor) -> Tensor:
    """Float32 (C, 1, ...) of (C, ...), or a scalar of a vector."""
    if x.ndim < 2:
        return torch.linalg.vector_norm(x, dtype=torch.float32)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True, dtype=torch.float32)
