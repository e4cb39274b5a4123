"""Draws of a law's parameters: the fit repeated on errors that could have been measured instead.

The settings of a sweep are chosen, so they stay and only the errors are drawn (a residual bootstrap). Drawing whole cells
with replacement would lose the ends of a small grid, and with them an exponent, in a part of the draws. A cell's error
deviates from the law by what cells deviate, and by the mean of as many seeds as it has; where no cell has two seeds,
both are one. The pools are the measured deviations, divided by sqrt(1 - leverage), which undoes what the fit took.

The spread itself is known from few degrees of freedom, so each draw's deviations are multiplied by sqrt(k / chi^2_k):
a percentile of the draws is then one of Student's t where the law is linear, and intervals of small sweeps are as wide as
they have to be.
"""

import numpy as np

from vitlight.analysis.laws.points import Floats
from vitlight.analysis.laws.solution import Solution
from vitlight.analysis.laws.solve import grid_starts, losses, polish, residuals

__all__ = ["draw_log_errors", "draw_parameters", "run_deviations"]

# Cells of full leverage are fitted whatever their error; their residual says nothing of the spread.
MOST_LEVERAGE = 0.98
CHUNK = 500
# One degree of freedom gives deviations without limit; beyond this factor of e, errors say nothing and overflow.
LARGEST = 50.0


def draw_log_errors(solution: Solution, num: int, random: np.random.Generator) -> Floats:
    """Log errors (num, n) that the cells could have had."""
    cells, noise = solution.cells, solution.noise
    deviations = _drawn(_cell_pool(solution), (num, len(cells)), random) * np.sqrt(noise.cell)
    if noise.seed > 0:
        pool = _seed_pool(solution)
        for index, count in enumerate(cells.num_runs):
            deviations[:, index] += _drawn(pool, (num, count), random).mean(axis=1) * np.sqrt(noise.seed)
    return solution.fitted + _inflated(solution, deviations, random)


def run_deviations(solution: Solution, num: int, random: np.random.Generator) -> Floats:
    """By how much the log error of a new run, one seed, may lie off the law: (num,)."""
    noise = solution.noise
    deviations = _drawn(_cell_pool(solution), (num,), random) * np.sqrt(noise.cell)
    if noise.seed > 0:
        deviations = deviations + _drawn(_seed_pool(solution), (num,), random) * np.sqrt(noise.seed)
    return _inflated(solution, deviations, random)


def _cell_pool(solution: Solution) -> Floats:
    """Weighted deviations of cells from the law, without what the fit took of them."""
    kept = solution.leverage < MOST_LEVERAGE
    return solution.residuals[kept] / np.sqrt(1 - solution.leverage[kept])


def _seed_pool(solution: Solution) -> Floats:
    """The runs' deviations from their cells and, where cells deviate by their seeds alone, those of the cells."""
    if solution.noise.cell > 0:
        return solution.cells.deviations
    # Weights are runs over their mean number, so these stand for sqrt(runs) times a deviation, as a seed's do.
    as_of_seeds = _cell_pool(solution) * np.sqrt(solution.cells.num_runs.mean())
    return np.concatenate([solution.cells.deviations, as_of_seeds])


def _drawn(pool: Floats, size: tuple[int, ...], random: np.random.Generator) -> Floats:
    """Elements of the pool, brought to mean 0 and variance 1; normal numbers where the pool has no spread."""
    pool = pool - pool.mean() if len(pool) else pool
    spread = float(np.sqrt((pool**2).mean())) if len(pool) else 0.0
    if spread == 0:
        return random.standard_normal(size)
    drawn: Floats = random.choice(pool / spread, size)
    return drawn


def _inflated(solution: Solution, deviations: Floats, random: np.random.Generator) -> Floats:
    """Each draw's deviations (num, ...) times sqrt(k / chi^2_k)."""
    degrees = solution.noise.degrees
    factors = np.sqrt(degrees / random.chisquare(degrees, len(deviations)))
    inflated = deviations * factors.reshape(-1, *[1] * (deviations.ndim - 1))
    clipped: Floats = np.clip(inflated, -LARGEST, LARGEST)
    return clipped


def draw_parameters(solution: Solution, num: int, random: np.random.Generator) -> Floats:
    """Parameters (num, p) in the user's units, refitted to drawn errors from the best fit and from a coarse grid."""
    if num == 0:
        return np.empty((0, len(solution.theta)))
    log_errors = draw_log_errors(solution, num, random)
    theta = np.concatenate([_refit(solution, chunk) for chunk in np.split(log_errors, range(CHUNK, num, CHUNK))])
    return solution.problem.form.to_public(theta, solution.problem.scales)


def _refit(solution: Solution, log_errors: Floats) -> Floats:
    problem, delta = solution.problem, solution.delta
    warm = np.repeat(solution.theta[None], len(log_errors), axis=0)
    starts, gain = grid_starts(problem, log_errors, np.exp(solution.fitted), fine=False)
    cold = starts[np.argmax(gain, axis=0), np.arange(len(log_errors))]
    better = losses(residuals(problem, cold, log_errors), delta) < losses(residuals(problem, warm, log_errors), delta)
    first, of_first = polish(problem, np.where(better[:, None], cold, warm), log_errors, delta)
    second, of_second = polish(problem, np.where(better[:, None], warm, cold), log_errors, delta)
    return np.where((of_second < of_first)[:, None], second, first)
