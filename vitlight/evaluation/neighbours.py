"""k nearest neighbours by cosine similarity.

Each of the k training images that are most alike votes for its class: with exp(similarity / T), T = 0.07, as in DINO (Caron
et al. 2021, arXiv 2104.14294, its eval_knn.py; weights after Wu et al. 2018, arXiv 1805.01978), or all alike. The class with
the most votes wins, of equal ones the first. Of equally similar images those that come first in the data's order are
neighbours. Similarities are computed in float64 and rounded to float32 before they are compared, so that copies of an
image are equally similar wherever they lie; an image whose features are all zero has similarity 0 to all.

Shape letters: q images asked about, n training images, D width of the features, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitlight.errors import InputError
from vitlight.evaluation.features import FeatureSet

__all__ = ["TEMPERATURE", "Neighbours", "count_votes", "find_neighbours"]

TEMPERATURE = 0.07
_QUERIES, _BANK = 1024, 16_384  # images compared at once: 128 MiB of similarities, whatever the number of ranks


@dataclass(frozen=True)
class Neighbours:
    """The k most similar training images of each image, the most similar first: similarities float32 (q, k), their classes
    int64 (q, k)."""

    similarities: Tensor
    labels: Tensor

    def predict(self, k: int, num_classes: int, temperature: float | None = TEMPERATURE) -> Tensor:
        """Classes int64 (q,) by the votes of the first k; temperature None: all votes count alike."""
        assert k <= self.labels.shape[1]
        return count_votes(self.similarities[:, :k], self.labels[:, :k], num_classes, temperature).argmax(1)


def count_votes(similarities: Tensor, labels: Tensor, num_classes: int, temperature: float | None) -> Tensor:
    """float64 (q, num_classes), summed from the most similar neighbour to the least; similarities, labels: (q, k)."""
    votes = torch.zeros(len(labels), num_classes, dtype=torch.float64, device=labels.device)
    weights = torch.ones_like(votes[:, :1]).expand(labels.shape)
    if temperature is not None:
        weights = (similarities.double() / temperature).exp()
    for neighbour in range(labels.shape[1]):  # one a row at a time: the order of the sum is certain on any device
        votes.scatter_add_(1, labels[:, neighbour, None], weights[:, neighbour, None])
    return votes


def find_neighbours(
    images: FeatureSet, queries: Tensor, ks: Sequence[int], device: torch.device | str = "cpu"
) -> Neighbours:
    """The max(ks) most similar of `images` for each of `queries` (q, D), on the host.

    Raises InputError where there are fewer training images than neighbours.
    """
    k = max(ks)
    if k > len(images):
        raise InputError(f"{k} nearest neighbours of {len(images)} training images; ask for fewer")
    similarities, labels = torch.empty(len(queries), k), torch.empty(len(queries), k, dtype=torch.int64)
    for start in range(0, len(queries), _QUERIES):
        asked = _directions(queries[start : start + _QUERIES], device)
        best = torch.empty(len(asked), 0, device=device)
        rows = torch.empty(len(asked), 0, dtype=torch.int64, device=device)
        for first in range(0, len(images), _BANK):
            bank = _directions(images.values[first : first + _BANK], device)
            alike = (asked @ bank.T).float()
            value, place = _most_alike(alike, min(k, len(bank)))
            # Rows found earlier come first, so a stable sort keeps them before equal ones.
            best, order = torch.cat([best, value], 1).sort(dim=1, descending=True, stable=True)
            rows = torch.cat([rows, place + first], 1).gather(1, order)[:, :k]
            best = best[:, :k]
        here = slice(start, start + len(asked))
        similarities[here], labels[here] = best.cpu(), images.labels[rows.cpu()]
    return Neighbours(similarities, labels)


def _directions(features: Tensor, device: torch.device | str) -> Tensor:
    """float64 (n, D) of length 1, or 0."""
    wide = features.to(device, torch.float64)
    return wide / wide.norm(dim=1, keepdim=True).clamp_min(1e-12)


def _most_alike(alike: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row of (q, n) and their columns, both (q, k), the largest first and of equal ones the first
    columns: torch.topk alone takes any of the equal ones."""
    value, place = alike.topk(k, dim=1)
    worst = value[:, -1:]
    unsure = (alike == worst).sum(1) > (value == worst).sum(1)
    for row in unsure.nonzero().flatten().tolist():
        place[row] = alike[row].sort(descending=True, stable=True).indices[:k]
    place = place.sort(dim=1).values
    value, order = alike.gather(1, place).sort(dim=1, descending=True, stable=True)
    return value, place.gather(1, order)
