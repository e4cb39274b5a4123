"""The best parameters of a form for some cells, without intervals."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitlight.analysis.laws.forms import Form
from vitlight.analysis.laws.noise import Noise, estimate_noise, weights_of
from vitlight.analysis.laws.points import Cells, Floats, Points, cells_of
from vitlight.analysis.laws.solve import Problem, build_problem, grid_starts, losses, polish, residuals
from vitlight.errors import InputError

__all__ = ["LOSSES", "Solution", "solve"]

LOSSES = ("huber", "squares")
# Huber's constant for 95 % efficiency on normal noise, and what makes a median of |r| a standard deviation.
HUBER, MEDIAN_TO_SD = 1.345, 1.4826
# Residuals below this are rounding, so that noise-free data are fitted by squares.
LEAST_SPREAD = 1e-9
NUM_STARTS = 16


@dataclass(frozen=True, eq=False)
class Solution:
    """`theta` (p,) solves `problem` for the cells' log errors with Huber's `delta` (of weighted residuals, infinite for
    squares). `slopes` (n, p) are the derivatives of the weighted log error, 0 for parameters on a bound or held;
    `leverage` (n,) is what a cell's own error contributes to its fitted one."""

    cells: Cells
    problem: Problem
    theta: Floats
    delta: float
    cost: float
    noise: Noise
    slopes: Floats
    leverage: Floats
    at_bound: NDArray[np.bool_]

    @property
    def fitted(self) -> Floats:
        """Log errors (n,) of the law at the cells."""
        return self.cells.log_error + self.residuals / self.problem.root_weights

    @property
    def residuals(self) -> Floats:
        """Weighted residuals (n,): of the law's log error minus the measured one."""
        weighted: Floats = residuals(self.problem, self.theta[None], self.cells.log_error[None])[0]
        return weighted

    @property
    def parameters(self) -> Floats:
        return self.problem.form.to_public(self.theta, self.problem.scales)

    @property
    def num_parameters(self) -> int:
        """Those that the data decide."""
        return int((~self.problem.held).sum())


def solve(points: Points, form: Form, loss: str, floor: float | None) -> Solution:
    """Raises InputError where the points lack an axis of the form or are too few for it, and for a bad loss or floor."""
    if loss not in LOSSES:
        raise InputError(f"loss={loss!r} is none of {', '.join(LOSSES)}")
    lacking = [axis for axis in form.axes if not points.has(axis)]
    if lacking:
        raise InputError(f"form={form.name} reads {' and '.join(lacking)}, which these {len(points)} runs do not have")
    if floor is not None and not 0 <= floor < float(points.error.min()):
        raise InputError(f"floor={floor:g} must be at least 0 and below the smallest error, {points.error.min():g}")
    cells = cells_of(points, form.axes)
    num_parameters = len(form.parameters) - (floor is not None)
    distinct = len(np.unique(cells.axes, axis=1).T)
    if distinct <= num_parameters:
        raise InputError(
            f"form={form.name} has {num_parameters} parameters and needs more than {num_parameters} different settings of "
            f"{', '.join(form.axes)}, not {distinct}; add runs, choose a smaller form or give floor"
        )
    if form.shape is not None and "unique_samples" in form.axes and _repeats(cells, form.axes) < 1 + 1e-6:
        raise InputError(f"form={form.name} needs runs that saw samples more than once; these did not: take size_data")
    return _weighted_solution(cells, build_problem(form, cells.axes, floor), loss)


def _repeats(cells: Cells, axes: Sequence[str]) -> float:
    samples, unique = cells.axes[axes.index("samples")], cells.axes[axes.index("unique_samples")]
    return float((samples / unique).max())


def _weighted_solution(cells: Cells, problem: Problem, loss: str) -> Solution:
    """Where cells differ in how many seeds they have, their weights follow from the spread that the fit leaves, and the
    fit from the weights: both are taken twice, from weights by the number of seeds."""
    if (cells.num_runs == cells.num_runs[0]).all():
        return _solution(cells, problem, loss)
    weights = cells.num_runs / cells.num_runs.mean()
    solution = _solution(cells, replace(problem, root_weights=np.sqrt(weights)), loss)
    for _ in range(2):
        weights = weights_of(cells, solution.noise)
        solution = _solution(cells, replace(problem, root_weights=np.sqrt(weights)), loss, solution.theta)
    return solution


def _solution(cells: Cells, problem: Problem, loss: str, start: Floats | None = None) -> Solution:
    targets = cells.log_error[None]
    if start is None:
        starts = grid_starts(problem, targets, np.exp(targets[0]), fine=True)[0][:, 0]
        of_starts = losses(residuals(problem, starts, targets), np.inf)
        candidates = starts[np.argsort(of_starts, kind="stable")[:NUM_STARTS]]
    else:
        candidates = start[None]
    polished, costs = polish(problem, candidates, targets, np.inf)
    num_left = len(cells) - int((~problem.held).sum())
    delta = np.inf
    if loss == "huber":
        for _ in range(3):
            best = polished[np.argmin(costs)]
            delta = HUBER * max(_spread(residuals(problem, best[None], targets)[0], num_left), LEAST_SPREAD)
            polished, costs = polish(problem, polished, targets, delta)
    theta = polished[np.argmin(costs)]
    at_bound = ~problem.held & ((theta <= problem.lower) | (theta >= problem.upper))
    error, slopes = problem.form.evaluate(theta[None], problem.axes)
    weighted = slopes[0] / error[0][:, None] * problem.root_weights[:, None]
    weighted[:, problem.held | at_bound] = 0
    leverage = _leverage(weighted)
    deviations = residuals(problem, theta[None], targets)[0] / problem.root_weights
    noise = estimate_noise(cells, deviations, leverage, int((~problem.held).sum()))
    return Solution(cells, problem, theta, float(delta), float(costs.min()), noise, weighted, leverage, at_bound)


def _spread(weighted: Floats, num_left: int) -> float:
    """The standard deviation by the median of the `num_left` largest of |r|: as many of the smallest as there are
    parameters may be 0 by the fit alone."""
    return MEDIAN_TO_SD * float(np.median(np.sort(np.abs(weighted))[-num_left:]))


def _leverage(slopes: Floats) -> Floats:
    """Diagonal of the projection onto the columns of slopes (n, p)."""
    unit = np.sqrt((slopes**2).sum(axis=0))
    left, singular, _ = np.linalg.svd(slopes / np.where(unit > 0, unit, 1), full_matrices=False)
    kept: Floats = (left[:, singular > 1e-9 * singular[0]] ** 2).sum(axis=1)
    return kept
