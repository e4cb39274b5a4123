"""Warnings: a right form rarely gets one, and each cause gets its own."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.analysis.laws.known_laws import DESIGNS, REPLICATED, as_points, compute_points, grid_points
from vitlight.analysis.laws import FORMS, LawFit, check_extrapolation, fit_law
from vitlight.analysis.laws.checks import FALSE_ALARM
from vitlight.analysis.laws.points import Floats
from vitlight.analysis.laws.solution import solve
from vitlight.analysis.laws.structure import lack_of_fit_p_value, spread, structure


def warned(fit: LawFit, text: str) -> bool:
    assert all("\n" not in line for line in fit.warnings)
    return any(text in line for line in fit.warnings)


def small_grid() -> tuple[Floats, Floats]:
    params, samples = np.meshgrid(np.geomspace(1e6, 1e9, 6), np.geomspace(1e7, 1e10, 6))
    return params.ravel(), samples.ravel()


@pytest.mark.parametrize("name", list(FORMS))
def test_a_right_form_is_flagged_at_the_stated_rate(name: str) -> None:
    """Under a right form p is uniform: a hundredth of fits are flagged at 1 %, a tenth lie below 0.1."""
    random, num = np.random.default_rng(21), 100
    chances = np.array(
        [structure(solve(DESIGNS[name].points(random), FORMS[name], "squares", None)).p_value for _ in range(num)]
    )
    assert (chances < FALSE_ALARM).sum() <= stats.binom.ppf(0.999, num, FALSE_ALARM)
    assert stats.binom.ppf(0.001, num, 0.1) <= (chances < 0.1).sum() <= stats.binom.ppf(0.999, num, 0.1)
    assert 0.4 < chances.mean() < 0.6


def test_a_power_law_that_breaks_is_flagged() -> None:
    compute = np.geomspace(1, 1e6, 20)
    error = 0.05 + 0.8 * compute**-0.1 * (1 + (compute / 1e3) ** 2) ** -0.2
    noisy = error * np.exp(np.random.default_rng(22).normal(0, 0.01, 20))
    assert warned(fit_law(compute_points(noisy, compute), "compute", num_bootstrap=0), "is the wrong form")


def test_a_saturating_law_is_flagged_where_the_form_has_no_shift() -> None:
    points = DESIGNS["compute_shift"].points(np.random.default_rng(23))
    assert warned(fit_law(points, "compute", num_bootstrap=0), "E = c + a C^-b is the wrong form")
    assert not warned(fit_law(points, "compute_shift", num_bootstrap=0), "wrong form")


def test_an_interaction_of_size_and_data_is_flagged() -> None:
    params, samples = small_grid()
    error = 0.1 + 45 / params**0.36 + 160 / samples**0.38
    error *= np.exp(0.02 * np.log(params / 3e7) * np.log(samples / 3e8))
    error *= np.exp(np.random.default_rng(24).normal(0, 0.01, len(error)))
    assert warned(fit_law(grid_points(error, params, samples), "size_data", num_bootstrap=0), "wrong form")


def test_repeats_taken_for_new_samples_are_flagged() -> None:
    points = DESIGNS["size_data_repeated"].points(np.random.default_rng(25))
    assert warned(fit_law(points, "size_data", num_bootstrap=0), "residuals follow repeats")


def test_sizes_off_the_best_one_are_flagged_in_a_law_of_compute() -> None:
    params, samples = small_grid()
    error = (0.1 + 45 / params**0.36 + 160 / samples**0.38) * np.exp(np.random.default_rng(29).normal(0, 0.01, 36))
    fit = fit_law(grid_points(error, params, samples), "compute", num_bootstrap=0)
    assert warned(fit, "residuals follow params") or warned(fit, "residuals follow samples")


def test_a_term_without_effect_is_named() -> None:
    params, samples = small_grid()
    random = np.random.default_rng(26)
    error = (0.1 + 160 / samples**0.38) * np.exp(random.normal(0, 0.02, len(samples)))
    fit = fit_law(grid_points(error, params, samples), "size_data", num_bootstrap=0)
    assert warned(fit, "params explains no more than chance") or warned(fit, "no effect of params")
    assert not warned(fit, "samples explains no more than chance")
    assert not warned(fit, "no effect of samples")


def test_a_missing_floor_is_named() -> None:
    compute = np.geomspace(1, 1e4, 12)
    fit = fit_law(compute_points(0.9 * compute**-0.2 * np.exp(-1e-9 * compute), compute), "compute", num_bootstrap=0)
    error = 0.9 * compute**-0.2 - 0.02
    bent = fit_law(compute_points(error, compute), "compute", num_bootstrap=0)
    assert warned(bent, "c=0: these points show no floor")
    assert fit.parameters["b"] == pytest.approx(0.2, rel=1e-3)


def test_an_outlier_is_named_with_its_side() -> None:
    points = DESIGNS["size_data"].points(np.random.default_rng(27))
    for factor, side in ((1.25, "25% above"), (1 / 1.25, "25% below")):
        error = points.error.copy()
        error[17] *= factor
        fit = fit_law(as_points(error, DESIGNS["size_data"].axes), "size_data", num_bootstrap=0)
        lines = [line for line in fit.warnings if "too far for chance" in line]
        assert len(lines) == 1
        assert lines[0].startswith("run17 lies ")
        assert side.split()[1] in lines[0]


def test_few_points_and_few_values_are_named() -> None:
    compute = np.geomspace(1, 1e4, 4)
    fit = fit_law(compute_points(0.1 + 0.5 * compute**-0.3, compute), "compute", num_bootstrap=0)
    assert warned(fit, "4 points for 3 parameters: fewer than 5")
    params, samples = np.repeat([1e6, 1e8], 4), np.tile(np.geomspace(1e6, 1e9, 4), 2)
    grid = grid_points(0.1 + 45 / params**0.36 + 160 / samples**0.38, params, samples)
    assert warned(fit_law(grid, "size_data", num_bootstrap=0), "params has 2 different values")


def test_one_sided_grids_are_named() -> None:
    params, samples = small_grid()
    kept = (params > 1e6) | (samples > 9e9)
    params, samples = params[kept], samples[kept]
    error = 0.1 + 45 / params**0.36 + 160 / samples**0.38
    fit = fit_law(grid_points(error, params, samples), "size_data", num_bootstrap=0)
    assert warned(fit, "one-sided grid: params=1e+06 ran at one value of samples only")
    # Durations rounded to whole batches are one value, though they differ a little.
    samples = samples * np.where(params > 1e8, 1.004, 1.0)
    error = 0.1 + 45 / params**0.36 + 160 / samples**0.38
    rounded = fit_law(grid_points(error, params, samples), "size_data", num_bootstrap=0)
    assert [line for line in rounded.warnings if "one-sided" in line] == [
        line for line in fit.warnings if "one-sided" in line
    ]


def test_size_and_data_that_grow_together_are_named() -> None:
    params = np.geomspace(1e6, 1e9, 9)
    samples = 20 * params * np.tile([1.0, 1.3, 0.8], 3)
    error = 0.1 + 45 / params**0.36 + 160 / samples**0.38
    fit = fit_law(grid_points(error, params, samples), "size_data", num_bootstrap=0)
    assert warned(fit, "params and samples change together")


def test_cells_that_scatter_more_than_their_seeds_are_named() -> None:
    random = np.random.default_rng(28)
    points = REPLICATED.points(random)
    assert lack_of_fit_p_value(solve(points, FORMS["compute"], "squares", None)) > FALSE_ALARM / 1e3
    shaken = points.error * np.exp(np.repeat(random.normal(0, 0.05, 10), 3))
    fit = fit_law(as_points(shaken, {"compute": points.compute}, points.groups), "compute", num_bootstrap=0)
    assert warned(fit, "seeds only")


def test_a_spread_that_changes_along_an_axis_is_named() -> None:
    design = DESIGNS["size_data"]
    random = np.random.default_rng(30)
    uneven = replace(design, cell_sd=0.003 * (design.axes["params"] / 1e6) ** 0.4)
    fit = fit_law(uneven.points(random), "size_data", num_bootstrap=0)
    assert warned(fit, "the spread of runs about the law changes along params")
    chances = [spread(solve(design.points(random), FORMS["size_data"], "squares", None)).p_value for _ in range(60)]
    assert sum(chance < 0.1 for chance in chances) <= stats.binom.ppf(0.999, 60, 0.1)


def test_an_optimum_outside_the_grid_is_named() -> None:
    params, samples = np.meshgrid(np.geomspace(1e9, 1e11, 5), np.geomspace(1e5, 1e7, 5))
    error = 0.1 + 45 / params.ravel() ** 0.36 + 160 / samples.ravel() ** 0.38
    fit = fit_law(grid_points(error, params.ravel(), samples.ravel()), "size_data", num_bootstrap=0)
    assert warned(fit, "at the largest compute that was run the optimum needs params=")
    assert fit_law(DESIGNS["size_data"].points(), "size_data", num_bootstrap=0).warnings == ()


def test_extrapolations_are_named() -> None:
    fit = fit_law(DESIGNS["compute"].points(), "compute", num_bootstrap=0)
    assert check_extrapolation(fit, compute=[1e15, 1e22]) == ()
    (line,) = check_extrapolation(fit, compute=[1e18, 1e23])
    assert line == "compute=1e+23 is 100 times beyond the largest that was run: an extrapolation"
    (line,) = check_extrapolation(fit, compute=1e12)
    assert line == "compute=1e+12 is 1e+04 times beyond the smallest that was run: an extrapolation"
