"""Intervals of a law's parameters: percentiles of bootstrap draws, or where the profile of the loss passes a threshold."""

from dataclasses import replace

import numpy as np
from scipy import stats

from vitlight.analysis.laws.points import Floats
from vitlight.analysis.laws.solution import Solution
from vitlight.analysis.laws.solve import Problem, build_problem, polish

__all__ = ["percentiles", "profile_intervals"]

DOUBLINGS, BISECTIONS = 40, 24


def percentiles(draws: Floats, level: float) -> tuple[Floats, Floats]:
    """The central part of draws (b, ...) that holds `level` of them; NaN without draws."""
    if len(draws) == 0:
        nothing = np.full(draws.shape[1:], np.nan)
        return nothing, nothing
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    return low, high


def profile_intervals(solution: Solution, level: float) -> Floats:
    """(p, 2): the values of each parameter, in the user's units, at which the loss minimised over all others is above its
    minimum by s^2 t^2 / 2, with s the weighted residual's spread and t Student's quantile. An end on a bound of the
    parameter is that bound; a parameter that was given has its value twice.

    The interval is that of a likelihood ratio where the noise is normal (Bates and Watts 1988, section 6.1), so it may be
    lopsided, which matters for floors and exponents.
    """
    form, problem = solution.problem.form, solution.problem
    ends = np.empty((len(solution.theta), 2))
    amplitudes = [form.parameters.index(name) for name in form.amplitudes]
    others = [index for index in range(len(solution.theta)) if index not in amplitudes]
    ends[others] = _profile(solution, problem, solution.theta, others, level)
    for term, index in enumerate(amplitudes):
        # Over an axis that is not scaled, the solver's amplitude is the user's.
        scales = problem.scales.copy()
        scales[term] = 1.0
        raw = solution.cells.axes
        unscaled = build_problem(form, raw, problem.floor, scales)
        unscaled = replace(unscaled, root_weights=problem.root_weights)
        theta = form.to_internal(solution.parameters, scales)
        ends[index] = _profile(solution, unscaled, theta, [index], level)[0]
    public = np.repeat(solution.theta[None], 2, axis=0)
    for index in others:
        public[:, index] = ends[index]
        ends[index] = form.to_public(public, problem.scales)[:, index]
        public[:, index] = solution.theta[index]
    return ends


def _profile(solution: Solution, problem: Problem, theta: Floats, indices: list[int], level: float) -> Floats:
    """Ends (len(indices), 2) in the solver's units, found for all parameters and both sides at once."""
    degrees = solution.noise.degrees
    spread = float((solution.residuals**2).sum()) / max(len(solution.cells) - solution.num_parameters, 1)
    threshold = solution.cost + spread * float(stats.t.ppf((1 + level) / 2, degrees)) ** 2 / 2
    which = np.repeat(indices, 2)
    side = np.tile([-1.0, 1.0], len(indices))
    rows = np.arange(len(which))
    held = np.zeros((len(which), len(theta)), dtype=bool)
    held[rows, which] = True
    targets = solution.cells.log_error[None]
    current = np.repeat(theta[None], len(which), axis=0)
    edge = np.where(side < 0, problem.lower[which], problem.upper[which])
    inside, step = theta[which].copy(), 1e-3 * np.maximum(np.abs(theta[which]), 1e-6)
    outside = np.full(len(which), np.nan)
    finished = (inside == edge) | problem.held[which]
    outside[finished] = inside[finished]
    for attempt in range(DOUBLINGS + BISECTIONS):
        growing = np.isnan(outside)
        if attempt >= DOUBLINGS and growing.any():
            outside[growing] = inside[growing] = edge[growing]
        reach = inside + side * step * 2.0**attempt
        value = np.where(
            growing, np.where(side < 0, np.maximum(reach, edge), np.minimum(reach, edge)), (inside + outside) / 2
        )
        trial = current.copy()
        trial[rows, which] = value
        trial, cost = polish(problem, trial, targets, solution.delta, held)
        below = cost <= threshold
        current[below] = trial[below]
        inside = np.where(below, value, inside)
        outside = np.where(below, np.where(value == edge, edge, outside), value)
        if (np.abs(outside - inside) <= 1e-6 * np.abs(inside)).all():
            break
    return np.stack([inside[::2], inside[1::2]], axis=1)
