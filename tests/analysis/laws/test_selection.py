"""The largest runs are held out, and the form that predicts them is chosen."""

import numpy as np
import pytest

from tests.analysis.laws.known_laws import DESIGNS, REPLICATED, as_points
from vitlight.analysis.laws import fit_law, leave_largest_out, select_form
from vitlight.errors import InputError


def test_the_largest_runs_are_held_out() -> None:
    points = DESIGNS["compute"].points(np.random.default_rng(31))
    held_out = leave_largest_out(points, "compute", fraction=0.25, num_bootstrap=200)
    assert held_out.labels == ("run10", "run11", "run12", "run13")
    assert held_out.threshold == points.compute[10]
    rest = fit_law(points.take(range(10)), "compute", num_bootstrap=200)
    assert held_out.fit.parameters == rest.parameters
    assert held_out.predicted == pytest.approx(rest.predict(compute=points.compute[10:]))
    assert held_out.errors == pytest.approx(np.log(held_out.predicted / points.error[10:]))
    assert held_out.mean_abs_log_error == pytest.approx(np.abs(held_out.errors).mean())
    low, high = rest.prediction_band(compute=points.compute[10:])
    assert held_out.inside.tolist() == ((low <= points.error[10:]) & (points.error[10:] <= high)).tolist()


def test_a_number_of_runs_can_be_held_out_along_any_axis() -> None:
    points = DESIGNS["size_data"].points(np.random.default_rng(32))
    held_out = leave_largest_out(points, "size_data", axis="params", num_runs=3, num_bootstrap=0)
    # Six runs share the largest size, and stay together.
    assert (held_out.points.params == points.params.max()).all()
    assert len(held_out.labels) == 6
    assert not held_out.inside.any()


def test_seeds_of_a_setting_stay_together_and_count_as_one() -> None:
    points = REPLICATED.points(np.random.default_rng(33))
    held_out = leave_largest_out(points, "compute", fraction=0.2, num_bootstrap=0)
    assert len(held_out.labels) == 6
    assert held_out.num_cells == 2
    means = np.log(held_out.observed).reshape(2, 3).mean(axis=1)
    expected = np.abs(np.log(held_out.predicted).reshape(2, 3)[:, 0] - means).mean()
    assert held_out.mean_abs_log_error == pytest.approx(expected)


def test_params_times_samples_stand_for_an_unknown_compute() -> None:
    held_out = leave_largest_out(DESIGNS["size_data"].points(), "size_data", num_bootstrap=0)
    assert held_out.axis == "params x samples"
    product = held_out.points.params * held_out.points.samples
    assert product.min() == held_out.threshold
    assert held_out.mean_abs_log_error < 1e-6


@pytest.mark.parametrize("name", ["compute", "compute_shift"])
def test_the_form_that_made_the_points_is_chosen(name: str) -> None:
    points = DESIGNS[name].points(np.random.default_rng(34))
    selection = select_form(points)
    assert selection.chosen == name
    assert [row.form for row in selection.rows] == ["compute", "compute_shift"]
    best = min(selection.rows, key=lambda row: row.held_out_error)
    chosen = next(row for row in selection.rows if row.form == selection.chosen)
    assert chosen.held_out_error <= best.held_out_error + selection.noise


def test_equal_forms_give_way_to_the_smaller() -> None:
    """A law without a shift is fitted by both forms; the one with three parameters is taken whichever is ahead."""
    chosen = [select_form(DESIGNS["compute"].points(np.random.default_rng(seed))).chosen for seed in range(12)]
    assert chosen.count("compute") >= 11


def test_size_and_data_beat_compute_where_both_matter() -> None:
    design = DESIGNS["size_data"]
    points = design.points(np.random.default_rng(35))
    axes = design.axes | {"compute": 6 * points.params * points.samples}
    selection = select_form(as_points(points.error, axes))
    assert selection.chosen == "size_data"


def test_a_form_that_cannot_be_fitted_keeps_its_reason() -> None:
    points = DESIGNS["compute"].points().take(range(0, 14, 3))
    selection = select_form(points, fraction=0.2)
    assert selection.chosen == "compute"
    assert "needs more than 4 different settings" in selection.rows[1].reason
    assert np.isnan(selection.rows[1].held_out_error)


def test_what_cannot_be_held_out_is_refused() -> None:
    points = DESIGNS["compute"].points()
    with pytest.raises(InputError, match=r"fraction=1 of the cells"):
        leave_largest_out(points, "compute", fraction=1.0)
    with pytest.raises(InputError, match=r"num_runs=14 to hold out must lie between 1 and 13"):
        leave_largest_out(points, "compute", num_runs=14)
    with pytest.raises(InputError, match=r"axis='params' to hold out along is not known"):
        leave_largest_out(points, "compute", axis="params")
    with pytest.raises(InputError, match="no form can be fitted"):
        select_form(points.take([0, 1, 2]))
