"""The parts of a law's record: what JSON can hold, in the words of docs/laws.md."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from vitlight.analysis.law_budget import frontier_rows
from vitlight.analysis.law_question import Question
from vitlight.analysis.laws import HeldOut, LawFit, Selection, check_extrapolation
from vitlight.analysis.laws.points import Floats
from vitlight.analysis.points import PointSet, is_fraction
from vitlight.errors import InputError

__all__ = ["finite", "held_out_record", "meaning", "point_rows", "prediction_row", "selection_rows"]

Record = dict[str, Any]


def meaning(axes: tuple[str, ...], question: Question) -> str:
    """Which column each letter of a formula stands for."""
    words = {
        "compute": f"C: {question.x}",
        "params": f"N: {question.size}",
        "samples": "D: samples_seen",
        "unique_samples": "U: unique_samples_seen",
    }
    sign = "1 - " if is_fraction(question.error) else ""
    return "; ".join([f"E: {sign}{question.error}", *(words[axis] for axis in axes)])


def selection_rows(selection: Selection | None) -> list[Record]:
    """The forms that were compared; none where one was asked for."""
    if selection is None:
        return []
    return [
        {name: finite(value) if isinstance(value, float) else value for name, value in asdict(row).items()}
        for row in selection.rows
    ]


def held_out_record(held: HeldOut | None, problem: str, question: Question) -> Record:
    """What was held out, run by run, or the problem why nothing could be."""
    if held is None:
        return {"problem": problem}
    axes: dict[str, Any] = {name: held.points.axis(name) for name in held.fit.form.axes}
    low, high = held.fit.prediction_band(**axes)
    columns = (held.labels, held.observed, held.predicted, low, high, held.inside)
    sources = {axis: column for column, axis in question.axis_names.items()}
    return {
        "axis": sources.get(held.axis, held.axis),
        "threshold": held.threshold,
        "num_runs": len(held.labels),
        "num_fitted": len(held.fit.points),
        "mean_abs_log_error": held.mean_abs_log_error,
        "num_inside": int(held.inside.sum()),
        "runs": [
            {
                "run": run,
                "observed": float(observed),
                "predicted": float(predicted),
                "low": float(least),
                "high": float(most),
                "inside": bool(inside),
            }
            for run, observed, predicted, least, most, inside in zip(*columns, strict=True)
        ],
    }


def point_rows(fit: LawFit) -> list[Record]:
    """What the law was fitted to, an object a run."""
    points = fit.points
    axes: dict[str, Floats] = {axis: points.axis(axis) for axis in fit.form.axes}
    return [
        {"run": label, "error": float(points.error[place])} | {name: float(axes[name][place]) for name in axes}
        for place, label in enumerate(points.labels)
    ]


def prediction_row(fit: LawFit, place: Mapping[str, float], members: PointSet, question: Question) -> Record:
    """The error where the user asked. Of a law of size and data, a compute alone is spent on the best size for it."""
    columns = {axis: column for column, axis in question.axis_names.items()}
    axes = fit.form.axes
    given = dict(place)
    if axes != ("compute",) and set(given) == {"compute"} and question.x == "train_flops":
        rows = frontier_rows(fit, members, question, np.array([given["compute"]]))["rows"]
        return {question.x: given["compute"]} | {name: rows[0][name] for name in rows[0] if name != "train_flops"}
    if "unique_samples" in axes and "unique_samples" not in given and "samples" in given:
        given["unique_samples"] = min(given["samples"], question.images or float(members.points.unique_samples.max()))
    for axis in axes:
        if axis not in given:
            needed = " ".join(f"{columns[name]}=..." for name in axes)
            raise InputError(f'--predict lacks {columns[axis]}, which the form {fit.form.name} reads; write "{needed}"')
    values = {axis: given[axis] for axis in axes}
    low, high = fit.prediction_band(**values)
    beyond = check_extrapolation(fit, **values)
    return {columns[axis]: given[axis] for axis in axes} | {
        "error": float(fit.predict(**values)),
        "low": float(low),
        "high": float(high),
        "beyond_10x_of_what_ran": ", ".join(columns[line.partition("=")[0]] for line in beyond),
    }


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if math.isfinite(value) else None
