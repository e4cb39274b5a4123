"""The solver against scipy, against the definition of its problem, and against known laws."""

import numpy as np
import pytest
from scipy import optimize

from tests.analysis.laws.known_laws import DESIGNS
from vitlight.analysis.laws.forms import FORMS
from vitlight.analysis.laws.points import cells_of
from vitlight.analysis.laws.solution import solve
from vitlight.analysis.laws.solve import build_problem, grid_starts, losses, nonnegative_solutions, polish, residuals

FORM_NAMES = list(FORMS)


@pytest.mark.parametrize("name", FORM_NAMES)
def test_derivatives_are_those_of_the_error(name: str) -> None:
    design = DESIGNS[name]
    problem = build_problem(FORMS[name], cells_of(design.points(), FORMS[name].axes).axes, None)
    theta = FORMS[name].to_internal(np.array([list(design.parameters.values())]), problem.scales)
    _, slopes = FORMS[name].evaluate(theta, problem.axes)
    for index in range(theta.shape[1]):
        step = np.zeros_like(theta)
        step[0, index] = 1e-6 * max(abs(theta[0, index]), 1e-3)
        above, _ = FORMS[name].evaluate(theta + step, problem.axes)
        below, _ = FORMS[name].evaluate(theta - step, problem.axes)
        assert slopes[0, :, index] == pytest.approx((above - below)[0] / (2 * step[0, index]), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", FORM_NAMES)
def test_units_of_the_solver_and_of_the_user_agree(name: str) -> None:
    form, parameters = FORMS[name], np.array([list(DESIGNS[name].parameters.values())])
    scales = np.array([3e17, 2e8][-form.num_terms :])
    assert form.to_public(form.to_internal(parameters, scales), scales) == pytest.approx(parameters, rel=1e-12)
    axes = np.stack(list(DESIGNS[name].axes.values()))
    of_axes = np.concatenate([scales, np.repeat(scales[-1:], len(axes) - form.num_terms)])
    scaled, _ = form.evaluate(form.to_internal(parameters, scales), axes / of_axes[:, None])
    assert scaled == pytest.approx(form.error(parameters, DESIGNS[name].axes), rel=1e-12)


def test_nonnegative_solutions_equal_scipys() -> None:
    random = np.random.default_rng(0)
    design, targets = random.normal(size=(12, 3)) + 0.5, random.normal(size=(12, 40)) + 0.3
    ours, gain = nonnegative_solutions((design.T @ design)[None], (design.T @ targets)[None])
    num_on_bound = 0
    for index, target in enumerate(targets.T):
        theirs, norm = optimize.nnls(design, target)
        num_on_bound += int((theirs == 0).any())
        assert ours[0, :, index] == pytest.approx(theirs, abs=1e-9)
        assert gain[0, index] == pytest.approx(target @ target - norm**2, abs=1e-9)
    assert num_on_bound > 10


@pytest.mark.parametrize("loss", ["huber", "squares"])
@pytest.mark.parametrize("name", FORM_NAMES)
def test_scipy_finds_nothing_better(name: str, loss: str) -> None:
    points = DESIGNS[name].points(np.random.default_rng(3))
    solution = solve(points, FORMS[name], loss, None)
    targets = solution.cells.log_error[None]

    def weighted(theta: np.ndarray) -> np.ndarray:
        return residuals(solution.problem, theta[None], targets)[0]

    theirs = optimize.least_squares(
        weighted,
        solution.theta,
        bounds=(solution.problem.lower - 1e-12, solution.problem.upper + 1e-12),
        x_scale=np.abs(solution.theta) + 1e-9,
        loss="huber" if loss == "huber" else "linear",
        f_scale=solution.delta if loss == "huber" else 1.0,
        xtol=1e-15,
        ftol=1e-15,
        gtol=1e-15,
    )
    assert solution.cost == pytest.approx(theirs.cost, rel=1e-7)
    assert solution.cost <= theirs.cost * (1 + 1e-9)


@pytest.mark.parametrize("name", FORM_NAMES)
def test_no_point_of_the_grid_is_better(name: str) -> None:
    points = DESIGNS[name].points(np.random.default_rng(4))
    solution = solve(points, FORMS[name], "squares", None)
    targets = solution.cells.log_error[None]
    starts, _ = grid_starts(solution.problem, targets, np.exp(targets[0]), fine=True)
    of_grid = losses(residuals(solution.problem, starts[:, 0], targets), np.inf)
    assert solution.cost <= of_grid.min()
    assert solution.cost == pytest.approx(losses(solution.residuals[None], np.inf)[0], rel=1e-12)


def test_many_right_hand_sides_are_solved_as_each_alone() -> None:
    design, random = DESIGNS["size_data"], np.random.default_rng(5)
    solution = solve(design.points(random), FORMS["size_data"], "squares", None)
    targets = np.stack([np.log(design.points(random).error) for _ in range(7)])
    start = np.repeat(solution.theta[None], 7, axis=0)
    together, costs = polish(solution.problem, start, targets, np.inf)
    for index in range(7):
        alone, cost = polish(solution.problem, start[:1], targets[index : index + 1], np.inf)
        assert together[index] == pytest.approx(alone[0], rel=1e-6)
        assert costs[index] == pytest.approx(cost[0], rel=1e-10)


def test_a_parameter_that_is_held_stays() -> None:
    design = DESIGNS["compute"]
    solution = solve(design.points(np.random.default_rng(6)), FORMS["compute"], "squares", None)
    held = np.array([[True, False, False]])
    start = solution.theta[None] * np.array([0.5, 1, 1])
    theta, cost = polish(solution.problem, start, solution.cells.log_error[None], np.inf, held)
    assert theta[0, 0] == start[0, 0]
    assert cost[0] > solution.cost
