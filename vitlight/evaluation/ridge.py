"""A linear classifier in closed form: ridge regression onto +1 for an image's class and -1 for the others.

With X (n, D + 1) the features, each less its mean over the n images and divided by its standard deviation (over n, plus
1e-5), and a last column of 100s for the bias; Y (n, K) the targets; and a penalty l2:

    W = (X'X + l2 I)^-1 X'Y = X'(X X' + l2 I)^-1 Y,     the class of x is the first of the largest entries of x W.

These are the semantics of `fewshot_lsr` in big_vision (its evaluators/fewshot_lsr.py), which computes in float32; here all
of it is in float64. Its settings, evaluators' `shots` 1, 5, 10, 25 and `l2_reg` 2^10, are those of
configs/common_fewshot.py there. The smaller of X'X and X X' is diagonalised once, and then serves every penalty.

Shape letters: n images, D width of the features, K classes, M eigenvalues: the smaller of n and D + 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlight.evaluation.features import FeatureSet

__all__ = ["BIAS", "FIXED_L2", "L2_CHOICES", "Moments", "Ridge", "chunks", "fit_ridge", "moments"]

BIAS = 100.0  # so large that the bias is hardly penalised
FIXED_L2 = 2.0**10
L2_CHOICES = tuple(2.0**power for power in range(-10, 21, 2))
_EPSILON = 1e-5
_CHUNK = 8192  # images whose features are in float64 at once


@dataclass(frozen=True)
class Moments:
    """mean, std: float64 (D,), over all images; `std` has 1e-5 added, for features that don't vary."""

    mean: Tensor
    std: Tensor

    def standardized(self, features: Tensor) -> Tensor:
        """float64 (n, D), on the device of the moments."""
        return (features.to(self.mean.device, torch.float64) - self.mean) / self.std


def chunks(features: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """(where, which): so many rows at a time, whatever the number of ranks."""
    for start in range(0, len(features), _CHUNK):
        place = slice(start, min(start + _CHUNK, len(features)))
        yield place, features[place]


def moments(features: Tensor, device: torch.device) -> Moments:
    """Of features (n, D), in two passes."""
    mean = torch.zeros(features.shape[1], dtype=torch.float64, device=device)
    for _, part in chunks(features):
        mean += part.to(device, torch.float64).sum(0)
    mean /= len(features)
    square = torch.zeros_like(mean)
    for _, part in chunks(features):
        square += (part.to(device, torch.float64) - mean).square().sum(0)
    return Moments(mean, (square / len(features)).sqrt() + _EPSILON)


@dataclass(frozen=True)
class Ridge:
    """The classifiers of all penalties: W = left diag(1 / (eigenvalues + l2)) right, with `left` (D + 1, M) and `right`
    (M, K) in float64."""

    moments: Moments
    eigenvalues: Tensor
    left: Tensor
    right: Tensor

    def weights(self, l2: float) -> Tensor:
        """W (D + 1, K) of a penalty."""
        return (self.left / (self.eigenvalues + l2)) @ self.right

    def predict(self, features: Tensor, l2: float) -> Tensor:
        """Classes int64 (n,) on the host; of equal scores the first class."""
        weights = self.weights(l2)
        found = [(self._inputs(part) @ weights).argmax(1) for _, part in chunks(features)]
        return torch.cat(found).cpu()

    def count_correct(self, images: FeatureSet, l2s: Sequence[float]) -> list[int]:
        """How many images each of the penalties classifies right."""
        counts, weights = [0] * len(l2s), [self.weights(l2) for l2 in l2s]
        for place, part in chunks(images.values):
            x, labels = self._inputs(part), images.labels[place].to(self.left.device)
            for i, each in enumerate(weights):
                counts[i] += int(((x @ each).argmax(1) == labels).sum())
        return counts

    def _inputs(self, features: Tensor) -> Tensor:
        return _with_bias(self.moments.standardized(features))


def fit_ridge(images: FeatureSet, num_classes: int, device: torch.device | str = "cpu") -> Ridge:
    """Classifiers of `num_classes` classes, computed on `device`; memory beside the features is of order (D + K)^2 where
    there are more images than features, else n^2."""
    device = torch.device(device)
    scale = moments(images.values, device)
    if len(images) <= images.values.shape[1]:
        x = _with_bias(scale.standardized(images.values))
        eigenvalues, vectors = torch.linalg.eigh(x @ x.T)
        return Ridge(scale, eigenvalues, x.T @ vectors, vectors.T @ _targets(images.labels, num_classes, device))
    size = images.values.shape[1] + 1
    xx = torch.zeros(size, size, dtype=torch.float64, device=device)
    xy = torch.zeros(size, num_classes, dtype=torch.float64, device=device)
    for place, part in chunks(images.values):
        x = _with_bias(scale.standardized(part))
        xx += x.T @ x
        xy += x.T @ _targets(images.labels[place], num_classes, device)
    eigenvalues, vectors = torch.linalg.eigh(xx)
    return Ridge(scale, eigenvalues, vectors, vectors.T @ xy)


def _with_bias(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1), value=BIAS)


def _targets(labels: Tensor, num_classes: int, device: torch.device) -> Tensor:
    return 2.0 * F.one_hot(labels.to(device), num_classes).double() - 1.0
