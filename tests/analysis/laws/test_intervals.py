"""Intervals: how often they hold the truth, what seeds count, and that a seed decides them."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from tests.analysis.laws.known_laws import DESIGNS, REPLICATED, Design, as_points
from vitlight.analysis.laws import FORMS, fit_law
from vitlight.analysis.laws.bootstrap import draw_log_errors, run_deviations
from vitlight.analysis.laws.points import cells_of
from vitlight.analysis.laws.solution import solve


def share_held(design: Design, num: int, **settings: object) -> float:
    """Of `num` noisy measurements of a law, over all of its parameters."""
    random, held = np.random.default_rng(11), []
    for _ in range(num):
        fit = fit_law(design.points(random), design.form, **settings)  # type: ignore[arg-type]
        held += [low <= design.parameters[name] <= high for name, (low, high) in fit.intervals.items()]
    return float(np.mean(held))


# Seven runs leave four degrees of freedom: intervals by their residuals as they are would hold in 7 of 10.
FEW = replace(DESIGNS["compute"], axes={"compute": np.geomspace(1e16, 1e21, 7)})


@pytest.mark.parametrize("design", [FEW, REPLICATED], ids=["runs", "seeds"])
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say(design: Design) -> None:
    """benchmarks/law_coverage.py measures all forms with more draws."""
    assert 0.83 < share_held(design, 60, num_bootstrap=100) < 0.97


@pytest.mark.parametrize("design", [DESIGNS["compute"], REPLICATED], ids=["runs", "seeds"])
def test_drawn_errors_spread_as_students_t(design: Design) -> None:
    """Of variance k / (k - 2) times that of a cell, (cell + seed / m), about the fitted law."""
    solution = solve(design.points(np.random.default_rng(17)), FORMS["compute"], "squares", None)
    noise, runs = solution.noise, int(solution.cells.num_runs[0])
    drawn = draw_log_errors(solution, 20_000, np.random.default_rng(18)) - solution.fitted
    expected = (noise.cell + noise.seed / runs) * noise.degrees / (noise.degrees - 2)
    assert (drawn**2).mean() == pytest.approx(expected, rel=0.03)
    assert drawn.mean() == pytest.approx(0, abs=0.01 * expected**0.5)
    new = run_deviations(solution, 20_000, np.random.default_rng(19))
    assert (new**2).mean() == pytest.approx(noise.run_sd**2 * noise.degrees / (noise.degrees - 2), rel=0.06)


def test_narrower_intervals_hold_it_less_often() -> None:
    assert 0.35 < share_held(DESIGNS["compute"], 40, num_bootstrap=100, level=0.5) < 0.65


def test_profile_intervals_hold_the_truth_as_often_as_they_say() -> None:
    assert 0.83 < share_held(DESIGNS["compute"], 40, num_bootstrap=0, interval_method="profile") < 0.99


@pytest.mark.parametrize("name", list(FORMS))
def test_a_profile_ends_where_the_loss_passes_its_threshold(name: str) -> None:
    """Fixing a parameter at an end of its interval raises the loss by s^2 t^2 / 2."""
    points = DESIGNS[name].points(np.random.default_rng(12))
    fit = fit_law(points, name, num_bootstrap=0, interval_method="profile", loss="squares")
    low, high = fit.intervals[fit.form.floor]
    degrees = len(points) - len(fit.parameters)
    rise = 2 * fit.objective / degrees * stats.t.ppf(0.95, degrees) ** 2 / 2
    for end in (low, high):
        if end > 0:
            fixed = fit_law(points, name, num_bootstrap=0, floor=end, loss="squares")
            assert fixed.objective - fit.objective == pytest.approx(rise, rel=1e-3)
    for parameter, (low, high) in fit.intervals.items():
        assert low < fit.parameters[parameter] < high


def test_both_kinds_of_interval_agree_where_the_noise_is_small() -> None:
    design = DESIGNS["size_data"]
    points = Design(design.form, design.parameters, design.axes, cell_sd=0.002).points(np.random.default_rng(13))
    bootstrap = fit_law(points, "size_data", num_bootstrap=2000, loss="squares")
    profile = fit_law(points, "size_data", num_bootstrap=0, interval_method="profile", loss="squares")
    for name, (low, high) in bootstrap.intervals.items():
        other_low, other_high = profile.intervals[name]
        assert high - low == pytest.approx(other_high - other_low, rel=0.15)


def test_the_seed_decides_the_draws() -> None:
    points = DESIGNS["compute"].points(np.random.default_rng(14))
    first, again, other = (fit_law(points, "compute", num_bootstrap=60, seed=seed) for seed in (5, 5, 6))
    assert (first.draws == again.draws).all()
    assert first.intervals == again.intervals
    assert (first.draws != other.draws).any()
    assert first.draws.shape == (60, 3)
    axes = {"compute": np.array([1e20, 1e22])}
    assert (np.array(first.prediction_band(**axes)) == np.array(again.prediction_band(**axes))).all()


def test_bands_lie_inside_each_other() -> None:
    fit = fit_law(DESIGNS["compute"].points(np.random.default_rng(15)), "compute", num_bootstrap=400)
    axes = {"compute": np.geomspace(1e16, 1e23, 9).reshape(3, 3)}
    low, high = fit.band(**axes)
    outer_low, outer_high = fit.prediction_band(**axes)
    wide_low, wide_high = fit.band(level=0.99, **axes)
    curve = fit.predict(**axes)
    assert low.shape == curve.shape == (3, 3)
    assert (outer_low < low).all() and (low < curve).all() and (curve < high).all() and (high < outer_high).all()
    assert (wide_low < low).all() and (high < wide_high).all()
    # Runs scatter by the residuals' spread, 1.645 of it to each side of a law that is known well.
    middle = fit.predict(compute=1e18)
    below, above = fit.prediction_band(compute=1e18)
    assert np.log(above / middle) == pytest.approx(1.645 * fit.residual_sd, rel=0.6)
    assert np.log(middle / below) == pytest.approx(1.645 * fit.residual_sd, rel=0.6)


def uneven(cell_sd: float, seed_sd: float) -> np.ndarray:
    """Weights of 40 cells, of which every second has five seeds and the others one."""
    random = np.random.default_rng(16)
    compute = np.geomspace(1e16, 1e21, 40)
    counts = np.where(np.arange(40) % 2 == 0, 5, 1)
    cells = np.repeat(np.arange(40), counts)
    log_error = np.log(0.1 + 1.1e6 * compute**-0.35) + random.normal(0, cell_sd, 40)
    error = np.exp(log_error[cells] + random.normal(0, seed_sd, len(cells)))
    points = as_points(error, {"compute": compute[cells]}, groups=tuple(cells.tolist()))
    solution = solve(points, FORMS["compute"], "squares", None)
    assert len(cells_of(points, ("compute",))) == 40
    weights: np.ndarray = solution.problem.root_weights**2
    return weights


def test_five_seeds_count_five_times_where_seeds_are_what_differs() -> None:
    weights = uneven(cell_sd=0.0, seed_sd=0.02)
    assert weights.mean() == pytest.approx(1)
    assert 3 < weights[0] / weights[1] <= 5.01


def test_five_seeds_count_once_where_settings_are_what_differs() -> None:
    weights = uneven(cell_sd=0.03, seed_sd=0.001)
    assert 1 < weights[0] / weights[1] < 1.1
