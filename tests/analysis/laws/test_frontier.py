"""The recommended size and data minimise the law's error at the given compute."""

import numpy as np
import pytest
from scipy import optimize

from tests.analysis.laws.known_laws import DESIGNS
from vitlight.analysis.laws import compute_optimal, fit_law
from vitlight.errors import InputError

MACS_PER_PARAM = 200.0
BUDGETS = np.array([1e17, 1e18, 1e19])


def test_the_closed_form_is_the_minimum() -> None:
    fit = fit_law(DESIGNS["size_data"].points(), "size_data", num_bootstrap=0)
    frontier = compute_optimal(fit, BUDGETS, MACS_PER_PARAM)
    assert 6 * MACS_PER_PARAM * frontier.params * frontier.samples == pytest.approx(BUDGETS)
    for budget, params, error in zip(BUDGETS, frontier.params, frontier.error, strict=True):

        def at(log_params: float, budget: float = budget) -> float:
            size = np.exp(log_params)
            return float(fit.predict(params=size, samples=budget / (6 * MACS_PER_PARAM * size)))

        found = optimize.minimize_scalar(
            at, bounds=(np.log(1e3), np.log(1e12)), method="bounded", options={"xatol": 1e-9}
        )
        assert params == pytest.approx(np.exp(found.x), rel=1e-3)
        assert error == pytest.approx(found.fun, rel=1e-9)
    alpha, beta = fit.parameters["alpha"], fit.parameters["beta"]
    assert frontier.exponents["params"] == pytest.approx(beta / (alpha + beta), rel=1e-6)
    assert frontier.exponents["samples"] == pytest.approx(alpha / (alpha + beta), rel=1e-6)


def test_the_search_finds_what_the_closed_form_gives() -> None:
    fit = fit_law(DESIGNS["size_data"].points(np.random.default_rng(41)), "size_data", num_bootstrap=30)
    closed = compute_optimal(fit, BUDGETS, MACS_PER_PARAM)
    searched = compute_optimal(fit, BUDGETS, lambda params, samples: 6 * MACS_PER_PARAM * params * samples)
    assert searched.params == pytest.approx(closed.params, rel=1e-4)
    assert searched.params_interval == pytest.approx(closed.params_interval, rel=1e-4)
    assert searched.error == pytest.approx(closed.error, rel=1e-9)


def test_macs_that_grow_faster_than_params_call_for_smaller_models() -> None:
    fit = fit_law(DESIGNS["size_data"].points(), "size_data", num_bootstrap=0)
    even = compute_optimal(fit, BUDGETS, lambda params, samples: 6 * params * samples)
    steep = compute_optimal(fit, BUDGETS, lambda params, samples: 6e-4 * params**1.5 * samples)
    assert steep.exponents["params"] < even.exponents["params"]
    assert 6e-4 * steep.params**1.5 * steep.samples == pytest.approx(BUDGETS)


def test_repeats_call_for_larger_models() -> None:
    fit = fit_law(DESIGNS["size_data_repeated"].points(), "size_data_repeated", num_bootstrap=0)
    plenty = compute_optimal(fit, 1e18, MACS_PER_PARAM)
    enough = compute_optimal(fit, 1e18, MACS_PER_PARAM, unique_samples=1e15)
    scarce = compute_optimal(fit, 1e18, MACS_PER_PARAM, unique_samples=1e5)
    assert enough.params == pytest.approx(plenty.params, rel=1e-4)
    assert scarce.params > 1.5 * plenty.params
    assert scarce.error > plenty.error
    expected = fit.predict(params=scarce.params, samples=scarce.samples, unique_samples=1e5)
    assert scarce.error == pytest.approx(expected)


def test_intervals_hold_the_optimum() -> None:
    design = DESIGNS["size_data"]
    truth = compute_optimal(fit_law(design.points(), "size_data", num_bootstrap=0), BUDGETS, MACS_PER_PARAM)
    random, held = np.random.default_rng(42), []
    for _ in range(25):
        fit = fit_law(design.points(random), "size_data", num_bootstrap=100)
        frontier = compute_optimal(fit, BUDGETS, MACS_PER_PARAM)
        for of_truth, (low, high) in (
            (truth.params, frontier.params_interval),
            (truth.samples, frontier.samples_interval),
            (truth.error, frontier.error_interval),
        ):
            held += ((low <= of_truth) & (of_truth <= high)).tolist()
        low, high = frontier.exponent_intervals["params"]
        assert low < frontier.exponents["params"] < high
    assert 0.75 < np.mean(held) < 0.99


def test_budgets_beyond_the_runs_are_named() -> None:
    fit = fit_law(DESIGNS["size_data"].points(), "size_data", num_bootstrap=0)
    assert compute_optimal(fit, 1e18, MACS_PER_PARAM).warnings == ()
    far = compute_optimal(fit, [1e18, 1e26], MACS_PER_PARAM).warnings
    assert len(far) == 2
    assert "outside the 1e+06 to 1e+09 that were run (1 of 2 budgets)" in far[0]
    assert "outside the 1e+07 to 1e+10 that were run (1 of 2 budgets)" in far[1]


def test_what_has_no_optimum_is_refused() -> None:
    with pytest.raises(InputError, match="form=compute has no optimal size"):
        compute_optimal(fit_law(DESIGNS["compute"].points(), "compute", num_bootstrap=0), 1e18, 1.0)
    fit = fit_law(DESIGNS["size_data"].points(), "size_data", num_bootstrap=0)
    with pytest.raises(InputError, match="compute=-1 must be a positive"):
        compute_optimal(fit, [-1.0], 1.0)
    with pytest.raises(InputError, match="macs_per_param=0 must be"):
        compute_optimal(fit, 1e18, 0.0)
    with pytest.raises(InputError, match="form=size_data does not read it"):
        compute_optimal(fit, 1e18, 1.0, unique_samples=1e6)
