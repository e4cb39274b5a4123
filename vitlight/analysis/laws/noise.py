"""The spread of log error about a law: between cells, and between the seeds of one."""

from dataclasses import dataclass

import numpy as np

from vitlight.analysis.laws.points import Cells, Floats

__all__ = ["Noise", "estimate_noise", "weights_of"]


@dataclass(frozen=True)
class Noise:
    """Variances of log error. A cell of m seeds deviates from the law with variance `cell + seed / m`, known from
    `degrees` of freedom. Where no cell has two seeds, `seed` is 0 and `cell` holds all of it."""

    cell: float
    seed: float
    degrees: int

    @property
    def run_sd(self) -> float:
        """Standard deviation of a single run's log error."""
        return float(np.sqrt(self.cell + self.seed))


def estimate_noise(cells: Cells, deviations: Floats, leverage: Floats, num_parameters: int) -> Noise:
    """By moments, from the cells' deviations of log error from the fitted law (n,) and their leverages (n,).

    The squared deviations are expected to add up to sum((1 - leverage) (cell + seed / m)). Where the seeds alone explain
    them, the cells' part is 0, and both tell what seeds do.
    """
    left = np.maximum(1 - leverage, 0)
    of_seeds = cells.seed_variance
    num_left = len(cells) - num_parameters
    total = float((deviations**2).sum())
    if of_seeds is None:
        return Noise(cell=total / max(float(left.sum()), 1e-9), seed=0.0, degrees=num_left)
    within = int((cells.num_runs - 1).sum())
    cell = (total - of_seeds * float((left / cells.num_runs).sum())) / max(float(left.sum()), 1e-9)
    if cell > 0:
        return Noise(cell=cell, seed=of_seeds, degrees=num_left)
    between = float((cells.num_runs * deviations**2).sum())
    return Noise(cell=0.0, seed=(between + of_seeds * within) / (num_left + within), degrees=num_left + within)


def weights_of(cells: Cells, noise: Noise) -> Floats:
    """What each cell counts (n,), 1 on the average: the inverse of its variance, so that the mean of several seeds counts
    more than one run, by as much as seeds are what makes runs differ."""
    variance = noise.cell + noise.seed / cells.num_runs
    if not (variance > 0).all():
        return np.ones(len(cells))
    weights: Floats = 1 / variance
    return weights / weights.mean()
