"""Points refuse what no law can be fitted to, and cells bring seeds together."""

import numpy as np
import pytest

from tests.analysis.laws.known_laws import as_points, compute_points
from vitlight.analysis.laws import Points
from vitlight.analysis.laws.points import cells_of
from vitlight.errors import InputError


def refused(error: list[float], **axes: list[float]) -> str:
    with pytest.raises(InputError) as caught:
        as_points(np.array(error), {name: np.array(values) for name, values in axes.items()})
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_error_must_be_a_positive_number() -> None:
    assert "error=0 of run1 (and 0 more)" in refused([0.5, 0.0, 0.1], compute=[1, 2, 3])
    assert "error=nan of run0 (and 1 more)" in refused([np.nan, np.nan, 0.1], compute=[1, 2, 3])


def test_an_axis_is_known_for_all_runs_or_for_none() -> None:
    assert "compute=nan of run2" in refused([0.5, 0.2, 0.1], compute=[1, 2, np.nan])
    assert "params=-3 of run1" in refused([0.5, 0.2, 0.1], params=[1, -3, 2])
    points = compute_points(np.array([0.5, 0.2]), np.array([1.0, 2.0]))
    assert points.has("compute")
    assert not points.has("compute", "params")


def test_lengths_agree() -> None:
    with pytest.raises(InputError, match=r"groups has 1 elements, and there are 2 labels"):
        as_points(np.array([0.5, 0.2]), {}, groups=(0,))
    with pytest.raises(InputError, match=r"params has shape \(3,\), and there are 2 labels"):
        Points(np.ones(2), np.ones(2), np.ones(3), np.ones(2), np.ones(2), (0, 1), ("a", "b"))


def test_unique_samples_are_among_the_samples() -> None:
    message = refused([0.5, 0.2], samples=[10, 10], unique_samples=[10, 11])
    assert "unique_samples=11 of run1 is more than its samples=10" in message


def test_take_keeps_runs_together() -> None:
    points = compute_points(np.array([0.5, 0.4, 0.3]), np.array([1.0, 2.0, 3.0]))
    for chosen in (points.take([2, 0]), points.take(np.array([True, False, True])).take([1, 0])):
        assert chosen.labels == ("run2", "run0")
        assert chosen.groups == (2, 0)
        assert chosen.error.tolist() == [0.3, 0.5]
        assert chosen.compute.tolist() == [3.0, 1.0]


def test_cells_are_means_of_log_errors_over_seeds() -> None:
    error = np.array([0.5, 0.3, 0.4, 0.2, 0.3])
    points = as_points(error, {"compute": np.array([1.0, 2.0, 1.0, 2.0, 4.0])}, groups=(7, 8, 7, 8, 9))
    cells = cells_of(points, ("compute",))
    assert cells.num_runs.tolist() == [2, 2, 1]
    assert cells.axes.tolist() == [[1.0, 2.0, 4.0]]
    assert cells.labels == ("run0 (mean of 2 seeds)", "run1 (mean of 2 seeds)", "run4")
    assert np.exp(cells.log_error) == pytest.approx([np.sqrt(0.5 * 0.4), np.sqrt(0.3 * 0.2), 0.3])
    pooled = (np.var(np.log([0.5, 0.4]), ddof=1) + np.var(np.log([0.3, 0.2]), ddof=1)) / 2
    assert cells.seed_variance == pytest.approx(pooled)
    assert cells_of(points.take([0, 1, 4]), ("compute",)).seed_variance is None
