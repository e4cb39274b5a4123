"""Runs become cells: the mean over seeds of everything that shares its settings, with the spread that seeds show."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "COMPARABLE",
    "SETTINGS",
    "SUMMARY_COLUMNS",
    "choose_settings",
    "counted_runs",
    "earlier_copies",
    "pareto_front",
    "summarise",
]

# Runs that agree on all of these, and differ in their seed, are one cell.
SETTINGS = (
    "arch",
    "family",
    "params",
    "forward_macs",
    "image_size",
    "num_train_samples",
    "horizon_samples",
    "samples_seen",
    "train_flops",
    "global_batch_size",
    "lr",
    "weight_decay",
    "eval_split",
    "num_eval_samples",
    "data_digest",
)
# Accuracies of runs that differ in one of these measure different things.
COMPARABLE = ("data_digest", "eval_split", "image_size")

_STATISTICS = {
    "n": "Int64",
    "top1_mean": "Float64",
    "top1_std": "Float64",
    "top1_min": "Float64",
    "top1_max": "Float64",
    "top1_eval_standard_error": "Float64",
    "val_top1_mean": "Float64",
    "wall_seconds_mean": "Float64",
    "device_seconds_mean": "Float64",
    "images_per_second_mean": "Float64",
    "seeds": "string",
    "top1_values": "string",
}
SUMMARY_COLUMNS = (*SETTINGS, *_STATISTICS)
_ORDER = ["family", "forward_macs", "params", "arch", "num_train_samples", "samples_seen", "lr", "weight_decay"]


def counted_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The done runs that means are made of: own ones, with a top1. A run found in several folders counts once: the one
    that ended last; rows of a table that names no run_id are taken as different runs."""
    counts = (runs["status"] == "done").fillna(False) & runs["top1"].notna()
    if "is_published" in runs:
        counts &= ~runs["is_published"].fillna(False).astype(bool)
    counted = runs[counts]
    return counted[~earlier_copies(counted)].sort_index()


def earlier_copies(runs: pd.DataFrame) -> "pd.Series[bool]":
    """Which rows tell of a run (`run_id`, and `data_digest` where there is one) that another row saw end later, or that
    stands again below; never one without a run_id."""
    same = [column for column in ("run_id", "data_digest") if column in runs]
    newest_last = runs.sort_values("finished_at", kind="stable", na_position="first") if "finished_at" in runs else runs
    again = newest_last.duplicated(same, keep="last") & newest_last["run_id"].notna()
    return again.reindex(runs.index)


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """One row a cell (SETTINGS) over the counted runs of a `load_runs` table: n, and top1's mean, std, min and max.

    `top1_std` is the sample standard deviation (n - 1) over seeds, NA for one run. `top1_eval_standard_error` is the
    binomial standard error of a single run's top1 on `num_eval_samples` images: noise that no number of seeds
    removes. `val_top1_mean` is NA unless every run of the cell has one. `seeds` and `top1_values` list the runs behind
    the mean in the same order, separated by spaces.
    """
    counted = counted_runs(runs)
    cells: dict[tuple[Hashable, ...], list[dict[str, Any]]] = {}
    for record in counted.astype(object).where(counted.notna(), None).to_dict("records"):
        cells.setdefault(tuple(record[column] for column in SETTINGS), []).append(
            {str(k): v for k, v in record.items()}
        )
    rows = [dict(zip(SETTINGS, key, strict=True)) | _statistics(members) for key, members in cells.items()]
    columns = {
        column: pd.Series([_na(row[column]) for row in rows], dtype=_STATISTICS.get(column) or runs[column].dtype)
        for column in SUMMARY_COLUMNS
    }
    return pd.DataFrame(columns).sort_values(_ORDER, kind="stable", ignore_index=True)


def _statistics(members: list[dict[str, Any]]) -> dict[str, Any]:
    members = sorted(members, key=lambda member: -1 if member["seed"] is None else member["seed"])
    top1 = np.array([member["top1"] for member in members], dtype=float)
    mean, num_eval = float(top1.mean()), members[0]["num_eval_samples"]
    return {
        "n": len(top1),
        "top1_mean": mean,
        "top1_std": float(top1.std(ddof=1)) if len(top1) > 1 else None,
        "top1_min": float(top1.min()),
        "top1_max": float(top1.max()),
        "top1_eval_standard_error": math.sqrt(mean * (1 - mean) / num_eval) if num_eval else None,
        "val_top1_mean": _mean_or_none([member["val_top1"] for member in members]),
        "wall_seconds_mean": _mean_or_none([member["wall_seconds"] for member in members]),
        "device_seconds_mean": _mean_or_none([member["device_seconds"] for member in members]),
        "images_per_second_mean": _mean_or_none([member["images_per_second"] for member in members]),
        "seeds": " ".join("?" if member["seed"] is None else str(member["seed"]) for member in members),
        "top1_values": " ".join(map(repr, top1.tolist())),
    }


def _mean_or_none(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _na(value: Any) -> Any:
    return pd.NA if value is None else value


def choose_settings(summary: pd.DataFrame) -> pd.DataFrame:
    """Of the cells that differ only in how they were trained, the one to show: one row per arch, its size,
    `num_train_samples` and what makes runs comparable.

    The choice is made on `val_top1_mean` where every candidate has one, else on `top1_mean`, which flatters the
    winner. Adds `num_settings` (how many there were to choose from) and `chosen_by` (`val_top1`, `top1`, NA for one).
    """
    same = ["arch", "params", "forward_macs", "num_train_samples", *COMPARABLE]
    num_settings = summary.groupby(same, dropna=False, sort=False)["n"].transform("size")
    alone = summary.index[num_settings == 1]
    rows: list[Hashable] = [*alone]
    counts = [1] * len(alone)
    chosen_by: list[Any] = [pd.NA] * len(alone)
    for _, group in summary[num_settings > 1].groupby(same, dropna=False, sort=False):
        by = "val_top1" if group["val_top1_mean"].notna().all() else "top1"
        rows.append(group[f"{by}_mean"].astype(float).idxmax())
        counts.append(len(group))
        chosen_by.append(by)
    chosen = summary.loc[rows].assign(
        num_settings=pd.array(counts, dtype="Int64"), chosen_by=pd.array(chosen_by, dtype="string")
    )
    return chosen.sort_index()


def pareto_front(x: ArrayLike, y: ArrayLike) -> NDArray[np.intp]:
    """Indices of the points that none beats (x smaller is better, y larger is better), ordered by rising x.

    A point is beaten by one with x no larger and y no smaller, one of the two strictly; of equal points the first
    stays. Points with a NaN or an infinity are never on the front.
    """
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if xs.ndim != 1 or xs.shape != ys.shape:
        raise ValueError(f"x {xs.shape} and y {ys.shape} must be one-dimensional and of one length")
    candidates = np.flatnonzero(np.isfinite(xs) & np.isfinite(ys))
    order = candidates[np.lexsort((candidates, -ys[candidates], xs[candidates]))]
    heights = ys[order]
    best_before = np.concatenate([[-np.inf], np.maximum.accumulate(heights)[:-1]]) if len(order) else heights
    return order[heights > best_before]
