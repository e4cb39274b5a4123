"""What the classifiers on frozen features cost, beside scikit-learn's on the same features.

    OMP_NUM_THREADS=1 python benchmarks/frozen_features.py [--rounds 3] [--markdown docs/frozen_features.md]

Features are made up: clouds of random numbers, one a class, in float32. Both compute in float64, with the same number of
threads, turn by turn; reported are CPU seconds of the process, the median over the rounds with the least and the most, and
the ratio of the medians. Every turn, the predictions of both must be equal (logistic regression: all but 1 in 1,000, as both
stop near the optimum).
"""

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.pages import cpu_name, write_measured
from tests.evaluation.fake_features import fake_features
from vitlight.evaluation.features import FeatureSet
from vitlight.evaluation.logistic import fit_logistic
from vitlight.evaluation.neighbours import find_neighbours
from vitlight.evaluation.ridge import L2_CHOICES, fit_ridge

Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Case:
    """Each contender maps training images and features (n, D) to what it predicts, penalty by penalty or k by k."""

    what: str
    num_train: int
    num_test: int
    width: int
    num_classes: int
    ours: Callable[[FeatureSet, torch.Tensor, int], list[Classes]]
    theirs: Callable[[NDArray[Any], Classes, NDArray[Any], int], list[Classes]]
    allowed: float = 0.0

    def __str__(self) -> str:
        size = f"{self.num_train:,} images, {self.width} features, {self.num_classes} classes"
        return f"{self.what}: {size}, {self.num_test:,} asked"


def our_ridge(train: FeatureSet, features: torch.Tensor, num_classes: int) -> list[Classes]:
    fitted = fit_ridge(train, num_classes)
    return [fitted.predict(features, l2).numpy() for l2 in L2_CHOICES]


def their_ridge(x: NDArray[Any], labels: Classes, new: NDArray[Any], num_classes: int) -> list[Classes]:
    mean, std = x.mean(0), x.std(0) + 1e-5
    x, new = (np.c_[(part - mean) / std, np.full(len(part), 100.0)] for part in (x, new))
    targets = 2.0 * np.eye(num_classes)[labels] - 1
    return [Ridge(alpha=l2, fit_intercept=False).fit(x, targets).predict(new).argmax(1) for l2 in L2_CHOICES]


def our_neighbours(train: FeatureSet, features: torch.Tensor, num_classes: int) -> list[Classes]:
    found = find_neighbours(train, features, (10, 20))
    return [found.predict(k, num_classes, None).numpy() for k in (10, 20)]


def their_neighbours(x: NDArray[Any], labels: Classes, new: NDArray[Any], num_classes: int) -> list[Classes]:
    fitted = [KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(x, labels) for k in (10, 20)]
    return [each.predict(new) for each in fitted]


def our_logistic(train: FeatureSet, features: torch.Tensor, num_classes: int) -> list[Classes]:
    return [fitted.predict(features).numpy() for fitted in fit_logistic(train, num_classes, [1.0])]


def their_logistic(x: NDArray[Any], labels: Classes, new: NDArray[Any], num_classes: int) -> list[Classes]:
    mean, std = x.mean(0), x.std(0) + 1e-5
    fitted = LogisticRegression(C=1.0, tol=1e-6, max_iter=1000).fit((x - mean) / std, labels)
    return [fitted.predict((new - mean) / std)]


CASES = (
    Case(f"ridge, {len(L2_CHOICES)} penalties", 500, 5_000, 384, 50, our_ridge, their_ridge),
    Case(f"ridge, {len(L2_CHOICES)} penalties", 20_000, 5_000, 384, 50, our_ridge, their_ridge),
    Case("10 and 20 neighbours", 20_000, 1_000, 384, 50, our_neighbours, their_neighbours),
    Case("logistic, C = 1", 5_000, 5_000, 128, 20, our_logistic, their_logistic, allowed=1e-3),
)


def compare(case: Case, rounds: int) -> str:
    """A row of the table: CPU seconds of both, and the ratio."""
    train = fake_features(case.num_train, case.width, case.num_classes, seed=0, spread=6.0)
    images = fake_features(case.num_test, case.width, case.num_classes, seed=1, spread=6.0)
    x, new, labels = train.values.double().numpy(), images.values.double().numpy(), train.labels.numpy()
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(rounds):
        start = time.process_time()
        ours = case.ours(train, images.values, case.num_classes)
        middle = time.process_time()
        theirs = case.theirs(x, labels, new, case.num_classes)
        seconds["ours"].append(middle - start)
        seconds["theirs"].append(time.process_time() - middle)
        different = max(float(np.mean(one != other)) for one, other in zip(ours, theirs, strict=True))
        if different > case.allowed:
            raise SystemExit(f"{case}: {different:.2%} of the predictions differ")
    cells = [f"{median(each):.2f} ({min(each):.2f} to {max(each):.2f})" for each in seconds.values()]
    ratio = median(seconds["theirs"]) / median(seconds["ours"])
    return f"| {case} | {cells[0]} | {cells[1]} | {ratio:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--markdown", type=Path, help="write the table between the marks of this page")
    args = parser.parse_args()
    lines = [
        "| fitted and asked | vitlight, CPU s | scikit-learn, CPU s | ratio |",
        "|---|---|---|---|",
        *(compare(case, args.rounds) for case in CASES),
    ]
    lines += [
        "",
        f"{cpu_name()}, {torch.get_num_threads()} thread, Python {platform.python_version()}, torch {torch.__version__}, "
        f"scikit-learn {sklearn.__version__}; median of {args.rounds} turns, least to most. "
        "All predictions of both are equal, of logistic regression at least 999 in 1,000.",
    ]
    text = "\n".join(lines)
    print(text)
    if args.markdown is not None:
        write_measured(args.markdown, text)


if __name__ == "__main__":
    main()
