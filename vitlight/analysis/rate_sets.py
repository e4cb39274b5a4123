"""Runs that differ in nothing but the model and the learning rate, found in a run table.

The columns of the table say a part of what runs have in common, `experiment.yaml` in their directories the rest. What goes
with a model (its options, the weights it starts with) tells sizes apart, not sets: rates of stochastic depth grow with size.
Rows without such a file are taken by their columns.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from vitlight.analysis.learning_rates import SizeRates, Verdict, best_rate, one_rate, stable_rates
from vitlight.analysis.run_settings import read_config, training_settings
from vitlight.analysis.summary import SETTINGS, counted_runs, earlier_copies

__all__ = ["RateSet", "rate_sets"]

# What sizes that are compared must have in common besides the rate itself.
_APART = ("arch", "family", "params", "forward_macs", "train_flops", "lr")
_IN_COMMON = tuple(column for column in SETTINGS if column not in _APART)
# Of these, what a run that diverged has, too.
_OF_LOST = ("num_train_samples", "horizon_samples", "global_batch_size", "weight_decay", "image_size")

Row = dict[str, Any]


@dataclass(frozen=True)
class RateSet:
    """Sizes trained alike but for the rate. recipe: the settings of experiment.yaml by their dotted names, empty where there
    is none. noise_sd: of one run's error between seeds, None where it isn't known; noise_from: `seeds`, or `evaluation`
    where no cell has two and the finite number of images is all that is known."""

    settings: Mapping[str, Any]
    measure: str  # val_top1 or top1, which the errors are of
    sizes: tuple[SizeRates, ...]
    noise_sd: float | None
    noise_from: str | None
    recipe: Mapping[str, str] = field(default_factory=dict)

    def verdict(self, family: str | None = None) -> Verdict | None:
        """Over all sizes, or those of a family; None of fewer than two."""
        return one_rate([size for size in self.sizes if family in (None, size.family)], self.noise_sd)

    @property
    def families(self) -> list[str]:
        """Those of two sizes or more."""
        names = [size.family for size in self.sizes if size.family is not None]
        return [name for name in dict.fromkeys(names) if names.count(name) > 1]


@dataclass(frozen=True)
class _Run:
    """A row, and what its experiment.yaml says: `recipe`, and `of_model`, what goes with the model."""

    row: Row
    recipe: Mapping[str, str]
    of_model: Mapping[str, str]

    @property
    def size(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        return self.row["arch"], tuple(sorted(self.of_model.items()))

    def may_be_of(self, other: "_Run") -> bool:
        """Whether both are of one size and recipe, as far as both say."""
        if self.row["arch"] != other.row["arch"]:
            return False
        return not (self.recipe and other.recipe) or (self.recipe, self.size) == (other.recipe, other.size)


def rate_sets(runs: pd.DataFrame) -> list[RateSet]:
    """The sets of own runs in a `load_runs` table in which some size tried two rates or more."""
    sets: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in _rows(counted_runs(runs)):
        sets[tuple(row[column] for column in _IN_COMMON)].append(row)
    ended = runs[runs["status"].isin(["done", "diverged"])]
    ended = ended[~earlier_copies(ended)]
    lost = _rows(ended[ended["status"] == "diverged"])
    found = []
    for key, rows in sets.items():
        settings = dict(zip(_IN_COMMON, key, strict=True))
        gone = [row for row in lost if _is_of(row, settings)]
        if _tried_two(rows, gone):  # files are read only where there are rates to compare
            found += _split(settings, [_read(row) for row in rows], [_read(row) for row in gone])
    return [one for one in found if one.sizes]


def _rows(runs: pd.DataFrame) -> list[Row]:
    told = runs[runs["lr"].notna() & runs["arch"].notna()]
    records = told.astype(object).where(told.notna(), None).to_dict("records")
    return [{str(name): value for name, value in record.items()} for record in records]


def _is_of(lost: Row, settings: Mapping[str, Any]) -> bool:
    """Whether a run that diverged was trained under these settings, as far as one without metrics says."""
    same = all(settings[column] in (None, lost[column]) for column in _OF_LOST)
    return same and lost["data_digest"] in (None, settings["data_digest"])


def _tried_two(rows: Sequence[Row], gone: Sequence[Row]) -> bool:
    rates: dict[str, set[float]] = defaultdict(set)
    for row in (*rows, *gone):
        rates[row["arch"]].add(float(row["lr"]))
    return any(len(rates[row["arch"]]) > 1 for row in rows)


def _read(row: Row) -> _Run:
    if row["run_dir"] is None:
        return _Run(row, {}, {})
    try:
        config = read_config(Path(row["run_dir"]))
        settings, model = training_settings(config), config["model"]
        settings["model"]["optimizer"] = {k: v for k, v in model["optimizer"].items() if k != "lr"}
        settings["model"].pop("duration", None)  # images count, however they are asked for: horizon_samples
        options = _flat(settings["model"].pop("model_options", None) or {})
        weights = model.get("weights_digest") or model.get("weights")
        return _Run(row, _flat(settings), options | ({"weights": str(weights)} if weights else {}))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return _Run(row, {}, {})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> value as text; 0.0 is 0, which W&B's server makes of it."""
    flat: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            plain = int(value) if isinstance(value, float) and value.is_integer() else value
            flat[f"{prefix}{name}"] = plain if isinstance(plain, str) else json.dumps(plain, default=str)
    return flat


def _split(settings: Row, runs: Sequence[_Run], lost: Sequence[_Run]) -> list[RateSet]:
    """By what the files say."""
    sets: dict[tuple[tuple[str, str], ...], list[_Run]] = defaultdict(list)
    for run in runs:
        sets[tuple(sorted(run.recipe.items()))].append(run)
    return [_rate_set(settings, members, lost) for members in sets.values()]


def _rate_set(settings: Row, members: Sequence[_Run], lost: Sequence[_Run]) -> RateSet:
    measure = "val_top1" if all(member.row["val_top1"] is not None for member in members) else "top1"
    sizes: dict[Any, list[_Run]] = defaultdict(list)
    for member in members:
        sizes[member.size].append(member)
    cells = {size: _errors(runs, measure) for size, runs in sizes.items()}
    diverged = {
        size: _diverged(cells[size], [run for run in lost if run.may_be_of(runs[0])]) for size, runs in sizes.items()
    }
    stable = [stable_rates(cells[size], diverged[size]) for size in sizes]
    noise_sd, noise_from = _noise_of([errors for rates in stable for errors in rates.values()], settings, measure)
    names = _names(list(sizes))
    found = [
        best_rate(
            cells[size], noise_sd, names[size], runs[0].row["family"], runs[0].row["params"], diverged=diverged[size]
        )
        for size, runs in sizes.items()
        if len({*cells[size], *diverged[size]}) > 1
    ]
    found.sort(key=lambda size: (size.family or "", size.params or 0, size.arch))
    return RateSet(settings, measure, tuple(found), noise_sd, noise_from, members[0].recipe)


def _errors(runs: Sequence[_Run], measure: str) -> dict[float, list[float]]:
    """Rate -> an error a seed: runs of one seed, which differ in what nothing here says, count as their mean."""
    by_seed: dict[float, dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for place, run in enumerate(runs):
        seed = run.row["seed"] if run.row["seed"] is not None else f"row {place}"
        by_seed[float(run.row["lr"])][seed].append(1.0 - float(run.row[measure]))
    return {rate: [float(np.mean(errors)) for errors in seeds.values()] for rate, seeds in by_seed.items()}


def _diverged(errors: Mapping[float, Sequence[float]], lost: Sequence[_Run]) -> dict[float, tuple[int, int]]:
    rates = sorted(float(run.row["lr"]) for run in lost)
    return {rate: (rates.count(rate), rates.count(rate) + len(errors.get(rate, ()))) for rate in dict.fromkeys(rates)}


def _names(sizes: Sequence[tuple[str, tuple[tuple[str, str], ...]]]) -> dict[Any, str]:
    """The arch of each; where several are of one arch, with what they differ in."""
    names = {}
    for size in sizes:
        arch, own = size[0], dict(size[1])
        others = [dict(options) for name, options in sizes if name == arch]
        differing = sorted({key for options in others for key in options if len({o.get(key) for o in others}) > 1})
        names[size] = " ".join([arch, *(f"{key}={own.get(key, 'unset')}" for key in differing)])
    return names


def _noise_of(
    cells: Sequence[Sequence[float]], settings: Mapping[str, Any], measure: str
) -> tuple[float | None, str | None]:
    """The standard deviation between seeds, pooled over all cells that have some; else that of counting so many images."""
    free = sum(len(errors) - 1 for errors in cells)
    if free:
        return math.sqrt(sum(float(np.var(errors)) * len(errors) for errors in cells) / free), "seeds"
    number = settings["num_eval_samples"] if measure == "top1" else None
    if not number:
        return None, None
    mean = float(np.mean([error for errors in cells for error in errors]))
    return math.sqrt(mean * (1 - mean) / number), "evaluation"
