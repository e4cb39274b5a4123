"""What speaks against believing a fit, one line each."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from vitlight.analysis.laws.frontier import FLOPS_PER_MAC, compute_optimal
from vitlight.analysis.laws.law_fit import LawFit
from vitlight.analysis.laws.points import Floats, Points
from vitlight.analysis.laws.structure import lack_of_fit_p_value, spread, structure, term_p_value
from vitlight.errors import InputError

__all__ = ["FALSE_ALARM", "check", "check_extrapolation"]

# How often a test of residuals warns of a fit that is right.
FALSE_ALARM = 0.01
# How often a term that is not there passes for one that is.
FALSE_TERM = 0.05
FURTHEST = 10
# The largest compute of a full grid is a corner; its optimum may lie this little outside without a word.
ALLOWANCE = 2
MOST_LABELS = 4
# Settings closer than this, in log, are one.
SAME_LEVEL = 0.03


def check(points: Points, fit: LawFit) -> tuple[str, ...]:
    """The warnings of `fit`, made from `points`: its settings, its parameters, its residuals, its optimum."""
    return (*_of_design(fit), *_of_parameters(fit), *_of_residuals(fit), *_of_optimum(points, fit))


def check_extrapolation(fit: LawFit, **axes: ArrayLike) -> tuple[str, ...]:
    """One line for each axis on which these values lie more than 10 times beyond what was run."""
    found = []
    for name, values in axes.items():
        sampled, asked = fit.points.axis(name), np.asarray(values, dtype=np.float64)
        least, most = float(asked.min()), float(asked.max())
        for value, end, times in (
            (most, "largest", most / float(sampled.max())),
            (least, "smallest", float(sampled.min()) / least),
        ):
            if times > FURTHEST:
                found.append(f"{name}={value:.3g} is {times:.3g} times beyond the {end} that was run: an extrapolation")
    return tuple(found)


def _of_design(fit: LawFit) -> list[str]:
    cells, num_parameters = fit.solution.cells, fit.solution.num_parameters
    found = []
    if len(cells) < num_parameters + 2:
        found.append(
            f"{len(cells)} points for {num_parameters} parameters: fewer than {num_parameters + 2} leave nothing "
            f"to judge the fit by"
        )
    values = dict(zip(fit.form.axes, cells.axes, strict=True))
    for name, of_axis in values.items():
        distinct = int(_levels(of_axis).max()) + 1
        if distinct < 3 and name != "unique_samples":
            found.append(
                f"{name} has {distinct} different value{'s' if distinct > 1 else ''}: fewer than 3 decide no exponent"
            )
    if "params" in values:
        found += _of_grid(values)
    return found


def _levels(values: Floats) -> NDArray[np.intp]:
    """The rank of each value among the different ones; values a few percent apart, as durations that are rounded to whole
    batches, are one."""
    order = np.argsort(values, kind="stable")
    steps = np.diff(np.log(values[order])) > SAME_LEVEL
    ranks = np.empty(len(values), dtype=np.intp)
    ranks[order] = np.concatenate([[0], np.cumsum(steps)])
    return ranks


def _of_grid(values: Mapping[str, Floats]) -> list[str]:
    """Sizes that were run on one number of samples only, and sizes that grow with the samples."""
    params, samples = values["params"], values["samples"]
    found = []
    for name, other in (("params", "samples"), ("samples", "params")):
        ranks, others = _levels(values[name]), _levels(values[other])
        num_levels = int(ranks.max()) + 1
        alone = [rank for rank in range(num_levels) if len(np.unique(others[ranks == rank])) == 1]
        if 0 < len(alone) < num_levels:
            named = [f"{values[name][ranks == rank][0]:.3g}" for rank in alone[:MOST_LABELS]]
            more = ", ..." if len(alone) > MOST_LABELS else ""
            found.append(f"one-sided grid: {name}={', '.join(named)}{more} ran at one value of {other} only")
    if np.ptp(params) > 0 and np.ptp(samples) > 0:
        together = float(np.corrcoef(np.log(params), np.log(samples))[0, 1])
        if abs(together) > 0.95:
            found.append(
                f"params and samples change together (correlation {together:.2f}): their terms can't be told apart"
            )
    return found


def _of_parameters(fit: LawFit) -> list[str]:
    form, found = fit.form, []
    for name, at_bound in zip(form.parameters, fit.solution.at_bound, strict=True):
        if not at_bound:
            continue
        if name == form.floor:
            found.append(f"{name}=0: these points show no floor; predictions far beyond them are too good")
        elif name in form.amplitudes:
            found.append(f"{name}=0: these points show no effect of {form.axes[form.amplitudes.index(name)]}")
        elif name != "d":  # d=0 is the form without a shift.
            found.append(
                f"{name}={fit.parameters[name]:.3g} lies on the edge of what is tried: these points do not decide it"
            )
    for term, name in enumerate(form.amplitudes):
        if fit.parameters[name] <= 0:
            continue
        chance = term_p_value(fit.solution, term)
        if chance > FALSE_TERM:
            found.append(
                f"{form.axes[term]} explains no more than chance would (p={chance:.2g}): {name} and "
                f"{form.exponents[term]} mean nothing"
            )
    return found


def _of_residuals(fit: LawFit) -> list[str]:
    solution, found = fit.solution, []
    tested = structure(solution)
    if tested.p_value < FALSE_ALARM:
        found.append(
            f"residuals follow {tested.along} (p={tested.p_value:.1g}; a right form warns in {FALSE_ALARM:.0%} of fits): "
            f"{fit.form.formula} is the wrong form, or runs of some sizes were trained worse than others"
        )
    tested = spread(solution)
    if tested.p_value < FALSE_ALARM:
        found.append(
            f"the spread of runs about the law changes along {tested.along} (p={tested.p_value:.1g}; by chance in "
            f"{FALSE_ALARM:.0%} of fits): intervals are too narrow at the end where it is large"
        )
    chance = lack_of_fit_p_value(solution)
    if chance < FALSE_ALARM:
        seed_sd, cell_sd = np.sqrt(solution.noise.seed), np.sqrt(solution.noise.cell)
        found.append(
            f"settings lie {cell_sd:.2g} (of log error) off the law, seeds only {seed_sd:.2g} apart (p={chance:.1g}): "
            f"the form or the tuning of single settings leaves something out"
        )
    return found + _outliers(fit)


def _outliers(fit: LawFit) -> list[str]:
    """Cells too far off for the spread of the others, at FALSE_ALARM a fit: externally studentised residuals."""
    solution = fit.solution
    left = np.maximum(1 - solution.leverage, 1e-9)
    degrees = len(left) - int((~solution.problem.held & ~solution.at_bound).sum())
    squares = solution.residuals**2 / left
    total = float((solution.residuals**2).sum())
    if degrees < 3 or total < 1e-18 * len(left):
        return []
    scale = np.sqrt(np.maximum(total - squares, 1e-300) / (degrees - 1))
    far = -solution.residuals / np.sqrt(left) / scale
    limit = float(stats.t.isf(FALSE_ALARM / (2 * len(left)), degrees - 1))
    found = []
    for indices, side, cause in (
        (np.flatnonzero(far > limit), "above", "under-trained, overfitted or badly tuned"),
        (np.flatnonzero(far < -limit), "below", "evaluated or trained on other data"),
    ):
        for index in indices[:MOST_LABELS]:
            off = np.expm1(abs(solution.residuals[index] / solution.problem.root_weights[index]))
            found.append(f"{solution.cells.labels[index]} lies {off:.0%} {side} the law, too far for chance: {cause}?")
    return found


def _of_optimum(points: Points, fit: LawFit) -> list[str]:
    """Where the recommended size, at the largest compute that was run, lies outside the sizes that were run."""
    if "params" not in fit.form.axes or not points.has("params", "samples"):
        return []
    compute = points.compute if points.has("compute") else points.params * points.samples
    macs_per_param = float(np.median(compute / (points.params * points.samples))) / FLOPS_PER_MAC
    try:
        frontier = compute_optimal(fit, compute.max(), macs_per_param)
    except InputError:
        return []  # A term is 0, and _of_parameters says so.
    found = []
    for name, value in (("params", frontier.params[0]), ("samples", frontier.samples[0])):
        sampled = points.axis(name)
        if value < sampled.min() / ALLOWANCE or value > sampled.max() * ALLOWANCE:
            found.append(
                f"at the largest compute that was run the optimum needs {name}={value:.3g}, outside the "
                f"{sampled.min():.3g} to {sampled.max():.3g} that were run"
            )
    return found
