"""Fits recover the laws that points were drawn from."""

import numpy as np
import pytest

from tests.analysis.laws.known_laws import DESIGNS, as_points, compute_points, grid_points
from vitlight.analysis.laws import FORMS, fit_law
from vitlight.errors import InputError


@pytest.mark.parametrize("loss", ["huber", "squares"])
@pytest.mark.parametrize("name", list(FORMS))
def test_noise_free_parameters_are_recovered(name: str, loss: str) -> None:
    design = DESIGNS[name]
    fit = fit_law(design.points(), name, num_bootstrap=0, loss=loss)
    assert fit.parameters == pytest.approx(design.parameters, rel=1e-4)
    assert fit.residual_sd < 1e-6
    assert fit.warnings == ()


@pytest.mark.parametrize(
    ("law", "digits", "least"),
    [
        ({"c": 0.09, "a": 0.26, "b": 0.35, "d": 0.01}, {"c": 2, "a": 2, "b": 2, "d": 2}, 1e-3),
        ({"c": 0.12, "a": 0.63, "b": 0.32, "d": 0.52}, {"c": 2, "a": 2, "b": 2, "d": 2}, 1e-2),
    ],
    ids=["finetune", "10-shot"],
)
def test_published_laws_are_recovered_within_their_rounding(
    law: dict[str, float], digits: dict[str, int], least: float
) -> None:
    """Zhai et al. 2021 (arXiv 2106.04560), section 2; errors rounded to a tenth of a thousandth, C in core-days."""
    compute = np.geomspace(least, 1e5, 40)
    error = np.round(law["c"] + law["a"] * (compute + law["d"]) ** -law["b"], 4)
    fit = fit_law(compute_points(error, compute), "compute_shift", num_bootstrap=0)
    for name, value in law.items():
        assert round(fit.parameters[name], digits[name]) == value, name


def test_units_do_not_matter() -> None:
    random = np.random.default_rng(1)
    points = DESIGNS["size_data"].points(random)
    there = fit_law(points, "size_data", num_bootstrap=0)
    error, axes = points.error, {"params": points.params / 1e6, "samples": points.samples / 1e9}
    here = fit_law(as_points(error, axes), "size_data", num_bootstrap=0)
    for name in ("e", "alpha", "beta"):
        assert here.parameters[name] == pytest.approx(there.parameters[name], rel=1e-6)
    scaled = there.parameters["A"] * 1e6 ** -there.parameters["alpha"]
    assert here.parameters["A"] == pytest.approx(scaled, rel=1e-5)


def test_a_huber_loss_holds_out_against_a_bad_run() -> None:
    design = DESIGNS["size_data"]
    points = design.points(np.random.default_rng(2))
    error = points.error.copy()
    error[20] *= 2
    spoiled = as_points(error, design.axes)
    by_huber = fit_law(spoiled, "size_data", num_bootstrap=0).parameters["beta"]
    by_squares = fit_law(spoiled, "size_data", num_bootstrap=0, loss="squares").parameters["beta"]
    clean = fit_law(points, "size_data", num_bootstrap=0).parameters["beta"]
    assert abs(by_huber - clean) < 0.1 * abs(by_squares - clean)


def test_a_given_floor_is_kept() -> None:
    design = DESIGNS["compute"]
    points = design.points(np.random.default_rng(3))
    fit = fit_law(points, "compute", floor=0.05, num_bootstrap=50)
    assert fit.parameters["c"] == 0.05
    assert fit.intervals["c"] == (0.05, 0.05)
    assert (fit.draws[:, 0] == 0.05).all()
    free = fit_law(points, "compute", num_bootstrap=0)
    assert fit.objective > free.objective
    exact = fit_law(points, "compute", floor=free.parameters["c"], num_bootstrap=0)
    assert exact.parameters["b"] == pytest.approx(free.parameters["b"], rel=1e-3)


def test_predictions_are_those_of_the_formula() -> None:
    fit = fit_law(DESIGNS["size_data_repeated"].points(), "size_data_repeated", num_bootstrap=0)
    p = fit.parameters
    params, samples, unique = np.array([[1e7], [1e8]]), np.array([1e7, 3e8, 1e9]), np.array([1e7, 1e7, 1e9])
    worth = unique + unique * p["R"] * (1 - np.exp(-(samples / unique - 1) / p["R"]))
    expected = p["e"] + p["A"] / params ** p["alpha"] + p["B"] / worth ** p["beta"]
    assert fit.predict(params=params, samples=samples, unique_samples=unique) == pytest.approx(expected, rel=1e-12)
    assert fit.predict(params=1e8, samples=1e8, unique_samples=1e8).shape == ()


def test_residuals_are_of_runs() -> None:
    points = DESIGNS["compute"].points(np.random.default_rng(4))
    fit = fit_law(points, "compute", num_bootstrap=0)
    expected = np.log(points.error / fit.predict(compute=points.compute))
    assert fit.residuals == pytest.approx(expected, abs=1e-12)


def refused(**settings: object) -> str:
    points = settings.pop("points", None) or DESIGNS["compute"].points()
    with pytest.raises(InputError) as caught:
        fit_law(points, settings.pop("form", "compute"), **settings)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_wrong_settings_are_refused_in_one_line() -> None:
    assert "form='computed' is none of compute," in refused(form="computed")
    assert "did you mean compute" in refused(form="computed")
    assert "loss='l1' is none of huber, squares" in refused(loss="l1")
    assert "floor=2 must be at least 0 and below the smallest error" in refused(floor=2.0)
    assert "level=90 must lie between 0 and 1" in refused(level=90)
    assert "num_bootstrap=-1" in refused(num_bootstrap=-1)
    assert "interval_method='exact' is none of bootstrap, profile" in refused(interval_method="exact")
    assert "form=size_data reads params and samples" in refused(form="size_data")


def test_too_few_settings_are_refused() -> None:
    compute = np.array([1.0, 2.0, 4.0, 4.0])
    message = refused(points=compute_points(1 / compute, compute))
    assert "form=compute has 3 parameters and needs more than 3 different settings of compute, not 3" in message


def test_repeats_must_have_happened() -> None:
    params, samples = np.repeat([1e6, 1e7, 1e8], 3), np.tile([1e6, 1e7, 1e8], 3)
    points = as_points(1 / np.sqrt(params * samples), {"params": params, "samples": samples, "unique_samples": samples})
    assert "take size_data" in refused(points=points, form="size_data_repeated")


def test_predictions_name_what_they_need() -> None:
    fit = fit_law(grid_points(*_small_grid()), "size_data", num_bootstrap=0)
    with pytest.raises(InputError, match="samples is missing"):
        fit.predict(params=1e6)
    with pytest.raises(InputError, match="sample: the form size_data reads params, samples; did you mean samples"):
        fit.predict(params=1e6, sample=1e6)
    with pytest.raises(InputError, match="must be above 0, not -1"):
        fit.predict(params=1e6, samples=-1.0)
    with pytest.raises(InputError, match="num_bootstrap=0 leaves no draws"):
        fit.band(params=1e6, samples=1e6)


def _small_grid() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    params, samples = np.repeat([1e6, 1e7, 1e8], 3), np.tile([1e6, 1e7, 1e8], 3)
    return 0.1 + 30 / params**0.4 + 20 / samples**0.3, params, samples
