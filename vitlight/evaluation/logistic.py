"""A linear classifier by multinomial logistic regression on all training images, fitted with L-BFGS.

On features standardised as in `ridge`, weights W (D, K) and biases b (K) minimise

    1/n sum_i -log softmax(x_i W + b)[label_i]  +  1/(2 C n) |W|^2,

which is scikit-learn's LogisticRegression with the same C; the biases are not penalised. For two classes scikit-learn fits
one vector w = W[:, 1] - W[:, 0] with the penalty |w|^2 / (2 C n). Of all W with this difference the shortest has
|W|^2 = |w|^2 / 2, so that twice the penalty gives its decision function. All of it is in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor

from vitlight.evaluation.features import FeatureSet
from vitlight.evaluation.ridge import Moments, chunks, moments

__all__ = ["C_CHOICES", "FIXED_C", "Logistic", "fit_logistic"]

FIXED_C = 1.0  # scikit-learn's default
C_CHOICES = tuple(10.0**power for power in range(-4, 3))
_MAX_STEPS = 1000
_TOLERANCE = 1e-4  # of the largest entry of the gradient; scikit-learn's default


@dataclass(frozen=True)
class Logistic:
    """W (D, K) and b (K) in float64, for features that `moments` standardises."""

    moments: Moments
    weights: Tensor
    bias: Tensor
    c: float
    num_steps: int
    converged: bool

    def predict(self, features: Tensor) -> Tensor:
        """Classes int64 (n,) on the host; of equal logits the first class."""
        found = [(self.moments.standardized(part) @ self.weights + self.bias).argmax(1) for _, part in chunks(features)]
        return torch.cat(found).cpu()

    def count_correct(self, images: FeatureSet) -> int:
        return int((self.predict(images.values) == images.labels).sum())


def fit_logistic(
    images: FeatureSet, num_classes: int, cs: Sequence[float], device: torch.device | str = "cpu"
) -> Iterator[Logistic]:
    """A classifier for each C, from the smallest to the largest; each begins where the one before ended."""
    device = torch.device(device)
    scale, width = moments(images.values, device), images.values.shape[1]
    start = np.zeros((width + 1) * num_classes)

    def loss_and_gradient(flat: NDArray[np.float64], c: float) -> tuple[float, NDArray[np.float64]]:
        parameters = torch.from_numpy(flat).to(device).view(width + 1, num_classes)
        weights, bias = parameters[:-1], parameters[-1]
        loss, gradient = torch.zeros((), dtype=torch.float64, device=device), torch.zeros_like(parameters)
        # The weights take over the standard deviations, which spares a pass over the features.
        divided = weights / scale.std[:, None]
        for place, part in chunks(images.values):
            x, labels = part.to(device, torch.float64) - scale.mean, images.labels[place].to(device)
            logits = torch.addmm(bias, x, divided)
            loss += F.cross_entropy(logits, labels, reduction="sum")
            slopes = logits.softmax(1) - F.one_hot(labels, num_classes)
            gradient[:-1] += x.T @ slopes
            gradient[-1] += slopes.sum(0)
        gradient[:-1] /= scale.std[:, None]
        loss, gradient = loss / len(images), gradient / len(images)
        penalty = (2 if num_classes == 2 else 1) / (c * len(images))
        gradient[:-1] += penalty * weights
        return float(loss + penalty / 2 * weights.square().sum()), gradient.cpu().numpy().ravel()

    for c in sorted(cs):
        options = {"maxiter": _MAX_STEPS, "gtol": _TOLERANCE, "ftol": 0.0, "maxfun": 2 * _MAX_STEPS}
        found = minimize(loss_and_gradient, start, args=(c,), jac=True, method="L-BFGS-B", options=options)
        start = found.x
        parameters = torch.from_numpy(start.copy()).to(device).view(width + 1, num_classes)
        converged = bool(np.abs(found.jac).max() <= _TOLERANCE)
        yield Logistic(scale, parameters[:-1], parameters[-1], c, int(found.nit), converged)
