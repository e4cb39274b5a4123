"""Sample efficiency: accuracy against samples seen, a line a model and data size."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from vitlight.analysis.chart_points import published_group
from vitlight.analysis.charts import family_key
from vitlight.analysis.links import row_keys
from vitlight.analysis.summary import COMPARABLE, choose_settings, counted_runs

__all__ = ["Curve", "published_curves", "read_evaluations", "run_curves"]

MAX_POINTS = 60  # of a line: more than a screen shows, and a run may have evaluated thousands of times


@dataclass(frozen=True)
class Curve:
    """One line: `top1` (fractions) after `samples_seen`, both rising in samples_seen, mean over `n` runs.

    images: distinct training images, None where they aren't known. measure: what top1 is of.
    """

    arch: str
    family: str
    params: int | None
    images: int | None
    n: int
    samples_seen: tuple[int, ...]
    top1: tuple[float, ...]
    measure: str


def read_evaluations(run_dir: str | Path) -> dict[int, float]:
    """samples_seen -> val/top1 from a run's metrics.jsonl; empty where there is none. Of rows at one place the last
    counts; torn rows are passed over."""
    path = Path(run_dir) / "metrics.jsonl"
    found: dict[int, float] = {}
    if not path.is_file():
        return found
    with path.open("rb") as file:
        for line in file:
            if b'"val/top1"' not in line:  # most rows are of training steps, and need no parsing
                continue
            try:
                row = json.loads(line)
            except ValueError:
                continue
            seen, top1 = row.get("data/samples_seen"), row.get("val/top1")
            if isinstance(seen, int) and seen > 0 and isinstance(top1, float | int) and np.isfinite(top1):
                found[seen] = float(top1)
    return found


def run_curves(runs: pd.DataFrame, summary: pd.DataFrame) -> list[Curve]:
    """A line a cell that the tables show, from the evaluations that its runs logged, averaged where all of them did. Models
    of which no run has logged any have one through the ends of runs of different length, where there are such."""
    if summary.empty:
        return []
    chosen = choose_settings(summary)
    members: dict[Any, list[dict[int, float]]] = {}
    counted = counted_runs(runs)
    wanted = set(row_keys(chosen))
    for key, run_dir in zip(row_keys(counted), counted["run_dir"], strict=True):
        if key in wanted and pd.notna(run_dir) and (evaluations := read_evaluations(run_dir)):
            members.setdefault(key, []).append(evaluations)
    curves = []
    for key, (_, cell) in zip(row_keys(chosen), chosen.iterrows(), strict=True):
        logged = members.get(key, [])
        common = sorted(set.intersection(*map(set, logged))) if logged else []
        if len(common) > 1:
            means = [float(np.mean([evaluations[seen] for evaluations in logged])) for seen in common]
            curves.append(_curve(cell, len(logged), common, means, "val top-1 while training"))
    logged_of = {(curve.arch, curve.images) for curve in curves}
    return curves + [curve for curve in _end_curves(summary) if (curve.arch, curve.images) not in logged_of]


def _end_curves(summary: pd.DataFrame) -> Iterator[Curve]:
    """Lines through the ends of runs that differ in their length."""
    same = ["arch", "params", "forward_macs", "num_train_samples", *COMPARABLE]
    known = summary[summary["samples_seen"].notna()]
    lengths = known.groupby(same, dropna=False)["samples_seen"].transform("nunique")
    for _, cells in known[lengths > 1].groupby(same, dropna=False, sort=False):
        best = cells.loc[cells.groupby("samples_seen")["top1_mean"].idxmax()].sort_values("samples_seen")
        seen = [int(value) for value in best["samples_seen"]]
        top1 = best["top1_mean"].astype(float).tolist()
        yield _curve(best.iloc[0], int(best["n"].min()), seen, top1, "top-1 at the end")


def published_curves(table: pd.DataFrame) -> dict[str, list[Curve]]:
    """`published_group` -> a line a model and number of training images, through results at different samples_seen."""
    known = table[table["top1"].notna() & table["samples_seen"].notna()]
    curves: dict[str, list[Curve]] = {}
    groups = [published_group(row) for row in known.to_dict("records")]
    for (group, *_), rows in known.assign(group=groups).groupby(
        ["group", "family", "variant", "num_train_samples"], dropna=False, sort=False
    ):
        best = rows.loc[rows.groupby("samples_seen")["top1"].idxmax()].sort_values("samples_seen")
        if len(best) > 1:
            named = best.iloc[0].copy()
            named["arch"] = named["variant"]
            seen = [int(value) for value in best["samples_seen"]]
            curve = _curve(named, 1, seen, list(best["top1"].astype(float)), "top-1 as published")
            curves.setdefault(str(group), []).append(curve)
    return curves


def _curve(cell: Any, n: int, seen: Iterable[int], top1: Iterable[float], measure: str) -> Curve:
    seen, top1 = np.array(list(seen)), np.array(list(top1))
    kept = np.unique(np.linspace(0, len(seen) - 1, min(len(seen), MAX_POINTS)).round().astype(int))
    return Curve(
        str(cell["arch"]),
        family_key(cell["family"]),
        None if pd.isna(cell["params"]) else int(cell["params"]),
        None if pd.isna(cell["num_train_samples"]) else int(cell["num_train_samples"]),
        n,
        tuple(seen[kept].tolist()),
        tuple(top1[kept].tolist()),
        measure,
    )
