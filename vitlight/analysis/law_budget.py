"""What a law says about a budget: the best size and data, every model at that budget, and the runs that would tell more."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from vitlight.analysis.advice import MIN_NARROWING, Candidate, choose_next
from vitlight.analysis.candidates import CountMacs, Sizes, known_sizes, ladder, sweep_cells
from vitlight.analysis.law_question import Question
from vitlight.analysis.laws import LawFit, check_extrapolation, compute_optimal
from vitlight.analysis.laws.points import Floats
from vitlight.analysis.points import PointSet
from vitlight.analysis.quantities import format_si
from vitlight.errors import InputError

__all__ = ["answer_budget", "frontier_rows", "size_macs"]

Record = dict[str, Any]

# Training costs three forward passes, and a multiply-add is two FLOPs.
FLOPS_PER_MAC = 6
TRIAL_PART = 0.1
# The frontier goes from the least compute that was run to so many times the most.
FRONTIER_REACH, FRONTIER_STEPS = 10, 7
GRID = 600


def size_macs(members: PointSet, size: str) -> tuple[float, list[str]]:
    """Forward MACs over the size axis, the median over runs, and a warning where models of one size differ in it.

    InputError where runs don't tell their forward MACs.
    """
    if size == "forward_macs":
        return 1.0, []
    both = members.runs[[size, "forward_macs"]].dropna().astype(float)
    if not len(both):
        raise InputError("training FLOPs of a size follow from forward_macs, and no run of the table has them")
    ratios = both["forward_macs"] / both[size]
    warnings = []
    if ratios.max() > 2 * ratios.min():
        warnings.append(
            f"forward MACs per parameter go from {ratios.min():.3g} to {ratios.max():.3g} over these runs (patch sizes?): "
            "--size forward_macs measures size by what it costs"
        )
    return float(ratios.median()), warnings


def _images(fit: LawFit, question: Question) -> float | None:
    """How many distinct images there are, for a law that counts repeats."""
    if "unique_samples" not in fit.form.axes:
        return None
    return question.images if question.images is not None else float(fit.points.unique_samples.max())


def frontier_rows(fit: LawFit, members: PointSet, question: Question, budgets: Floats | None = None) -> Record:
    """The best size and data for each of `budgets` (training FLOPs), by default from the least that was run to
    FRONTIER_REACH times the most."""
    macs, warnings = size_macs(members, question.size)
    if budgets is None:
        spent = FLOPS_PER_MAC * macs * fit.points.params * fit.points.samples
        budgets = np.geomspace(spent.min(), FRONTIER_REACH * spent.max(), FRONTIER_STEPS)
    best = compute_optimal(fit, budgets, macs, unique_samples=_images(fit, question))
    rows = []
    for place, flops in enumerate(best.compute):
        row: Record = {"train_flops": float(flops)}
        for name, values, ends in (
            (question.size, best.params, best.params_interval),
            ("images", best.samples, best.samples_interval),
            ("error", best.error, best.error_interval),
        ):
            row |= {
                name: float(values[place]),
                f"{name}_low": float(ends[0, place]),
                f"{name}_high": float(ends[1, place]),
            }
        rows.append(row)
    return {
        "size": question.size,
        "size_exponent": _exponent(best.exponents, best.exponent_intervals, "params"),
        "data_exponent": _exponent(best.exponents, best.exponent_intervals, "samples"),
        "rows": rows,
        "warnings": [*warnings, *(question.in_columns(line) for line in best.warnings)],
    }


def _exponent(values: Mapping[str, float], ends: Mapping[str, tuple[float, float]], name: str) -> dict[str, float]:
    return {"value": values[name], "low": ends[name][0], "high": ends[name][1]}


def answer_budget(
    fit: LawFit,
    members: PointSet,
    question: Question,
    rate: float | None,
    runs: pd.DataFrame,
    cells: Sequence[Mapping[str, Any]] | None,
    count_macs: CountMacs,
) -> Record:
    """The recommendation for `question.budget`, at `rate` FLOP/s of one device where it is in hours; `cells` are those of
    the sweep to choose from, None for a ladder of the family. InputError where the law has no optimum."""
    assert question.budget is not None
    flops = question.budget.flops(rate)
    note = f" ({question.budget.value:g} device hours at {rate:.3g} FLOP/s)" if question.budget.in_hours else ""
    sizes = known_sizes(members, count_macs)
    record: Record = {"train_flops": flops, "note": note, "rate": rate, "warnings": [], "models": []}
    targets: dict[str, Floats] = {}
    if fit.form.axes == ("compute",):
        if question.x != "train_flops":
            raise InputError(f"--budget is in training FLOPs, and this law reads {question.x}; leave --x out")
        if question.narrow == "size":
            raise InputError("--narrow=size needs a law of size and data; take --narrow=error or --form=size_data")
        low, high = fit.prediction_band(compute=flops)
        record["error"] = {"value": float(fit.predict(compute=flops)), "low": float(low), "high": float(high)}
        record["warnings"] += [question.in_columns(line) for line in check_extrapolation(fit, compute=flops)]
        targets["error"] = _log_error(fit, compute=flops)
    else:
        best = frontier_rows(fit, members, question, np.array([flops]))
        row = best["rows"][0]
        record["best"] = {
            name: {"value": row[column], "low": row[f"{column}_low"], "high": row[f"{column}_high"]}
            for name, column in (("size", question.size), ("samples", "images"), ("error", "error"))
        }
        record["warnings"] += [*best["warnings"], *_repeats(fit, row["images"])]
        targets["size"] = _best_log_size(fit, members, question, flops)
        axes = _axes(fit, row[question.size], row["images"], _images(fit, question))
        targets["error"] = _log_error(fit, **axes)
        record["models"] = _models(fit, sizes, flops, question)
    return record | _next(fit, members, question, flops, rate, targets, runs, cells, sizes)


def _repeats(fit: LawFit, samples: float) -> list[str]:
    """A line where a law that takes every image for a new one asks for more epochs than runs made."""
    points = fit.points
    if "unique_samples" in fit.form.axes or not points.has("unique_samples"):
        return []
    most, epochs = points.unique_samples.max(), (points.samples / points.unique_samples).max()
    if samples / most <= 1.5 * epochs:
        return []
    return [
        f"{format_si(samples)} images to draw are {samples / most:.3g} epochs of the most distinct images that a run had, "
        f"{format_si(most)}, and no run made more than {epochs:.3g}: {fit.form.name} takes repeats for new images"
    ]


def _axes(fit: LawFit, size: float | Floats, samples: float | Floats, images: float | Floats | None) -> dict[str, Any]:
    axes: dict[str, Any] = {"params": size, "samples": samples}
    if "unique_samples" in fit.form.axes:
        axes["unique_samples"] = samples if images is None else np.minimum(samples, images)
    return axes


def _log_error(fit: LawFit, **axes: Any) -> Floats:
    """Under every draw: (num_draws, *shape)."""
    return np.log(fit.form.error(fit.draws, axes))


def _best_log_size(fit: LawFit, members: PointSet, question: Question, flops: float) -> Floats:
    """The logarithm of the best size under every draw, (num_draws,), looked for 1000 times beyond what was run."""
    macs, _ = size_macs(members, question.size)
    sampled = fit.points.params
    grid = np.geomspace(sampled.min() / 1000, sampled.max() * 1000, GRID)
    samples = flops / (FLOPS_PER_MAC * macs * grid)
    errors = fit.form.error(fit.draws, _axes(fit, grid, samples, _images(fit, question)))
    best: Floats = np.log(grid)[np.argmin(errors, axis=1)]
    return best


def _models(fit: LawFit, sizes: Sizes, flops: float, question: Question) -> list[Record]:
    """Every known architecture with the images that the budget lets it see, best first."""
    images = _images(fit, question)
    rows = []
    for arch, (params, macs) in sizes.items():
        samples = flops / (FLOPS_PER_MAC * macs)
        axes = _axes(fit, float({"params": params, "forward_macs": macs}[question.size]), samples, images)
        low, high = fit.prediction_band(**axes)
        beyond = check_extrapolation(fit, **axes)
        rows.append(
            {
                "arch": arch,
                question.size: float(axes["params"]),
                "images_to_see": samples,
                "error": float(fit.predict(**axes)),
                "low": float(low),
                "high": float(high),
                "beyond_10x_of_what_ran": ", ".join(question.in_columns(line).partition("=")[0] for line in beyond),
            }
        )
    return sorted(rows, key=lambda row: row["error"])


def _next(
    fit: LawFit,
    members: PointSet,
    question: Question,
    flops: float,
    rate: float | None,
    targets: dict[str, Floats],
    runs: pd.DataFrame,
    cells: Sequence[Mapping[str, Any]] | None,
    sizes: Sizes,
) -> Record:
    if question.next == 0:
        return {"next": [], "next_rule": ""}
    trial = question.trial.flops(rate) if question.trial is not None else TRIAL_PART * flops
    if cells is not None:
        found = sweep_cells(cells, runs, question.size)
        where = f"cells of {question.sweep}"
    else:
        found = ladder(members, sizes, question.size)
        where = "sizes x durations of the ladder"
    affordable = [candidate for candidate in found if candidate.train_flops <= trial]
    by = question.narrow or next(iter(targets))
    chosen = []
    if affordable:
        chosen = choose_next(
            affordable, _outcomes(fit, affordable), targets, fit.residual_sd, by=by, count=question.next
        )
    rule = (
        f"next runs: of {len(found)} {where} without a result, {len(affordable)} cost at most {trial:.3g} train FLOPs; "
        f"those that take most of the variance of the {by} for their compute"
    )
    if not chosen:
        rule += f": none narrows its interval by {MIN_NARROWING:.0%}"
    return {"next": [asdict(run.candidate) | {"narrowing": run.narrowing} for run in chosen], "next_rule": rule}


def _outcomes(fit: LawFit, candidates: Sequence[Candidate]) -> Floats:
    """The log error of every candidate under every draw: (num_draws, num_candidates)."""
    columns = {
        "compute": np.array([candidate.train_flops for candidate in candidates]),
        "params": np.array([candidate.params for candidate in candidates]),
        "samples": np.array([candidate.samples for candidate in candidates]),
        "unique_samples": np.array([candidate.unique_samples for candidate in candidates]),
    }
    return _log_error(fit, **{axis: columns[axis] for axis in fit.form.axes})
