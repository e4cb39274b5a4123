"""Tests of whether a form is the wrong one: what it leaves in the residuals, and what its terms explain."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial import legendre
from scipy import stats

from vitlight.analysis.laws.points import Floats
from vitlight.analysis.laws.solution import Solution
from vitlight.analysis.laws.solve import grid_starts, losses, polish, residuals

__all__ = ["Structure", "lack_of_fit_p_value", "spread", "structure", "term_p_value"]

# Of a tested column, the part that the fit's own derivatives do not explain must be at least this.
LEAST_NEW = 0.02
MOST_COLUMNS = 6
# For fewer, ranks say nothing at the rate of a warning.
FEWEST_RANKS = 8
# Below this, deviations are rounding.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Structure:
    """`p_value`: how often a right form would leave residuals, or their size, that follow the axes as much. `along` is what
    they follow most, as "params" or "params^3"."""

    p_value: float
    along: str


def structure(solution: Solution) -> Structure:
    """An F test of the residuals' dependence on the axes; p is 1 where there are too few cells.

    Tested are, in this order and as far as the derivatives of the fit by its own parameters leave anything of them: the
    logarithms of axes that the form does not read but the runs have, and their squares; products of those that it reads,
    their cubes, fourth powers and squares. In the linear approximation of the fit and with normal noise, p is uniform
    where the form is right.
    """
    weighted, own = solution.residuals, _basis(solution.slopes)
    none = Structure(1.0, "")
    num_left = len(weighted) - own.shape[1]
    if np.abs(weighted).max() < ROUNDING:
        return none
    names: list[str] = []
    extra: list[Floats] = []
    for name, column in _columns(solution):
        if len(extra) == min(MOST_COLUMNS, num_left // 2):
            break
        scaled = column * solution.problem.root_weights
        size = np.linalg.norm(scaled)
        for known in (*own.T, *extra, *own.T):
            scaled = scaled - (known @ scaled) * known
        if np.linalg.norm(scaled) > LEAST_NEW * size:
            names.append(name)
            extra.append(scaled / np.linalg.norm(scaled))
    if not extra:
        return none
    left = weighted - own @ (own.T @ weighted)
    explained = np.array([(column @ left) ** 2 for column in extra])
    rest = max(float(left @ left - explained.sum()), 1e-300) / (num_left - len(extra))
    chance = float(stats.f.sf(explained.mean() / rest, len(extra), num_left - len(extra)))
    return Structure(chance, names[int(np.argmax(explained))])


def _basis(slopes: Floats) -> Floats:
    unit = np.sqrt((slopes**2).sum(axis=0))
    left, singular, _ = np.linalg.svd(slopes[:, unit > 0] / unit[unit > 0], full_matrices=False)
    kept: Floats = left[:, singular > 1e-9 * singular[0]]
    return kept


def _columns(solution: Solution) -> list[tuple[str, Floats]]:
    """Polynomials of log axes, brought to [-1, 1]; an axis with v different values gives powers below v."""
    known, read = dict(solution.cells.known), solution.problem.form.axes
    if "samples" in known and "unique_samples" in known:
        known["repeats"] = known["samples"] / known["unique_samples"]
    known.pop("unique_samples", None)
    scaled = {}
    for name, values in known.items():
        logs = np.log(values)
        if np.ptp(logs) > 1e-9:
            scaled[name] = 2 * (logs - logs.min()) / np.ptp(logs) - 1
    own = [name for name in scaled if name in read or (name == "repeats" and "unique_samples" in read)]
    others = {name: values for name, values in scaled.items() if name not in own}
    columns = list(others.items())
    columns += [(f"{name}^2", values**2) for name, values in others.items() if len(np.unique(values)) > 2]
    columns += [
        (f"{other} x {name}", scaled[name] * scaled[other]) for index, name in enumerate(own) for other in own[:index]
    ]
    for degree in (3, 4, 2):
        of_degree = np.eye(degree + 1)[degree]
        columns += [
            (f"{name}^{degree}", legendre.legval(scaled[name], of_degree))
            for name in own
            if len(np.unique(scaled[name])) > degree
        ]
    return columns


def term_p_value(solution: Solution, term: int) -> float:
    """How often the measured errors would favour a term as much if they did not depend on it: an F test, by squares, of the
    fit against one without the term."""
    problem, targets = solution.problem, solution.cells.log_error[None]
    terms = problem.form.num_terms
    dropped = [1 + term, 1 + terms + term]
    if problem.form.shape is not None and term == terms - 1:
        dropped.append(len(solution.theta) - 1)
    held = problem.held.copy()
    held[dropped] = True
    starts = grid_starts(problem, targets, np.exp(targets[0]), fine=False)[0][:, 0]
    starts[:, 1 + term] = 0
    of_starts = losses(residuals(problem, starts, targets), np.inf)
    _, without = polish(replace(problem, held=held), starts[np.argsort(of_starts, kind="stable")[:8]], targets, np.inf)
    _, full = polish(problem, solution.theta[None], targets, np.inf)
    num_left = len(targets[0]) - solution.num_parameters
    if full[0] < ROUNDING**2:
        return 0.0 if without.min() > ROUNDING else 1.0
    ratio = ((without.min() - full[0]) / len(dropped)) / (full[0] / num_left)
    return float(stats.f.sf(max(float(ratio), 0.0), len(dropped), num_left))


def lack_of_fit_p_value(solution: Solution) -> float:
    """How often seeds alone would put the cells as far off the law; 1 where no cell has two seeds."""
    of_seeds = solution.cells.seed_variance
    num_left = len(solution.cells) - solution.num_parameters
    if of_seeds is None or of_seeds < ROUNDING**2:
        return 1.0
    deviations = solution.residuals / solution.problem.root_weights
    between = float((deviations**2 * solution.cells.num_runs).sum()) / num_left
    return float(stats.f.sf(between / of_seeds, num_left, int((solution.cells.num_runs - 1).sum())))


def spread(solution: Solution) -> Structure:
    """Whether the size of the residuals changes along an axis of the form: Spearman's rank correlation of |residual|, its
    p times the number of axes. p is 1 where there are fewer than 8 cells."""
    sizes = np.abs(solution.residuals) / np.sqrt(np.maximum(1 - solution.leverage, 0.02))
    found = Structure(1.0, "")
    if len(sizes) < FEWEST_RANKS or sizes.max() < ROUNDING:
        return found
    form = solution.problem.form
    for name, values in zip(form.axes, solution.cells.axes, strict=True):
        if np.ptp(values) > 0:
            chance = len(form.axes) * float(stats.spearmanr(sizes, values).pvalue)
            if chance < found.p_value:
                found = Structure(chance, name)
    return found
