"""A run table becomes the points that a scaling law is fitted to, and a list of the runs left out, each with its reason.

Runs are split into sets, a law each. Results that measure different things (COMPARABLE) are never in one set, nor are
families, unless `pool` says that they may be. Of several settings tried at one size, data and duration, the one that is best
on the held-out part of the training data stays: the best on the test set would be too good by the noise of the choice.
"""

import re
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vitlight.analysis.evaluation_rows import is_set_column
from vitlight.analysis.laws.points import AXES, Points
from vitlight.analysis.probes import is_probe_fraction
from vitlight.analysis.quantities import format_count, format_si
from vitlight.analysis.summary import COMPARABLE as SAME_MEASUREMENT
from vitlight.analysis.summary import SETTINGS, earlier_copies
from vitlight.errors import InputError, did_you_mean

__all__ = ["COMPARABLE", "Exclusion", "PointSet", "column_error", "is_fraction", "law_points", "law_sets"]

# Results that differ in one of these measure different things: `metric` and `comparable` are those of published results.
COMPARABLE = (*SAME_MEASUREMENT, "metric", "comparable")
# Runs of one size on the same data for as long, to 1 %, are settings of one cell; batch sizes round a duration a little.
SAME_CELL = ("arch", "params", "forward_macs", "num_train_samples")
SAME_DURATION = 0.01
FRACTIONS = ("top1", "top5")


@dataclass(frozen=True)
class Exclusion:
    """A run that no law is fitted to: what it is called, and why in one line."""

    run: str
    reason: str


@dataclass(frozen=True)
class PointSet:
    """Runs that one law may describe; row i of `runs` is element i of `points`."""

    name: str  # what tells it from the other sets: family=vit, data_digest=...
    points: Points
    runs: pd.DataFrame
    notes: tuple[str, ...]  # choices made among settings, and what was pooled: a line each


def law_points(
    runs: pd.DataFrame, error: str = "top1", x: str = "train_flops", size: str = "params", axes: Sequence[str] = ()
) -> tuple[Points, list[Exclusion]]:
    """The points of a table whose runs are comparable and of one family; see `law_sets`. InputError where they are not."""
    sets, excluded = law_sets(runs, error, x=x, size=size, axes=axes)
    if len(sets) != 1:
        names = "; ".join(one.name for one in sets[:3]) + ("; ..." if len(sets) > 3 else "")
        raise InputError(f"the runs make {len(sets)} sets, and a law is fitted to one: {names or 'none is done'}")
    return sets[0].points, excluded


def law_sets(
    runs: pd.DataFrame,
    error: str = "top1",
    *,
    x: str = "train_flops",
    size: str = "params",
    by: Sequence[str] = ("family",),
    pool: Sequence[str] = (),
    axes: Sequence[str] = (),
) -> tuple[list[PointSet], list[Exclusion]]:
    """The sets of comparable runs of a `load_table` frame in the order of what tells them apart, and the runs left out.

    `error` is a column: of a fraction correct (`is_fraction`) the error is 1 minus it, of any other itself. `x` fills
    Points.compute and `size` Points.params; `samples` are samples_seen and `unique_samples` unique_samples_seen, or
    else the smaller of samples_seen and num_train_samples. A set is one value of each column of `by` and COMPARABLE,
    those of `pool` excepted. A run that lacks one of `axes` (names of Points' arrays) is left out. Runs that differ in
    nothing but their seed are one group. InputError: a column that the table lacks.
    """
    sources = {"compute": x, "params": size} | dict.fromkeys(AXES[2:], "samples_seen")
    for column in (error, x, size, *by, *pool):
        if column not in runs:
            raise InputError(f"the table has no column {column!r}{did_you_mean(column, map(str, runs.columns))}")
    excluded: list[Exclusion] = []
    frame = _without_duplicates(_finished(runs, excluded), excluded)
    frame = frame.assign(_error=column_error(frame, error), **_axes(frame, x, size))
    frame = _measured(frame, error, sources, axes, excluded)
    split = [column for column in dict.fromkeys((*by, *COMPARABLE)) if column in frame and column not in pool]
    chooser = "val_loss" if error.endswith("loss") else "val_top1"
    sets = []
    for key, places in _places(_keys(frame, split)).items():
        members = frame.iloc[places]
        kept, notes = _best_settings(members, chooser, excluded)
        notes += [
            f"{column} has {members[column].nunique(dropna=False)} values in this set, as asked"
            for column in pool
            if members[column].nunique(dropna=False) > 1
        ]
        notes += _unknown(kept, sources)
        sets.append((key, kept, tuple(notes)))
    telling = [i for i, column in enumerate(split) if column in by or len({key[i] for key, _, _ in sets}) > 1]
    sets.sort(key=lambda one: tuple((value is not None, value) for value in one[0]))
    named = [PointSet(_set_name(split, key, telling), _points(kept), kept, notes) for key, kept, notes in sets]
    return named, excluded


def column_error(frame: pd.DataFrame, column: str) -> "pd.Series[float]":
    """The error that a column tells: 1 minus a fraction, or the column itself. InputError where it holds no numbers, or a
    standard deviation."""
    if column.endswith("_std"):
        raise InputError(
            f"the column {column!r} is a standard deviation, no error; name {column.removesuffix('_std')!r}"
        )
    values = _numbers(frame, column)
    return 1 - values if is_fraction(column) else values


def is_fraction(column: str) -> bool:
    """Whether a column holds fractions correct: top1 and top5 of any split, of an evaluation set (top1_v2), of frozen
    features (few_shot/10_shot)."""
    return re.split("[_/]", column)[-1] in FRACTIONS or is_set_column(column) or is_probe_fraction(column)


def _numbers(frame: pd.DataFrame, column: str) -> "pd.Series[float]":
    try:
        return pd.to_numeric(frame[column].astype(object).where(frame[column].notna(), np.nan)).astype(float)
    except (TypeError, ValueError):
        raise InputError(
            f"the column {column!r} holds no numbers; name one that does, such as top1 or params"
        ) from None


def _axes(frame: pd.DataFrame, x: str, size: str) -> "dict[str, pd.Series[float]]":
    seen, images, unique = (
        _numbers(frame, column) if column in frame else pd.Series(np.nan, frame.index)
        for column in ("samples_seen", "num_train_samples", "unique_samples_seen")
    )
    return {
        "_compute": _numbers(frame, x),
        "_params": _numbers(frame, size),
        "_samples": seen,
        "_unique_samples": unique.where(unique.notna(), np.minimum(seen, images)),
    }


def _finished(runs: pd.DataFrame, excluded: list[Exclusion]) -> pd.DataFrame:
    """The done runs. A row without a status is a result that somebody reports, so it is done."""
    if "status" not in runs:
        return runs
    status = runs["status"].astype(object).where(runs["status"].notna(), "done").to_numpy()
    others = runs[status != "done"]
    for name, row in zip(_names(others), _records(others, ("status", "reason")), strict=True):
        reason = str(row["reason"]).splitlines()[0] if row.get("reason") else ""
        excluded.append(Exclusion(name, str(row["status"]) + (f": {reason}" if reason else "")))
    return runs[status == "done"]


def _without_duplicates(runs: pd.DataFrame, excluded: list[Exclusion]) -> pd.DataFrame:
    """A run found in several folders counts once: the one that ended last."""
    if "run_id" not in runs:
        return runs
    repeats = runs[earlier_copies(runs)]
    for name, run_id in zip(_names(repeats), repeats["run_id"], strict=True):
        excluded.append(Exclusion(name, f"another copy of run {run_id} ended later"))
    return runs.drop(index=repeats.index)


def _measured(
    frame: pd.DataFrame, error: str, columns: dict[str, str], axes: Sequence[str], excluded: list[Exclusion]
) -> pd.DataFrame:
    """The rows with a positive error and, on every one of `axes`, a positive number; `columns` name the axes' sources."""
    for column, source in [("_error", error), *((f"_{axis}", columns[axis]) for axis in axes)]:
        values = frame[column].to_numpy(dtype=float)
        usable = np.isfinite(values) & (values > 0)
        for name, value in zip(_names(frame[~usable]), values[~usable], strict=True):
            reason = f"no {source}" if np.isnan(value) else f"{column[1:]} is {value:g}, and its logarithm is fitted"
            excluded.append(Exclusion(name, reason))
        frame = frame[usable]
    return frame


def _unknown(frame: pd.DataFrame, sources: dict[str, str]) -> list[str]:
    """A line for each axis that only some of the runs have: it is taken as unknown, so that no run is lost to it."""
    lines = []
    for axis in AXES[:3]:
        missing = int(frame[f"_{axis}"].isna().sum())
        if 0 < missing < len(frame):
            lines.append(
                f"{sources[axis]} is unknown for {missing} of {len(frame)} runs, so forms that read it are left out"
            )
    return lines


def _keys(frame: pd.DataFrame, columns: Iterable[str]) -> list[tuple[Any, ...]]:
    """The values of each row in those of `columns` that the frame has; a missing one is None."""
    known = [column for column in columns if column in frame]
    if not known:
        return [()] * len(frame)
    values = frame[known].astype(object)
    return list(values.where(values.notna(), None).itertuples(index=False, name=None))


def _places(keys: Iterable[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[int]]:
    """Key -> where it stands, in order of first appearance."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    return places


def _best_settings(frame: pd.DataFrame, chooser: str, excluded: list[Exclusion]) -> tuple[pd.DataFrame, list[str]]:
    """Of the settings tried in one cell, the best by the mean of `chooser` over seeds; all of them where one has none."""
    columns = [column for column in SETTINGS if column in frame]
    settings, names = _keys(frame, columns), _names(frame)
    durations = _near(frame["_samples"].to_numpy(dtype=float)).tolist()
    cells = _places((*key, near) for key, near in zip(_keys(frame, SAME_CELL), durations, strict=True))
    scores = _numbers(frame, chooser).to_numpy() if chooser in frame else np.full(len(frame), np.nan)
    keep, notes, num_chosen = np.ones(len(frame), dtype=bool), [], 0
    for cell in cells.values():
        tried = list(_places(settings[place] for place in cell).items())
        if len(tried) == 1:
            continue
        candidates = [[cell[place] for place in places] for _, places in tried]
        differing = [i for i in range(len(columns)) if len({key[i] for key, _ in tried}) > 1]
        titles = [" ".join(f"{columns[i]}={key[i]}" for i in differing) for key, _ in tried]
        means = np.array([scores[places].mean() for places in candidates])
        if np.isnan(means).any():
            notes.append(f"{names[cell[0]]}: all {len(tried)} settings stay in, for lack of {chooser} to choose by")
            continue
        best = int(np.argmin(means) if chooser == "val_loss" else np.argmax(means))
        num_chosen += 1
        for places, title, mean in zip(candidates, titles, means, strict=True):
            if title != titles[best]:
                keep[places] = False
                reason = f"{title}: {chooser} {mean:.4f}, against {means[best]:.4f} with {titles[best]}"
                excluded += [Exclusion(names[place], reason) for place in places]
    if num_chosen:
        notes.insert(0, f"settings chosen by {chooser} in {format_count(num_chosen, 'cell')}")
    return frame[keep], notes


def _near(values: NDArray[np.float64]) -> NDArray[np.intp]:
    """A number for each value, equal where sorted neighbours differ by no more than SAME_DURATION; NaNs are equal."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    with np.errstate(invalid="ignore"):
        steps = ordered[1:] > ordered[:-1] * (1 + SAME_DURATION)
    numbers = np.empty(len(values), dtype=np.intp)
    numbers[order] = np.concatenate([[0], np.cumsum(steps | (np.isnan(ordered[1:]) & ~np.isnan(ordered[:-1])))])[
        : len(values)
    ]
    return numbers


def _points(frame: pd.DataFrame) -> Points:
    arrays = {name: frame[f"_{name}"].to_numpy(dtype=float) for name in ("error", *AXES)}
    for name in AXES:  # an axis is known for all of the runs or for none
        if not (np.isfinite(arrays[name]) & (arrays[name] > 0)).all():
            arrays[name] = np.full(len(frame), np.nan)
    groups: tuple[Hashable, ...] = tuple(_keys(frame, dict.fromkeys((*SETTINGS, *COMPARABLE))))
    return Points(**arrays, groups=groups, labels=_unique(_names(frame)))


def _records(frame: pd.DataFrame, columns: Sequence[str]) -> list[dict[str, Any]]:
    known = [column for column in columns if column in frame]
    return [dict(zip(known, key, strict=True)) for key in _keys(frame, known)]


def _names(frame: pd.DataFrame) -> list[str]:
    """What messages and plots call runs: arch, images, images seen, seed; and an own run's id, which finds it again."""
    names = []
    for row in _records(frame, ("arch", "name", "num_train_samples", "samples_seen", "seed", "run_id", "is_published")):
        parts = [str(row.get("arch") or row.get("name") or "run")]
        images, seen = row.get("num_train_samples"), row.get("samples_seen")
        if images is not None:
            parts.append(f"{format_si(images)} images")
        if seen is not None and seen != images:
            parts.append(f"{format_si(seen)} seen")
        if row.get("seed") is not None:
            parts.append(f"seed {row['seed']}")
        if row.get("run_id") is not None and not row.get("is_published"):
            parts.append(str(row["run_id"]))
        names.append(", ".join(parts))
    return names


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    labels = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        labels.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(labels)


def _set_name(columns: Sequence[str], key: Sequence[Any], telling: Sequence[int]) -> str:
    return ", ".join(f"{columns[i]}={'' if key[i] is None else key[i]}" for i in telling) or "all runs"
