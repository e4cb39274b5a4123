"""What the classifiers on frozen features come to: counts of images, and which penalty was chosen where."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitlight.evaluation.features import FeatureSet
from vitlight.evaluation.logistic import C_CHOICES, FIXED_C, Logistic, fit_logistic
from vitlight.evaluation.neighbours import TEMPERATURE, find_neighbours
from vitlight.evaluation.ridge import FIXED_L2, L2_CHOICES, Ridge, fit_ridge

__all__ = ["Score", "score_few_shot", "score_linear", "score_neighbours"]


@dataclass(frozen=True)
class Score:
    """num_correct: of `num_images`, one for each seed. setting: the classifier's, for people. num_train: images that each
    classifier was fitted to. column: its name in tables, such as `few_shot/10_shot`."""

    column: str
    setting: str
    num_train: int
    num_images: int
    num_correct: tuple[int, ...]

    @property
    def top1(self) -> float:
        """In [0, 1]; the mean over the seeds."""
        return sum(self.num_correct) / (len(self.num_correct) * self.num_images)

    @property
    def top1_std(self) -> float | None:
        """Standard deviation over the seeds (n - 1); None where there is one."""
        if len(self.num_correct) < 2:
            return None
        return statistics.stdev(self.num_correct) / self.num_images

    def as_record(self) -> dict[str, Any]:
        return {
            "column": self.column,
            "setting": self.setting,
            "top1": self.top1,
            "top1_std": self.top1_std,
            "num_seeds": len(self.num_correct),
            "num_correct": list(self.num_correct),
            "num_images": self.num_images,
            "num_train": self.num_train,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Score":
        names = ("column", "setting", "num_train", "num_images")
        return cls(**{name: record[name] for name in names}, num_correct=tuple(record["num_correct"]))


def score_few_shot(
    train: FeatureSet,
    chosen: NDArray[np.int64],
    shots: Sequence[int],
    evaluated: FeatureSet,
    val: FeatureSet | None,
    device: torch.device | str = "cpu",
    l2: float = FIXED_L2,
) -> list[Score]:
    """For each number of shots the accuracy on `evaluated` with `l2` and, where `val` is given, also with the one of
    L2_CHOICES that is best on `val` over all seeds, of equal ones the largest.

    chosen: (S, K, k) rows of `train`, for each of S seeds and K classes; the first so many of k are taken.
    """
    scores = []
    for num in shots:
        ridges = [_fit_to(train, seed_rows[:, :num], device) for seed_rows in chosen]
        name, num_train = f"few_shot/{num}_shot", num * chosen.shape[1]
        counts = tuple(ridge.count_correct(evaluated, [l2])[0] for ridge in ridges)
        scores.append(Score(name, _named(l2), num_train, len(evaluated), counts))
        if val is not None:
            best = _best(
                L2_CHOICES, np.sum([ridge.count_correct(val, L2_CHOICES) for ridge in ridges], 0).tolist(), max
            )
            counts = tuple(ridge.count_correct(evaluated, [best])[0] for ridge in ridges)
            scores.append(Score(f"{name}_tuned", f"{_named(best)}, chosen on val", num_train, len(evaluated), counts))
    return scores


def _fit_to(train: FeatureSet, rows: NDArray[np.int64], device: torch.device | str) -> Ridge:
    flat = torch.from_numpy(rows.reshape(-1))
    return fit_ridge(FeatureSet(train.values[flat], train.labels[flat]), len(rows), device)


def _named(l2: float) -> str:
    """`l2=2^10` of 1024, `l2=3` of 3."""
    mantissa, exponent = math.frexp(l2)
    return f"l2=2^{exponent - 1}" if mantissa == 0.5 else f"l2={l2:g}"


def _best(choices: Sequence[float], counts: Sequence[int], of_equal: Any) -> float:
    return float(of_equal(choice for choice, count in zip(choices, counts, strict=True) if count == max(counts)))


def score_neighbours(
    train: FeatureSet,
    ks: Sequence[int],
    num_classes: int,
    evaluated: FeatureSet,
    device: torch.device | str = "cpu",
) -> list[Score]:
    """For each k with DINO's weights and with all votes alike."""
    found, scores = find_neighbours(train, evaluated.values, ks, device), []
    for k in ks:
        for suffix, temperature, setting in (
            ("", TEMPERATURE, f"votes exp(cosine / {TEMPERATURE:g})"),
            ("_majority", None, "votes all alike"),
        ):
            correct = int((found.predict(k, num_classes, temperature) == evaluated.labels).sum())
            scores.append(Score(f"knn/{k}{suffix}", setting, len(train), len(evaluated), (correct,)))
    return scores


def score_linear(
    train: FeatureSet,
    num_classes: int,
    evaluated: FeatureSet,
    val: FeatureSet | None,
    device: torch.device | str = "cpu",
    l2: float = FIXED_L2,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Score]:
    """Of ridge and logistic regression on all of `train`: with `l2` and C = 1 and, where `val` is given, with the l2
    and C that are best on it, of equal ones the strongest penalty. advance: called with 1 for each C that is done."""
    ridge, sizes = fit_ridge(train, num_classes, device), (len(train), len(evaluated))
    counts = ridge.count_correct(evaluated, [l2])
    scores = [Score("linear/ridge", _named(l2), *sizes, tuple(counts))]
    if val is not None:
        best = _best(L2_CHOICES, ridge.count_correct(val, L2_CHOICES), max)
        counts = ridge.count_correct(evaluated, [best])
        scores.append(Score("linear/ridge_tuned", f"{_named(best)}, chosen on val", *sizes, tuple(counts)))
    fitted = {}
    for each in fit_logistic(train, num_classes, (FIXED_C,) if val is None else C_CHOICES, device):
        fitted[each.c] = each
        advance(1)
    scores.append(_logistic_score("linear/logistic", fitted[FIXED_C], "", sizes, evaluated))
    if val is not None:
        c = _best(C_CHOICES, [fitted[c].count_correct(val) for c in C_CHOICES], min)
        scores.append(_logistic_score("linear/logistic_tuned", fitted[c], ", chosen on val", sizes, evaluated))
    return scores


def _logistic_score(column: str, fitted: Logistic, how: str, sizes: tuple[int, int], evaluated: FeatureSet) -> Score:
    state = "" if fitted.converged else f", not converged after {fitted.num_steps} steps"
    return Score(column, f"C={fitted.c:g}{how}{state}", *sizes, (fitted.count_correct(evaluated),))
