"""`vitlight law` without its words: a law for each set of comparable runs, how well it predicts, and what it says."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitlight.analysis.candidates import CountMacs
from vitlight.analysis.law_budget import answer_budget, frontier_rows
from vitlight.analysis.law_question import Question, select
from vitlight.analysis.law_records import (
    finite,
    held_out_record,
    meaning,
    point_rows,
    prediction_row,
    selection_rows,
)
from vitlight.analysis.law_text import formula_with_numbers
from vitlight.analysis.laws import FORMS, HeldOut, LawFit, Selection, fit_law, leave_largest_out, select_form
from vitlight.analysis.points import Exclusion, PointSet, law_sets
from vitlight.analysis.quantities import TRAIN_FLOP_CONVENTION
from vitlight.analysis.summary import pareto_front
from vitlight.analysis.tables import load_table
from vitlight.errors import InputError

__all__ = ["Answer", "Law", "fit_laws", "run_rate"]

Record = dict[str, Any]
Row = Mapping[str, Any]
COMPUTE_FORMS = tuple(name for name, form in FORMS.items() if form.axes == ("compute",))
SIZE_FORMS = tuple(name for name in FORMS if name not in COMPUTE_FORMS)


@dataclass(frozen=True, eq=False)
class Law:
    """A fitted law of one set. `record` is all of it that JSON can hold, in the words of docs/laws.md."""

    members: PointSet
    fit: LawFit
    held_out: HeldOut | None
    places: tuple[dict[str, float], ...]  # where a prediction was asked for
    record: Record

    @property
    def is_held_out(self) -> NDArray[np.bool_]:
        """Of each run of `fit.points`."""
        held = set(self.held_out.labels) if self.held_out is not None else set()
        return np.array([label in held for label in self.fit.points.labels], dtype=bool)


@dataclass(frozen=True, eq=False)
class Answer:
    """`not_fitted`: name of a set -> why it has no law."""

    question: Question
    laws: tuple[Law, ...]
    not_fitted: dict[str, str]
    excluded: tuple[Exclusion, ...]

    def as_json(self) -> Record:
        """One object of numbers, text, lists and null."""
        return {
            "schema": 1,
            "convention": f"FLOP = half a MAC; {TRAIN_FLOP_CONVENTION}",
            "question": asdict(self.question),
            "laws": [law.record for law in self.laws],
            "not_fitted": [{"name": name, "reason": reason} for name, reason in self.not_fitted.items()],
            "excluded": [asdict(one) for one in self.excluded],
        }


def fit_laws(
    sources: Sequence[str],
    question: Question,
    plan_sweep: Callable[[str], Sequence[Row]],
    count_macs: CountMacs,
) -> Answer:
    """Load, choose and fit. InputError for sources, columns or a sweep that can't be used; a set that can't be fitted is in
    `not_fitted`. `plan_sweep` and `count_macs` are called only for a budget's next runs."""
    runs = select(load_table(sources), question.where)
    sets, excluded = law_sets(
        runs,
        question.error,
        x=question.x,
        size=question.size,
        by=question.by,
        pool=question.pool,
        axes=_needed(runs, question),
    )
    if not sets:
        first = f"; the first of {len(excluded)}: {excluded[0].run}: {excluded[0].reason}" if excluded else ""
        raise InputError(f"no run is left to fit a law to{first}")
    cells = plan_sweep(question.sweep) if question.sweep is not None else None
    laws, not_fitted = [], {}
    for members in sets:
        if question.pareto:
            members, beaten = best_per_compute(members)
            excluded += beaten
        try:
            laws.append(_fit(members, question, runs, cells, count_macs))
        except InputError as error:
            not_fitted[members.name] = str(error)
    return Answer(question, tuple(laws), not_fitted, tuple(excluded))


def _needed(runs: pd.DataFrame, question: Question) -> tuple[str, ...]:
    """The axes without which a run is left out: the form's, or for any form that of the compute forms where runs have it."""
    if question.form != "auto":
        return FORMS[question.form].axes
    return ("compute",) if question.x in runs and runs[question.x].notna().any() else ()


def best_per_compute(members: PointSet) -> tuple[PointSet, list[Exclusion]]:
    """The cells whose mean error none of no more compute beats, with all of their seeds. InputError without a compute."""
    points = members.points
    if not points.has("compute"):
        raise InputError(f"--pareto needs the compute of every run, and {members.name} lacks it")
    groups: dict[Any, list[int]] = {}
    for place, group in enumerate(points.groups):
        groups.setdefault(group, []).append(place)
    cells = list(groups.values())
    front = pareto_front(
        [points.compute[cell].mean() for cell in cells], [-points.error[cell].mean() for cell in cells]
    )
    kept = np.sort(np.concatenate([cells[place] for place in front]))
    beaten = [
        Exclusion(label, "another run of no more compute has less error (--pareto)")
        for place, label in enumerate(points.labels)
        if place not in set(kept.tolist())
    ]
    return PointSet(members.name, points.take(kept), members.runs.iloc[kept], members.notes), beaten


def _fit(
    members: PointSet, question: Question, runs: pd.DataFrame, cells: Sequence[Row] | None, count_macs: CountMacs
) -> Law:
    selection, form, notes = _choose(members, question)
    settings: dict[str, Any] = {"num_bootstrap": question.bootstrap, "level": question.level, "seed": question.seed}
    fit = fit_law(members.points, form, **settings)
    axis = "compute" if FORMS[form].axes == ("compute",) or members.points.has("compute") else "samples"
    held_out, problem = None, ""
    try:
        held_out = leave_largest_out(members.points, form, axis, question.hold_out, **settings)
    except InputError as error:
        problem = str(error)
    record = {
        "name": members.name,
        "num_runs": len(members.points),
        "num_cells": len(set(members.points.groups)),
        "form": form,
        "formula": FORMS[form].formula,
        "formula_with_numbers": formula_with_numbers(FORMS[form].formula, fit.parameters),
        "meaning": meaning(FORMS[form].axes, question),
        "parameters": [
            {
                "name": name,
                "value": value,
                "low": finite(fit.intervals[name][0]),
                "high": finite(fit.intervals[name][1]),
            }
            for name, value in fit.parameters.items()
        ],
        "level": fit.level,
        "interval_method": fit.interval_method,
        "residual_sd": finite(fit.residual_sd),
        "selection": selection_rows(selection),
        "held_out": held_out_record(held_out, problem, question),
        "notes": [*members.notes, *notes, *_beaten(fit), *_unread(fit, question)],
        "warnings": [question.in_columns(line) for line in fit.warnings],
        "points": point_rows(fit),
        "predictions": [prediction_row(fit, place, members, question) for place in question.predict],
        "frontier": frontier_rows(fit, members, question) if question.frontier else None,
        "budget": None,
    }
    if question.budget is not None:
        rate = question.rate if question.rate is not None else run_rate(members.runs)
        record["budget"] = answer_budget(fit, members, question, rate, runs, cells, count_macs)
    return Law(members, fit, held_out, question.predict, record)


def _choose(members: PointSet, question: Question) -> tuple[Selection | None, str, list[str]]:
    """The form: as asked, or the one that predicts the largest runs best, of those that can answer the question."""
    places = set().union(*question.predict)
    wants_sizes = question.frontier or question.budget is not None or not places <= {"compute"}
    if question.form != "auto":
        if question.frontier and question.form in COMPUTE_FORMS:
            raise InputError(f"--frontier needs a law of size and data, not --form={question.form}; take size_data")
        return None, question.form, []
    points, notes = members.points, []
    forms = [name for name in (SIZE_FORMS if wants_sizes else FORMS) if points.has(*FORMS[name].axes)]
    if not forms and not wants_sizes:
        raise InputError("the runs have neither the compute nor the size and the images seen that a law needs")
    try:
        if not forms:
            raise InputError("runs lack params or samples_seen")
        selection = select_form(points, forms, fraction=question.hold_out)
    except InputError as error:
        if question.budget is None or question.frontier or not places <= {"compute"} or not points.has("compute"):
            raise
        notes.append(f"no law of size and data ({error}); the budget is answered from one of compute alone")
        selection = select_form(points, COMPUTE_FORMS, fraction=question.hold_out)
    return selection, selection.chosen, notes


def _unread(fit: LawFit, question: Question) -> list[str]:
    if question.images is None or "unique_samples" in fit.form.axes:
        return []
    return [f"--images={question.images:g} changes nothing: {fit.form.name} does not count repeats"]


def _beaten(fit: LawFit) -> list[str]:
    """A law of compute alone is one of the best runs; whether others are in it."""
    if fit.form.name not in COMPUTE_FORMS:
        return []
    num_beaten = len(fit.points) - len(pareto_front(fit.points.compute, -fit.points.error))
    if not num_beaten or len(set(fit.points.groups)) < len(fit.points):
        return []
    return [
        f"{num_beaten} of {len(fit.points)} runs are beaten by one of no more compute; --pareto fits the others alone"
    ]


def run_rate(runs: pd.DataFrame) -> float | None:
    """FLOP/s of one device: the median over runs of train FLOPs over device seconds; None where no run has both."""
    if not {"train_flops", "device_seconds"} <= set(runs.columns):
        return None
    both = runs[["train_flops", "device_seconds"]].dropna().astype(float)
    both = both[both["device_seconds"] > 0]
    return float((both["train_flops"] / both["device_seconds"]).median()) if len(both) else None
