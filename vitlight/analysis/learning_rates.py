"""The best learning rate of each size, and whether one rate serves all of them.

For a size, the error is taken as a parabola in the logarithm of the rate through the best rate tried and its two neighbours,
so its lowest point lies between these; a best rate at the end of the row has no such point. A rate of which a run diverged
takes no part while there is another: those that survived say nothing for it. Rates count as equal where their errors differ
by less than seeds make two means of so many runs differ: 1.645 standard errors of the difference, which nine of ten
differences between equal rates stay within.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["SizeRates", "Verdict", "best_rate", "one_rate", "stable_rates"]

NUM_ERRORS = 1.645  # the 95 % quantile of the normal distribution


@dataclass(frozen=True)
class SizeRates:
    """One size: what its rates came to, and the best of them.

    arch: with what tells it from others of that name, where there are any. rates: `stable_rates`, ascending. errors: 1 -
    accuracy, the mean over `num_seeds` of each. optimum: the parabola's lowest point, None where the best rate is the first
    or the last of them. low, high: where the parabola lies within noise of its lowest point, not beyond the rates; None
    where there is no optimum, or no noise is known. diverged: rate -> (runs that diverged, runs tried), where any did.
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
    diverged: Mapping[float, tuple[int, int]] = field(default_factory=dict)

    @property
    def tried(self) -> tuple[float, ...]:
        """Ascending, with those that diverged."""
        return tuple(sorted({*self.rates, *self.diverged}))

    @property
    def lies_at(self) -> str | None:
        """`lowest` or `highest` where the best rate is that of those tried, and so may lie beyond."""
        if len(self.tried) > 1 and self.best == self.tried[0]:
            return "lowest"
        return "highest" if len(self.tried) > 1 and self.best == self.tried[-1] else None


@dataclass(frozen=True)
class Verdict:
    """Of several sizes and the `rates` that all of them have: the one that costs the worst-served size least.

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


def best_rate(
    errors_by_rate: Mapping[float, Sequence[float]],
    noise_sd: float | None,
    arch: str = "",
    family: str | None = None,
    params: int | None = None,
    diverged: Mapping[float, tuple[int, int]] | None = None,
) -> SizeRates:
    """Of one size: rate -> the errors of its seeds, at least one of each; `diverged` as SizeRates has it."""
    stable = stable_rates(errors_by_rate, diverged or {})
    rates = sorted(stable)
    errors = [float(np.mean(stable[rate])) for rate in rates]
    counts = [len(stable[rate]) for rate in rates]
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
        dict(diverged or {}),
    )


def stable_rates(
    errors_by_rate: Mapping[float, Sequence[float]], diverged: Collection[float]
) -> dict[float, Sequence[float]]:
    """The rates of which no run diverged; all of them where there is none."""
    stable = {rate: errors for rate, errors in errors_by_rate.items() if rate not in diverged}
    return stable or dict(errors_by_rate)


def one_rate(sizes: Sequence[SizeRates], noise_sd: float | None) -> Verdict | None:
    """None of fewer than two sizes, or without a rate that all tried and none diverged at."""
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
