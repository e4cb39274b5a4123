"""Top-1, top-5 and loss as exact sums over images, equal for every batch size, worker count and number of ranks."""

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["ExactAccuracy", "target_ranks", "wilson_interval"]


def wilson_interval(count: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of Wilson (1927) for a fraction, of which `count` of `total` were seen; total is above 0."""
    z = 1.959963984540054
    share, spread = count / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + (spread / 2) ** 2) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def target_ranks(logits: Tensor, labels: Tensor) -> Tensor:
    """How many classes come before the labelled one: int64 (B,) for logits (B, K) and labels (B,).

    Classes are ordered by logit, equal logits by class number, as argmax does. A row that holds a NaN ranks its label
    last (K), so it counts as correct for no k.
    """
    target = logits.gather(1, labels[:, None])
    classes = torch.arange(logits.shape[1], device=logits.device)
    before = (logits > target) | ((logits == target) & (classes < labels[:, None]))
    return torch.where(logits.isnan().any(1), logits.shape[1], before.sum(1))


class ExactAccuracy(Metric):
    """Counts of images, of correct ones, and of those whose logits or loss aren't finite, in int64, and the loss summed in
    float64, over the rows whose weight is 1.

    num_classes: count by class, too, for the mean of the accuracies in each class.
    """

    full_state_update = False
    num_images: Tensor
    num_top1: Tensor
    num_top5: Tensor
    num_nonfinite: Tensor
    loss_sum: Tensor
    num_images_of: Tensor
    num_top1_of: Tensor

    def __init__(self, num_classes: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_classes = num_classes
        for name in ("num_images", "num_top1", "num_top5", "num_nonfinite"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("loss_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("num_images_of", "num_top1_of"):
            self.add_state(name, torch.zeros(num_classes or 0, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, losses: Tensor, weight: Tensor) -> None:
        """logits (B, K), labels (B,), per-image losses (B,), weight (B,) of 0 or 1."""
        counted = weight > 0
        ranks = target_ranks(logits, labels)
        self.num_images += counted.sum()
        self.num_top1 += (counted & (ranks < 1)).sum()
        self.num_top5 += (counted & (ranks < 5)).sum()
        self.num_nonfinite += (counted & ~(logits.isfinite().all(1) & losses.isfinite())).sum()
        self.loss_sum += torch.where(counted, losses.double(), 0.0).sum()
        if self.num_classes is not None:
            self.num_images_of.index_add_(0, labels, counted.long())
            self.num_top1_of.index_add_(0, labels, (counted & (ranks < 1)).long())

    def compute(self) -> dict[str, float | int]:
        """top1 and top5 in [0, 1], mean loss, and the counts behind them; where classes are counted mean_class_top1, the
        mean of top1 in each class that has an image."""
        count = int(self.num_images)
        by_class = {}
        if self.num_classes is not None and count:
            there = self.num_images_of > 0
            shares = self.num_top1_of[there].double() / self.num_images_of[there]
            by_class["mean_class_top1"] = float(shares.cpu().sum()) / int(there.sum())
        return {
            "top1": int(self.num_top1) / count if count else float("nan"),
            "top5": int(self.num_top5) / count if count else float("nan"),
            "loss": float(self.loss_sum) / count if count else float("nan"),
            "top1_count": int(self.num_top1),
            "num_images": count,
            "num_nonfinite": int(self.num_nonfinite),
            **by_class,
        }
