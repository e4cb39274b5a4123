"""The next run: which of the runs not made yet would narrow a law's recommendation most for its compute.

The draws of a fit stand for what is known of its parameters. Over them, a target g (the logarithm of the best size at a
budget, of the error there) and what a candidate would read, y = log error + noise of variance s^2, vary together. To first
order, as in a linear Gaussian model, reading the candidate leaves of g the variance

    Var(g) - Cov(g, y)^2 / (Var(y) + s^2)

(Chaloner & Verdinelli 1995, "Bayesian experimental design: a review", Statistical Science 10). This needs neither a refit
for each candidate nor a derivative. Candidates are taken one after another, each given those before it. Extreme draws, such
as of an exponent near 0, are drawn in to the quantiles TRIM and 1 - TRIM first: a variance without bounds would be theirs
alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MIN_NARROWING", "Candidate", "NextRun", "choose_next"]

Array = NDArray[np.float64]

TRIM = 0.01
# A run that is expected to narrow an interval by less than this is not worth its line, however cheap it is.
MIN_NARROWING = 0.02


@dataclass(frozen=True)
class Candidate:
    """A run not made yet: the axes of `laws.Points` it would have, its training FLOPs and the command that makes it."""

    name: str
    params: float
    samples: float
    unique_samples: float
    train_flops: float
    command: str


@dataclass(frozen=True)
class NextRun:
    """A chosen candidate; `narrowing` is by what fraction each target's interval becomes narrower with it, expected,
    given the chosen runs before it."""

    candidate: Candidate
    narrowing: dict[str, float]


def choose_next(
    candidates: list[Candidate],
    outcomes: Array,
    targets: dict[str, Array],
    noise_sd: float,
    *,
    by: str,
    count: int = 1,
    min_narrowing: float = MIN_NARROWING,
) -> list[NextRun]:
    """Up to `count` candidates, each the one that takes most of the variance of `targets[by]` for its training FLOPs.

    `outcomes` (num_draws, num_candidates): the log error of every candidate under every draw; `targets`: name ->
    (num_draws,). `noise_sd`: of one run's log error about the law. A draw with a value that is not finite is left out.
    Only candidates that narrow the interval of `by` by at least `min_narrowing` are considered, each chosen at most once.
    """
    names = list(targets)
    columns = np.column_stack([*(targets[name] for name in names), outcomes])
    columns = columns[np.isfinite(columns).all(axis=1)]
    if len(columns) < 2:
        return []
    low, high = np.quantile(columns, [TRIM, 1 - TRIM], axis=0)
    covariance = np.atleast_2d(np.cov(np.clip(columns, low, high), rowvar=False))
    flops = np.array([candidate.train_flops for candidate in candidates])
    left = np.ones(len(candidates), dtype=bool)
    chosen: list[NextRun] = []
    while len(chosen) < count:
        narrowing = _narrowing(covariance, len(names), noise_sd)  # (targets, candidates)
        of_target = narrowing[names.index(by)]
        eligible = left & (of_target >= min_narrowing)
        if not eligible.any():
            break
        taken = 1 - (1 - of_target) ** 2  # of the variance; an interval's width goes with its root
        best = int(np.argmax(np.where(eligible, taken / flops, -np.inf)))
        chosen.append(NextRun(candidates[best], dict(zip(names, map(float, narrowing[:, best]), strict=True))))
        left[best] = False
        covariance = _given(covariance, len(names) + best, noise_sd)
    return chosen


def _narrowing(covariance: Array, num_targets: int, noise_sd: float) -> Array:
    """By what fraction reading each candidate narrows each target: (targets, candidates), from 0 to 1."""
    shared = covariance[:num_targets, num_targets:]
    read = np.diag(covariance)[num_targets:] + noise_sd**2
    before = np.diag(covariance)[:num_targets, None]
    known = (before > 0) & (read > 0)
    taken = np.divide(shared**2, before * read, out=np.zeros_like(shared), where=known)
    return 1 - np.sqrt(1 - np.clip(taken, 0, 1))


def _given(covariance: Array, place: int, noise_sd: float) -> Array:
    """The covariance of everything once column `place` has been read with noise."""
    column = covariance[:, place]
    read = column[place] + noise_sd**2
    return covariance - np.outer(column, column) / read if read > 0 else covariance
