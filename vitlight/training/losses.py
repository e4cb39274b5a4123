"""What a classifier minimises: one number an image."""

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from vitlight.errors import InputError

__all__ = ["Loss", "check_loss", "image_losses"]

Loss = Literal["softmax", "sigmoid", "sigmoid_mean"]


def check_loss(loss: str, label_smoothing: float) -> None:
    """InputError unless `image_losses` takes them."""
    if loss not in get_args(Loss):
        raise InputError(f"model.loss={loss} is not one of {', '.join(get_args(Loss))}")
    if not 0.0 <= label_smoothing < 1.0:
        raise InputError(f"model.label_smoothing={label_smoothing} is not in [0, 1)")


def image_losses(
    logits: Tensor, labels: Tensor, targets: Tensor | None, loss: Loss, label_smoothing: float = 0.0
) -> Tensor:
    """The loss of each image, (B,), for logits (B, K), from its class (B,), or where given from targets (B, K): mixed or
    several classes.

    softmax: Cross-entropy; several classes share the target evenly.
    sigmoid: The sum of a binary cross-entropy for each class (Beyer et al. 2020, arXiv 2006.07159).
    sigmoid_mean: Their mean, as in DeiT III (Touvron et al. 2022, arXiv 2204.07118): a K-th of the former.

    label_smoothing: A target t becomes (1 - label_smoothing) * t + label_smoothing / K (Szegedy et al. 2015, arXiv
    1512.00567), under sigmoid as timm's BinaryCrossEntropy has it.
    """
    if loss == "softmax":
        wanted = labels if targets is None else targets / targets.sum(1, keepdim=True)
        return F.cross_entropy(logits, wanted, reduction="none", label_smoothing=label_smoothing)
    num_classes = logits.shape[1]
    dense = F.one_hot(labels, num_classes).to(logits.dtype) if targets is None else targets
    if label_smoothing:
        dense = dense * (1.0 - label_smoothing) + label_smoothing / num_classes
    losses = F.binary_cross_entropy_with_logits(logits, dense, reduction="none")
    return losses.sum(1) if loss == "sigmoid" else losses.mean(1)
