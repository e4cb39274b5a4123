"""The best learning rate of each size, and whether one rate serves all of them.

For a size, the error is taken as a parabola in the logarithm of the rate through the best rate tried and its two neighbours,
so its lowest point lies between these; a best rate at the end of the row has no such point. Rates count as equal where
their errors differ by less than seeds make two means of so many runs differ: 1.645 standard errors of the difference, which
nine of ten differences between equal rates stay within.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from vitlight.analysis.summary import SETTINGS, counted_runs

__all__ = ["RateSet", "SizeRates", "Verdict", "best_rate", "one_rate", "rate_sets"]

NUM_ERRORS = 1.645  # the 95 % quantile of the normal distribution
# What sizes that are compared must have in common besides the rate itself.
_APART = ("arch", "family", "params", "forward_macs", "train_flops", "lr")
_IN_COMMON = tuple(column for column in SETTINGS if column not in _APART)


@dataclass(frozen=True)
class SizeRates:
    """One size: what its rates came to, and the best of them.

    rates: ascending. errors: 1 - accuracy, the mean over `num_seeds` runs of each. optimum: the parabola's lowest point,
    None where the best rate tried is the first or the last. low, high: where the parabola lies within noise of its lowest
    point, not beyond the rates tried; None where there is no optimum, or no noise is known. diverged: rates of which a run
    diverged.
    """

    arch: str
    family: str | None
    params: int | None
    rates: tuple[float, ...]
    errors: tuple[float, ...]
    num_seeds: tuple[int, ...]
    best: float
    optimum: float | None
    low: float | None
    high: float | None
    diverged: tuple[float, ...] = ()

    @property
    def lies_at(self) -> str | None:
        """`lowest` or `highest` where the best rate is that of those tried, and so may lie beyond."""
        if len(self.rates) > 1 and self.best == self.rates[0]:
            return "lowest"
        return "highest" if len(self.rates) > 1 and self.best == self.rates[-1] else None


@dataclass(frozen=True)
class Verdict:
    """Of several sizes and the rates that all of them tried: the one that costs the worst-served size least.

    worst: what that size loses by it against its own best rate, in error. serves: whether no size loses more than noise;
    None where no noise is known. others: further rates that serve all. between: (low, high), the rates, tried or not, that
    lie within noise of every size's parabola; None where there are none or a size has no optimum.
    """

    rate: float
    worst: float
    worst_arch: str
    serves: bool | None
    others: tuple[float, ...]
    between: tuple[float, float] | None


@dataclass(frozen=True)
class RateSet:
    """Sizes trained alike but for the rate. noise_sd: of one run's error between seeds, None where it isn't known;
    noise_from: `seeds`, or `evaluation` where no cell has two and the finite number of images is all that is known."""

    settings: Mapping[str, Any]
    measure: str  # val_top1 or top1, which the errors are of
    sizes: tuple[SizeRates, ...]
    noise_sd: float | None
    noise_from: str | None

    def verdict(self, family: str | None = None) -> Verdict | None:
        """Over all sizes, or those of a family; None of fewer than two."""
        return one_rate([size for size in self.sizes if family in (None, size.family)], self.noise_sd)

    @property
    def families(self) -> list[str]:
        """Those of two sizes or more."""
        names = [size.family for size in self.sizes if size.family is not None]
        return [name for name in dict.fromkeys(names) if names.count(name) > 1]


def best_rate(
    errors_by_rate: Mapping[float, Sequence[float]],
    noise_sd: float | None,
    arch: str = "",
    family: str | None = None,
    params: int | None = None,
    diverged: Sequence[float] = (),
) -> SizeRates:
    """Of one size: rate -> the errors of its seeds, at least one of each."""
    rates = sorted(errors_by_rate)
    errors = [float(np.mean(errors_by_rate[rate])) for rate in rates]
    counts = [len(errors_by_rate[rate]) for rate in rates]
    at = int(np.argmin(errors))
    optimum = low = high = None
    if 0 < at < len(rates) - 1:
        x = np.log(rates[at - 1 : at + 2])
        curvature, slope, _ = np.polyfit(x - x[1], errors[at - 1 : at + 2], 2)
        if curvature > 0:
            lowest = -slope / (2 * curvature)
            optimum = math.exp(x[1] + lowest)
            if noise_sd is not None:
                width = math.sqrt(NUM_ERRORS * noise_sd * math.sqrt(2 / counts[at]) / curvature)
                low, high = (math.exp(x[1] + lowest + side * width) for side in (-1, 1))
                low, high = max(low, rates[0]), min(high, rates[-1])
        else:
            optimum = rates[at]  # all three are equal
    return SizeRates(
        arch,
        family,
        params,
        tuple(rates),
        tuple(errors),
        tuple(counts),
        rates[at],
        optimum,
        low,
        high,
        tuple(sorted(set(diverged))),
    )


def one_rate(sizes: Sequence[SizeRates], noise_sd: float | None) -> Verdict | None:
    """None of fewer than two sizes, or without a rate that all tried."""
    common = sorted(set.intersection(*(set(size.rates) for size in sizes))) if len(sizes) > 1 else []
    if not common:
        return None
    losses = {rate: [_loss(size, rate) for size in sizes] for rate in common}
    rate = min(common, key=lambda each: max(losses[each]))
    worst = int(np.argmax(losses[rate]))
    serving = []
    if noise_sd is not None:
        serving = [
            each
            for each in common
            if all(loss <= _noise(size, each, noise_sd) for size, loss in zip(sizes, losses[each], strict=True))
        ]
    return Verdict(
        rate,
        losses[rate][worst],
        sizes[worst].arch,
        None if noise_sd is None else rate in serving,
        tuple(each for each in serving if each != rate),
        _overlap(sizes),
    )


def _overlap(sizes: Sequence[SizeRates]) -> tuple[float, float] | None:
    ranges = [(size.low, size.high) for size in sizes if size.low is not None and size.high is not None]
    low, high = max((low for low, _ in ranges), default=0.0), min((high for _, high in ranges), default=0.0)
    return (low, high) if len(ranges) == len(sizes) and low <= high else None


def _loss(size: SizeRates, rate: float) -> float:
    return size.errors[size.rates.index(rate)] - min(size.errors)


def _noise(size: SizeRates, rate: float, noise_sd: float) -> float:
    """What seeds alone make the two means differ by."""
    counts = [size.num_seeds[size.rates.index(each)] for each in (rate, size.best)]
    return NUM_ERRORS * noise_sd * math.sqrt(sum(1 / count for count in counts))


def rate_sets(runs: pd.DataFrame) -> list[RateSet]:
    """The sets of own runs in a `load_runs` table in which some size tried two rates or more."""
    counted = counted_runs(runs)
    counted = counted[counted["lr"].notna() & counted["arch"].notna()]
    rows = counted.astype(object).where(counted.notna(), None).to_dict("records")
    sets: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        sets[tuple(row[column] for column in _IN_COMMON)].append({str(key): value for key, value in row.items()})
    lost = runs[(runs["status"] == "diverged").fillna(False) & runs["lr"].notna()]
    found = [_rate_set(dict(zip(_IN_COMMON, key, strict=True)), members, lost) for key, members in sets.items()]
    return [one for one in found if one.sizes]


def _rate_set(settings: dict[str, Any], members: list[dict[str, Any]], lost: pd.DataFrame) -> RateSet:
    measure = "val_top1" if all(member["val_top1"] is not None for member in members) else "top1"
    cells: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    first: dict[str, dict[str, Any]] = {}
    for member in members:
        cells[member["arch"]][float(member["lr"])].append(1.0 - float(member[measure]))
        first.setdefault(member["arch"], member)
    noise_sd, noise_from = _noise_of(cells, settings, measure)
    sizes = [
        best_rate(
            rates,
            noise_sd,
            arch,
            first[arch]["family"],
            first[arch]["params"],
            [float(rate) for rate in _diverged(lost, arch, settings)],
        )
        for arch, rates in cells.items()
        if len(rates) > 1
    ]
    sizes.sort(key=lambda size: (size.family or "", size.params or 0, size.arch))
    return RateSet(settings, measure, tuple(sizes), noise_sd, noise_from)


def _noise_of(
    cells: Mapping[str, Mapping[float, Sequence[float]]], settings: Mapping[str, Any], measure: str
) -> tuple[float | None, str | None]:
    """The standard deviation between seeds, pooled over all cells that have some; else that of counting so many images."""
    groups = [errors for rates in cells.values() for errors in rates.values()]
    free = sum(len(errors) - 1 for errors in groups)
    if free:
        return math.sqrt(sum(float(np.var(errors)) * len(errors) for errors in groups) / free), "seeds"
    number = settings["num_eval_samples"] if measure == "top1" else None
    if not number:
        return None, None
    mean = float(np.mean([error for errors in groups for error in errors]))
    return math.sqrt(mean * (1 - mean) / number), "evaluation"


def _diverged(lost: pd.DataFrame, arch: str, settings: Mapping[str, Any]) -> pd.Series:
    """Rates of runs that diverged under these settings; what a run without metrics doesn't say is not asked."""
    same = lost[lost["arch"] == arch]
    for column in ("num_train_samples", "horizon_samples", "global_batch_size", "weight_decay", "image_size"):
        if settings[column] is not None:
            same = same[(same[column] == settings[column]).fillna(False)]
    return same["lr"]
