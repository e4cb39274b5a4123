"""Which form to believe: fitted without the largest runs, which one predicts them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitlight.analysis.laws.fit import fit_law
from vitlight.analysis.laws.forms import FORMS, form_named
from vitlight.analysis.laws.law_fit import LawFit
from vitlight.analysis.laws.points import AXES, Floats, Points, cells_of
from vitlight.errors import InputError

__all__ = ["FormScore", "HeldOut", "Selection", "leave_largest_out", "select_form"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """What `fit`, made without the runs `labels`, says of them. One element a run: `errors` are log(predicted / observed),
    `inside` tells which runs lie in the prediction band at the fit's level (none where it has no draws).
    `mean_abs_log_error` is the mean over cells of |log(predicted / mean of seeds)|. `threshold` is the least value of
    `axis` that was held out."""

    labels: tuple[str, ...]
    observed: Floats
    predicted: Floats
    errors: Floats
    inside: NDArray[np.bool_]
    mean_abs_log_error: float
    num_cells: int
    axis: str
    threshold: float
    points: Points
    fit: LawFit


def leave_largest_out(
    points: Points,
    form: str,
    axis: str = "compute",
    fraction: float = 0.25,
    num_runs: int | None = None,
    *,
    num_bootstrap: int = 1000,
    level: float = 0.9,
    seed: int = 0,
    loss: str = "huber",
    floor: float | None = None,
) -> HeldOut:
    """The largest cells along `axis` predicted from the others: `fraction` of the cells, or at least `num_runs` runs.

    Runs of equal size stay together on the held-out side. Where the compute is not known, params times samples
    stand for it. Raises InputError where too few runs are left to fit.
    """
    sizes, axis = _sizes(points, axis)
    if num_runs is None:
        if not 0 < fraction < 1:
            raise InputError(f"fraction={fraction:g} of the cells to hold out must lie between 0 and 1")
        first_of_cells = dict(zip(points.groups, sizes, strict=True))
        counted = np.array(list(first_of_cells.values()))
        wanted = max(1, round(fraction * len(counted)))
    else:
        if not 0 < num_runs < len(points):
            raise InputError(
                f"num_runs={num_runs} to hold out must lie between 1 and {len(points) - 1}, one less than there are"
            )
        counted, wanted = sizes, num_runs
    threshold = float(np.sort(counted)[-wanted])
    held_out = sizes >= threshold
    if held_out.all():
        raise InputError(
            f"all {len(points)} runs have {axis}={threshold:g}: no larger ones to hold out; choose another axis"
        )
    kept, rest = points.take(~held_out), points.take(held_out)
    fit = fit_law(kept, form, num_bootstrap=num_bootstrap, level=level, seed=seed, loss=loss, floor=floor)
    axes = {name: rest.axis(name) for name in fit.form.axes}
    predicted = fit.predict(**axes)
    inside = np.zeros(len(rest), dtype=bool)
    if num_bootstrap:
        low, high = fit.prediction_band(level, **axes)
        inside = (low <= rest.error) & (rest.error <= high)
    cells = cells_of(rest, fit.form.axes)
    of_cells = np.log(fit.predict(**dict(zip(fit.form.axes, cells.axes, strict=True)))) - cells.log_error
    return HeldOut(
        labels=rest.labels,
        observed=rest.error,
        predicted=predicted,
        errors=np.log(predicted / rest.error),
        inside=inside,
        mean_abs_log_error=float(np.abs(of_cells).mean()),
        num_cells=len(cells),
        axis=axis,
        threshold=threshold,
        points=rest,
        fit=fit,
    )


def _sizes(points: Points, axis: str) -> tuple[Floats, str]:
    """Each run's size, the same for all seeds of a setting, and what it is."""
    if axis == "compute" and not points.has("compute") and points.has("params", "samples"):
        axes: tuple[str, ...] = ("params", "samples")
    elif axis in AXES and points.has(axis):
        axes = (axis,)
    else:
        raise InputError(f"axis={axis!r} to hold out along is not known of these runs")
    cells, sizes = cells_of(points, axes), np.empty(len(points))
    for runs, size in zip(cells.members, cells.axes.prod(axis=0), strict=True):
        sizes[runs] = size
    return sizes, " x ".join(axes)


@dataclass(frozen=True)
class FormScore:
    """A form's mean |log error| on the held-out cells and on the cells it was fitted to; NaN with a `reason` where it could
    not be fitted."""

    form: str
    num_parameters: int
    held_out_error: float
    in_sample_error: float
    reason: str = ""


@dataclass(frozen=True)
class Selection:
    """`chosen` is the smallest of the forms whose held-out error is within `noise` of the least."""

    chosen: str
    rows: tuple[FormScore, ...]
    noise: float
    num_held_out: int


def select_form(
    points: Points,
    forms: Sequence[str] | None = None,
    *,
    axis: str = "compute",
    fraction: float = 0.25,
    loss: str = "huber",
) -> Selection:
    """The form that predicts the largest runs from the others. By default all forms whose axes are known are tried.

    Held-out errors differ by chance by about the spread of a cell over the root of their number (`noise`, from the best
    form's fit); forms within that of the best are equal, and the one with the fewest parameters is taken. Raises
    InputError where no form can be fitted.
    """
    candidates = [form_named(form) for form in forms or FORMS]
    rows, fits = [], {}
    for form in candidates:
        if forms is None and not points.has(*form.axes):
            continue
        try:
            held_out = leave_largest_out(points, form.name, axis, fraction, num_bootstrap=0, loss=loss)
        except InputError as error:
            rows.append(FormScore(form.name, len(form.parameters), math.nan, math.nan, str(error)))
            continue
        solution = held_out.fit.solution
        in_sample = float(np.abs(solution.residuals / solution.problem.root_weights).mean())
        rows.append(FormScore(form.name, len(form.parameters), held_out.mean_abs_log_error, in_sample))
        fits[form.name] = held_out
    if not fits:
        raise InputError(f"no form can be fitted: {rows[0].reason if rows else 'no axis is known of these runs'}")
    scores = [row for row in rows if row.form in fits]
    best = min(scores, key=lambda row: row.held_out_error)
    held_out = fits[best.form]
    noise = held_out.fit.residual_sd / math.sqrt(held_out.num_cells)
    equal = [row for row in scores if row.held_out_error <= best.held_out_error + noise]
    chosen = min(equal, key=lambda row: (row.num_parameters, row.held_out_error))
    return Selection(chosen.form, tuple(rows), noise, held_out.num_cells)
