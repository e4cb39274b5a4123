"""Least squares for the forms: a grid over what enters non-linearly with non-negative solves for the rest, then
Levenberg-Marquardt steps on all parameters, for many right-hand sides at once.

Residuals are of log error, times the root of a weight. Their loss is Huber's (infinite `delta`: squares).
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from vitlight.analysis.laws.forms import Form
from vitlight.analysis.laws.points import Floats

__all__ = ["Problem", "build_problem", "grid_starts", "losses", "nonnegative_solutions", "polish", "residuals"]

TINY = 1e-30
MAX_STEPS = 300
FINE_EXPONENTS = np.geomspace(0.03, 2.5, 30)
COARSE_EXPONENTS = np.geomspace(0.06, 1.6, 8)


@dataclass(frozen=True, eq=False)
class Problem:
    """A form over fixed axes (num_axes, n), divided by scales of their terms; `held` marks parameters that stay fixed."""

    form: Form
    axes: Floats
    scales: Floats
    lower: Floats
    upper: Floats
    held: NDArray[np.bool_]
    floor: float | None
    root_weights: Floats


def build_problem(form: Form, axes: Floats, floor: float | None, scales: Floats | None = None) -> Problem:
    """The problem over raw axes with equal weights. The default scales are the axes' geometric means, near which the
    amplitude of a term hardly depends on its exponent."""
    if scales is None:
        scales = np.exp(np.log(axes[: form.num_terms]).mean(axis=1))
    # Unique samples are counted in the same unit as samples, whose term is the last.
    of_axes = np.concatenate([scales, np.repeat(scales[-1:], len(axes) - form.num_terms)])
    scaled = axes / of_axes[:, None]
    lower, upper = form.bounds(scaled)
    held = np.zeros(len(lower), dtype=bool)
    if floor is not None:
        lower[0] = upper[0] = floor
        held[0] = True
    return Problem(form, scaled, scales, lower, upper, held, floor, np.ones(axes.shape[1]))


def residuals(problem: Problem, theta: Floats, targets: Floats) -> Floats:
    """Weighted residuals (b, n) of log error for theta (b, p) and targets (b or 1, n)."""
    error, _ = problem.form.evaluate(theta, problem.axes)
    weighted: Floats = (np.log(np.maximum(error, TINY)) - targets) * problem.root_weights
    return weighted


def losses(weighted: Floats, delta: float) -> Floats:
    """Sums (b,) of Huber's loss of weighted residuals (b, n): r^2 / 2, linear beyond delta."""
    size = np.abs(weighted)
    total: Floats = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(axis=1)
    return total


def nonnegative_solutions(gram: Floats, moments: Floats) -> tuple[Floats, Floats]:
    """Exact non-negative least squares for a few columns: gram (g, k, k) and moments (g, k, b) give the coefficients
    (g, k, b) and by how much they lower the sum of squares (g, b).

    Every subset of columns is solved without the constraint; the best of those without a negative coefficient is the
    constrained solution.
    """
    num_columns = gram.shape[1]
    unit = np.sqrt(np.einsum("gkk->gk", gram)) + TINY
    gram, moments = gram / (unit[:, :, None] * unit[:, None, :]), moments / unit[:, :, None]
    best, gain = np.zeros_like(moments), np.zeros(moments[:, 0].shape)
    for count in range(1, num_columns + 1):
        for subset in combinations(range(num_columns), count):
            columns = list(subset)
            part = gram[:, columns][:, :, columns] + 1e-12 * np.eye(count)
            solved = np.linalg.solve(part, moments[:, columns])
            lowered = np.where((solved >= 0).all(axis=1), (solved * moments[:, columns]).sum(axis=1), -np.inf)
            better = lowered > gain
            gain = np.where(better, lowered, gain)
            full = np.zeros_like(moments)
            full[:, columns] = solved
            best = np.where(better[:, None], full, best)
    return best / unit[:, :, None], gain


def grid_starts(problem: Problem, targets: Floats, expected: Floats, fine: bool) -> tuple[Floats, Floats]:
    """Over a grid of exponents and shape, floor and amplitudes by non-negative least squares of the relative error:
    theta (g, b, p) and by how much each lowers the sum of squares (g, b).

    `targets` (b, n) are log errors, `expected` (n,) the errors that the weights are relative to.
    """
    form, terms = problem.form, problem.form.num_terms
    exponents = FINE_EXPONENTS if fine else COARSE_EXPONENTS
    if fine and terms > 1 and form.shape is not None:
        exponents = exponents[::3]
    axes_of_grid = [exponents] * terms
    if form.shape is not None:
        axes_of_grid.append(form.shape.grid(problem.axes, 14 if fine else 5))
    nonlinear = np.stack([values.ravel() for values in np.meshgrid(*axes_of_grid, indexing="ij")], axis=1)
    theta = np.hstack([np.zeros((len(nonlinear), 1)), np.ones((len(nonlinear), terms)), nonlinear])
    _, slopes = form.evaluate(theta, problem.axes)
    weights = problem.root_weights / expected
    errors = np.exp(targets)
    columns = np.arange(1 + terms)
    if problem.floor is not None:
        errors, columns = errors - problem.floor, columns[1:]
    design = slopes[:, :, columns] * weights[:, None]
    gram = design.transpose(0, 2, 1) @ design
    solved, gain = nonnegative_solutions(gram, design.transpose(0, 2, 1) @ (errors * weights).T)
    starts = np.repeat(theta[:, None], len(targets), axis=1)
    starts[:, :, columns] = solved.transpose(0, 2, 1)
    if problem.floor is not None:
        starts[:, :, 0] = problem.floor
    return starts, gain


def polish(
    problem: Problem, start: Floats, targets: Floats, delta: float, held: NDArray[np.bool_] | None = None
) -> tuple[Floats, Floats]:
    """Levenberg-Marquardt from start (b, p) on targets (b or 1, n), inside the bounds: theta (b, p) and its loss (b,),
    which is never above the loss of the start.

    Huber's loss enters through weights at the current residuals. `held` (b, p) marks further parameters that stay fixed.
    A parameter whose bound the step would cross stays on it while the gradient points outwards.
    """
    theta = np.clip(start, problem.lower, problem.upper)
    targets = np.broadcast_to(targets, (len(theta), targets.shape[1]))
    fixed = np.broadcast_to(problem.held, theta.shape)
    if held is not None:
        fixed = fixed | held
    cost, gradient, curvature = _linearised(problem, theta, targets, delta)
    damping = np.full(len(theta), 1e-3)
    rows = np.arange(len(theta))
    for _ in range(MAX_STEPS):
        if len(rows) == 0:
            break
        here, slope = theta[rows], gradient[rows].copy()
        blocked = (
            fixed[rows] | ((here <= problem.lower) & (slope > 0)) | ((here >= problem.upper) & (slope < 0))
        )  # fmt: skip
        step, expected = _step(slope, curvature[rows].copy(), damping[rows], blocked)
        trial = np.clip(here + step, problem.lower, problem.upper)
        new_cost, new_gradient, new_curvature = _linearised(problem, trial, targets[rows], delta)
        better = new_cost < cost[rows]
        taken = rows[better]
        small = (np.abs(step) <= 1e-11 * (np.abs(here) + 1e-9)).all(axis=1)
        done = small | (expected <= 1e-13 * cost[rows]) | (damping[rows] > 1e12)
        theta[taken], cost[taken] = trial[better], new_cost[better]
        gradient[taken], curvature[taken] = new_gradient[better], new_curvature[better]
        damping[rows] = np.where(better, np.maximum(damping[rows] / 6, 1e-10), damping[rows] * 5)
        rows = rows[~done]
    return theta, cost


def _step(slope: Floats, curvature: Floats, damping: Floats, blocked: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Damped Gauss-Newton steps (b, p), zero where blocked, and what they should lower the loss by (b,)."""
    diagonal = np.einsum("bpp->bp", curvature)
    blocked = blocked | (diagonal <= 0)
    unit = np.where(blocked, 1.0, np.sqrt(np.maximum(diagonal, TINY)))
    free = ~blocked
    matrix = np.where(free[:, :, None] & free[:, None, :], curvature / (unit[:, :, None] * unit[:, None, :]), 0.0)
    diagonal_indices = np.arange(matrix.shape[1])
    matrix[:, diagonal_indices, diagonal_indices] = 1 + damping[:, None]
    scaled = np.where(blocked, 0.0, slope / unit)
    step = -np.linalg.solve(matrix, scaled[:, :, None])[:, :, 0]
    return step / unit, -(step * scaled).sum(axis=1) / 2


def _linearised(problem: Problem, theta: Floats, targets: Floats, delta: float) -> tuple[Floats, Floats, Floats]:
    """Loss (b,), gradient (b, p) and the Gauss-Newton curvature (b, p, p)."""
    error, slopes = problem.form.evaluate(theta, problem.axes)
    error = np.maximum(error, TINY)
    weighted = (np.log(error) - targets) * problem.root_weights
    slopes *= (problem.root_weights / error)[:, :, None]
    pull = np.minimum(1, delta / np.maximum(np.abs(weighted), TINY))
    pulled = (slopes * pull[:, :, None]).transpose(0, 2, 1)
    gradient = (pulled @ weighted[:, :, None])[:, :, 0]
    return losses(weighted, delta), gradient, pulled @ slopes
