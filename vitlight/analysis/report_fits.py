"""The laws of a report: one a family and comparable set, with its band, and the runs held out to test it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitlight.analysis.charts import family_key
from vitlight.analysis.laws import FORMS, HeldOut, LawFit, fit_law, leave_largest_out
from vitlight.analysis.points import Exclusion, PointSet, law_sets
from vitlight.analysis.quantities import FLOP_CONVENTION, format_count, format_si
from vitlight.errors import InputError

__all__ = ["FamilyFit", "choose_form", "drawn_fits", "fit_families"]

NUM_BOOTSTRAP = 200
LEVEL = 0.9
_AXIS_TITLES = {
    "compute": f"training FLOPs ({FLOP_CONVENTION})",
    "samples": "samples seen",
    "unique_samples": "distinct training images",
}
_MAX_CURVES = 6
_CURVE_POINTS = 40


@dataclass(frozen=True)
class FamilyFit:
    """What came of fitting a law to one set of runs: `fit` and `held_out`, or `reason` why there is none."""

    name: str
    family: str
    points: PointSet
    fit: LawFit | None = None
    held_out: HeldOut | None = None
    reason: str | None = None


def fit_families(
    runs: pd.DataFrame, num_bootstrap: int = NUM_BOOTSTRAP, with_published: bool = False
) -> tuple[list[FamilyFit], list[Exclusion]]:
    """A law a family and comparable set of a run table, and the runs that no law was fitted to, each with its reason.

    Published results take part only where `with_published` asks for it. Deterministic.
    """
    if "is_published" in runs and not with_published:
        runs = runs[~runs["is_published"].fillna(False).astype(bool)]
    if runs.empty:
        return [], []
    sets, excluded = law_sets(runs)
    return [_fit_set(one, num_bootstrap) for one in sets], excluded


def choose_form(one: PointSet) -> str | None:
    """The name of the form that a set's grid can pin down, None where it can't pin down any.

    Size and data jointly need three sizes and three amounts of data or more, and two cells more than they have
    parameters: with repeats counted where the number of epochs differs by a tenth or more. Else error against
    compute, from five amounts of it on. `vitlight law` compares forms by what they predict of held-out runs.
    """
    points = one.points
    num_cells = len(set(points.groups))
    sizes, samples, unique, compute = (
        _num_distinct(values) for values in (points.params, points.samples, points.unique_samples, points.compute)
    )
    if sizes >= 3 and np.isfinite(points.unique_samples).all():
        epochs = points.samples / points.unique_samples
        name = "size_data_repeated" if epochs.max() > 1.1 * epochs.min() else "size_data"
        distinct = unique if name == "size_data_repeated" else samples
        if distinct >= 3 and num_cells >= len(FORMS[name].parameters) + 2:
            return name
    if sizes >= 3 and samples >= 3 and num_cells >= len(FORMS["size_data"].parameters) + 2:
        return "size_data"
    return "compute" if compute >= 5 else None


def _num_distinct(values: NDArray[np.float64]) -> int:
    return len(np.unique(values[np.isfinite(values)]))


def _fit_set(one: PointSet, num_bootstrap: int) -> FamilyFit:
    family = family_key(one.runs["family"].iloc[0])
    name = choose_form(one)
    if name is None:
        amounts = format_count(_num_distinct(one.points.compute), "amount")
        return FamilyFit(one.name, family, one, reason=f"{format_count(len(one.runs), 'run')} at {amounts} of compute: "
                         "a law needs five amounts, or a grid of three sizes by three amounts of data")  # fmt: skip
    try:
        fit = fit_law(one.points, name, num_bootstrap=num_bootstrap, level=LEVEL)
    except InputError as error:
        return FamilyFit(one.name, family, one, reason=str(error))
    try:
        held_out = leave_largest_out(one.points, name, num_bootstrap=num_bootstrap, level=LEVEL)
    except InputError:
        held_out = None  # too few are left to fit: the page says that nothing was held out
    return FamilyFit(one.name, family, one, fit, held_out)


def drawn_fits(fits: list[FamilyFit]) -> list[dict[str, Any]]:
    """JSON-ready panels, one a fit: `curves` with the band of each, `points` with what was predicted of held-out ones."""
    return [_panel(one, one.fit) for one in fits if one.fit is not None]


def _panel(one: FamilyFit, fit: LawFit) -> dict[str, Any]:
    points = fit.points
    axis = _drawn_axis(fit)
    predicted = {}
    if one.held_out is not None:
        predicted = dict(zip(one.held_out.labels, map(float, one.held_out.predicted), strict=True))
    sizes = np.unique(points.params) if "params" in fit.form.axes else np.array([np.nan])
    marks = [
        {
            "x": float(getattr(points, axis)[i]),
            "y": float(points.error[i]),
            "label": points.labels[i],
            "rank": int(np.searchsorted(sizes, points.params[i])) if len(sizes) > 1 else 0,
            "predicted": predicted.get(points.labels[i]),
        }
        for i in range(len(points.labels))
    ]
    return {
        "title": one.name,
        "family": one.family,
        "axis": _AXIS_TITLES[axis],
        "num_ranks": len(sizes),
        "curves": _curves(fit, axis, sizes),
        "points": marks,
    }


def _drawn_axis(fit: LawFit) -> str:
    """Distinct images where each size saw as many samples on all of them, else samples seen; compute for laws of that."""
    if "unique_samples" not in fit.form.axes:
        return "samples" if "samples" in fit.form.axes else "compute"
    points = fit.points
    pairs = set(zip(points.params, points.unique_samples, strict=True))
    triples = set(zip(points.params, points.unique_samples, points.samples, strict=True))
    return "unique_samples" if len(pairs) == len(triples) else "samples"


def _curves(fit: LawFit, axis: str, sizes: NDArray[np.float64]) -> list[dict[str, Any]]:
    """A curve a model size (evenly chosen where there are many), over the range of data that the size was trained on."""
    points = fit.points
    places = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), _MAX_CURVES)).round().astype(int))
    curves = []
    for place in places:
        of_size = points.params == sizes[place] if len(sizes) > 1 else np.ones(len(points.labels), dtype=bool)
        known = np.unique(getattr(points, axis)[of_size])
        if len(known) < 2:
            continue
        x = np.geomspace(known[0], known[-1], _CURVE_POINTS)
        axes = {name: _along(points, name, axis, of_size, x) for name in fit.form.axes}
        low, high = fit.band(level=LEVEL, **axes)
        curves.append(
            {
                "label": f"N = {format_si(float(sizes[place]))}" if len(sizes) > 1 else "",
                "rank": int(place) if len(sizes) > 1 else 0,
                **{key: [float(v) for v in values] for key, values in
                   (("x", x), ("y", fit.predict(**axes)), ("low", low), ("high", high))},
            }
        )  # fmt: skip
    return curves


def _along(
    points: Any, name: str, axis: str, members: NDArray[np.bool_], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """An axis of the form at the places `x` of the drawn one: between the cells that were run, evenly in logarithms; of
    distinct images against samples seen, the most there were."""
    values, at = getattr(points, name)[members], getattr(points, axis)[members]
    if name == axis:
        return x
    if (name, axis) == ("unique_samples", "samples"):
        return np.minimum(x, values.max())
    order = np.argsort(at, kind="stable")
    places, first = np.unique(at[order], return_index=True)
    return np.exp(np.interp(np.log(x), np.log(places), np.log(values[order][first])))
