"""The model size and the number of samples that a law recommends for a budget of training FLOPs."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from vitlight.analysis.laws.forms import Form
from vitlight.analysis.laws.intervals import percentiles
from vitlight.analysis.laws.law_fit import LawFit
from vitlight.analysis.laws.points import Floats
from vitlight.errors import InputError

__all__ = ["Frontier", "compute_optimal"]

# Training costs three forward passes, and a multiply-add is two FLOPs.
FLOPS_PER_MAC = 6
# How far from the sampled sizes an optimum is looked for.
REACH = 1e6
GRID, SECTIONS = 128, 40


@dataclass(frozen=True, eq=False)
class Frontier:
    """The optimum for each `compute` (m,): `params`, `samples` and the law's `error`, each with an interval (2, m) at
    `level`. `exponents` are those of params ~ C^a and samples ~ C^b over this range, with their intervals."""

    compute: Floats
    params: Floats
    samples: Floats
    error: Floats
    params_interval: Floats
    samples_interval: Floats
    error_interval: Floats
    exponents: dict[str, float]
    exponent_intervals: dict[str, tuple[float, float]]
    level: float
    warnings: tuple[str, ...]


def compute_optimal(
    fit: LawFit,
    compute: ArrayLike,
    macs_per_param: float | Callable[[Floats, Floats], Floats],
    *,
    unique_samples: float | None = None,
    level: float | None = None,
) -> Frontier:
    """Where the error of a `size_data` or `size_data_repeated` law is least for given training FLOPs.

    `macs_per_param` is forward MACs over parameters, so that FLOPs = 6 macs_per_param N D; or a function of N and D that
    gives the training FLOPs, proportional to D. `unique_samples` is how many different samples there are, from where on
    a `size_data_repeated` law counts repeats; without it every sample is new. In closed form (Hoffmann et al. 2022,
    equation 4) where no sample repeats and macs_per_param is a number, else by search. Raises InputError for another form,
    a law with one of its terms at 0 (which has no optimum), and numbers that are not positive.
    """
    if "params" not in fit.form.axes:
        raise InputError(f"form={fit.form.name} has no optimal size: fit size_data or size_data_repeated")
    budgets = np.atleast_1d(np.asarray(compute, dtype=np.float64))
    _require_positive("compute", budgets)
    if not callable(macs_per_param):
        _require_positive("macs_per_param", macs_per_param)
    if unique_samples is not None:
        if "unique_samples" not in fit.form.axes:
            raise InputError(
                f"unique_samples={unique_samples:g}: form={fit.form.name} does not read it; fit size_data_repeated"
            )
        _require_positive("unique_samples", unique_samples)
    gone = [name for name in fit.form.amplitudes if fit.parameters[name] <= 0]
    if gone:
        raise InputError(
            f"{' and '.join(gone)} of the fitted law is 0, so it has no optimal size; see the law's warnings"
        )
    level = fit.level if level is None else level
    best = np.array([list(fit.parameters.values())])
    # One budget below and one above the range give the slopes.
    asked = np.concatenate([budgets, [budgets.min() / 2, budgets.max() * 2]])
    search = _Search(fit, asked, macs_per_param, unique_samples)
    params, samples, error = (values[0] for values in search.optimum(best))
    of_draws = search.optimum(fit.draws)
    log_range = np.log(asked[-1] / asked[-2])
    exponents, exponent_intervals = {}, {}
    for name, value, drawn in (("params", params, of_draws[0]), ("samples", samples, of_draws[1])):
        exponents[name] = float(np.log(value[-1] / value[-2]) / log_range)
        low, high = percentiles(np.log(drawn[:, -1] / drawn[:, -2]) / log_range, level)
        exponent_intervals[name] = (float(low), float(high))
    ends = [np.stack(percentiles(drawn[:, :-2], level)) for drawn in of_draws]
    return Frontier(
        compute=budgets,
        params=params[:-2],
        samples=samples[:-2],
        error=error[:-2],
        params_interval=ends[0],
        samples_interval=ends[1],
        error_interval=ends[2],
        exponents=exponents,
        exponent_intervals=exponent_intervals,
        level=level,
        warnings=_warnings(fit, budgets, params[:-2], samples[:-2]),
    )


def _require_positive(name: str, values: ArrayLike) -> None:
    numbers = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(numbers) & (numbers > 0)).all():
        raise InputError(f"{name}={numbers.min():g} must be a positive finite number")


@dataclass(frozen=True, eq=False)
class _Search:
    fit: LawFit
    budgets: Floats
    macs_per_param: float | Callable[[Floats, Floats], Floats]
    unique_samples: float | None

    def optimum(self, parameters: Floats) -> tuple[Floats, Floats, Floats]:
        """Params, samples and error, each (b, m), for parameters (b, num_parameters)."""
        if len(parameters) == 0:
            nothing = np.empty((0, len(self.budgets)))
            return nothing, nothing, nothing
        if callable(self.macs_per_param) or self.unique_samples is not None:
            log_params = self._searched(parameters)
        else:
            log_params = self._closed(parameters, self.macs_per_param)
        params, samples = self._split(log_params)
        return params, samples, self._errors(parameters, log_params)

    @property
    def _ends(self) -> tuple[float, float]:
        sampled = self.fit.points.params
        return float(np.log(sampled.min() / REACH)), float(np.log(sampled.max() * REACH))

    def _closed(self, parameters: Floats, macs_per_param: float) -> Floats:
        size, data, alpha, beta = (parameters[:, index, None] for index in range(1, 5))
        product = np.log(self.budgets / (FLOPS_PER_MAC * macs_per_param))
        with np.errstate(divide="ignore"):  # A draw without one of the terms ends on the range's edge.
            balance = np.log(alpha * size) - np.log(beta * data)
        log_params: Floats = np.clip((balance + beta * product) / (alpha + beta), *self._ends)
        return log_params

    def _searched(self, parameters: Floats) -> Floats:
        """A grid finds the lowest valley, golden sections its bottom."""
        grid = np.linspace(*self._ends, GRID)
        shape = (len(parameters), len(self.budgets))
        lowest, place = np.full(shape, np.inf), np.zeros(shape)
        for value in grid:
            errors = self._errors(parameters, np.full(shape, value))
            place = np.where(errors < lowest, value, place)
            lowest = np.minimum(errors, lowest)
        golden = (np.sqrt(5) - 1) / 2
        low, high = place - (grid[1] - grid[0]), place + (grid[1] - grid[0])
        for _ in range(SECTIONS):
            left, right = high - golden * (high - low), low + golden * (high - low)
            falls = self._errors(parameters, left) > self._errors(parameters, right)
            low, high = np.where(falls, left, low), np.where(falls, high, right)
        return (low + high) / 2

    def _split(self, log_params: Floats) -> tuple[Floats, Floats]:
        params = np.exp(log_params)
        if callable(self.macs_per_param):
            flops_per_sample = self.macs_per_param(params, np.ones_like(params))
        else:
            flops_per_sample = FLOPS_PER_MAC * self.macs_per_param * params
        return params, self.budgets / flops_per_sample

    def _errors(self, parameters: Floats, log_params: Floats) -> Floats:
        form: Form = self.fit.form
        params, samples = self._split(log_params)
        axes = [params, samples]
        if "unique_samples" in form.axes:
            axes.append(samples if self.unique_samples is None else np.minimum(samples, self.unique_samples))
        errors, _ = form.evaluate(form.to_internal(parameters, np.ones(form.num_terms)), np.stack(axes))
        return errors


def _warnings(fit: LawFit, compute: Floats, params: Floats, samples: Floats) -> tuple[str, ...]:
    found = []
    for name, values in (("params", params), ("samples", samples)):
        sampled = fit.points.axis(name)
        outside = (values < sampled.min()) | (values > sampled.max())
        if outside.any():
            worst = values[outside][np.argmax(np.abs(np.log(values[outside] / np.sqrt(sampled.min() * sampled.max()))))]
            found.append(
                f"the optimum needs {name}={worst:.3g}, outside the {sampled.min():.3g} to {sampled.max():.3g} that were "
                f"run ({outside.sum()} of {len(values)} budgets): an extrapolation"
            )
    if fit.points.has("compute") and compute.max() > 10 * fit.points.compute.max():
        times = compute.max() / fit.points.compute.max()
        found.append(f"compute={compute.max():.3g} is {times:.3g} times the largest that was run: an extrapolation")
    return tuple(found)
