"""The next run, on cases where the best one and what it narrows are known."""

import math

import numpy as np
import pytest

from vitlight.analysis.advice import Candidate, choose_next
from vitlight.analysis.laws import Points, compute_optimal, fit_law


def candidate(name: str, params: float = 1.0, samples: float = 1.0, flops: float = 1.0) -> Candidate:
    return Candidate(name, params, samples, samples, flops, f"vitlight fit {name}")


def test_a_line_is_narrowed_by_what_least_squares_says() -> None:
    """y = a + b x read with noise s at the points X: the variance of a + b x0 is s^2 v(X' X)^-1 v, so what one more reading
    takes of it is known exactly. 200,000 draws of (a, b) give it to their sampling error."""
    noise, places, target_at = 0.1, np.array([0.0, 1.0, 2.0]), 10.0
    new = np.array([-2.0, 0.0, 1.0, 5.0])
    design = np.column_stack([np.ones(3), places])
    covariance = noise**2 * np.linalg.inv(design.T @ design)
    draws = np.random.default_rng(0).multivariate_normal([1.0, 0.5], covariance, 200_000)
    outcomes = draws[:, :1] + draws[:, 1:] * new
    target = draws[:, 0] + target_at * draws[:, 1]

    def sd(rows: np.ndarray) -> float:
        v = np.array([1.0, target_at])
        return float(noise * math.sqrt(v @ np.linalg.inv(rows.T @ rows) @ v))

    expected = {x: 1 - sd(np.vstack([design, [1.0, x]])) / sd(design) for x in new}
    found = choose_next(
        [candidate(str(x)) for x in new], outcomes, {"y": target}, noise, by="y", count=4, min_narrowing=0
    )
    assert found[0].candidate.name == "5.0" == str(max(expected, key=lambda x: expected[x]))
    assert found[0].narrowing["y"] == pytest.approx(expected[5.0], abs=0.02)
    second = {
        x: 1 - sd(np.vstack([design, [1.0, 5.0], [1.0, x]])) / sd(np.vstack([design, [1.0, 5.0]])) for x in new[:3]
    }
    assert found[1].candidate.name == str(max(second, key=lambda x: second[x]))
    assert found[1].narrowing["y"] == pytest.approx(max(second.values()), abs=0.02)
    assert len({run.candidate.name for run in found}) == 4, "each is chosen once"


def test_per_compute_the_cheaper_of_two_equals_is_taken_and_one_that_tells_nothing_never() -> None:
    random = np.random.default_rng(0)
    target = random.standard_normal(5000)
    outcomes = np.column_stack([target, target, random.standard_normal(5000)])
    candidates = [candidate("dear", flops=9.0), candidate("cheap", flops=3.0), candidate("blind", flops=1e-9)]
    found = choose_next(candidates, outcomes, {"g": target}, 0.5, by="g", count=3)
    assert [run.candidate.name for run in found] == ["cheap", "dear"]
    # Var 1 read with noise 1/4 leaves 1/5, then 1/9: the interval goes by 1 - sqrt(1/5), then 1 - sqrt(5/9).
    assert found[0].narrowing["g"] == pytest.approx(1 - math.sqrt(1 / 5), abs=0.02)
    assert found[1].narrowing["g"] == pytest.approx(1 - math.sqrt(5 / 9), abs=0.02)


def test_draws_that_are_not_finite_count_for_nothing() -> None:
    target = np.array([np.inf, 1.0, 2.0, 3.0, np.nan])
    found = choose_next([candidate("a")], target[:, None].copy(), {"g": target}, 0.01, by="g")
    assert [run.candidate.name for run in found] == ["a"]
    assert choose_next([candidate("a")], np.full((5, 1), np.nan), {"g": target}, 0.01, by="g") == []


N_GRID = np.array([1e6, 4e6, 1.6e7, 6.4e7])


def points(sizes: np.ndarray, samples: np.ndarray, seed: int) -> Points:
    """E = 0.05 + 8 / N^0.3 + 30 / D^0.35 with 1 % noise."""
    n, d = (axis.ravel() for axis in np.meshgrid(sizes, samples))
    noise = np.exp(0.01 * np.random.default_rng(seed).standard_normal(len(n)))
    error = (0.05 + 8 / n**0.3 + 30 / d**0.35) * noise
    compute = 6 * 100 * n * d
    labels = tuple(f"{i}" for i in range(len(n)))
    return Points(error, compute, n, d, d, labels, labels)


def test_the_cell_that_it_names_narrows_the_best_size_more_than_the_one_it_ranks_last() -> None:
    """Sizes were run on little data. The named run is made, many times over, and the law refitted: its interval for the
    best size at a budget is the narrower one."""
    base = points(N_GRID, np.array([1e6, 2e6, 4e6]), 0)
    fit = fit_law(base, "size_data", num_bootstrap=300)
    budget = 6 * 100 * 1e8 * 1e9
    grid = np.geomspace(1e4, 1e12, 500)
    errors = fit.form.error(fit.draws, {"params": grid, "samples": budget / (600 * grid)})
    target = np.log(grid)[np.argmin(errors, axis=1)]
    cells = [(n, d) for n in N_GRID for d in (1e6, 6.4e7)]
    candidates = [candidate(f"{n:g} {d:g}", n, d) for n, d in cells]
    sizes, samples = np.array(cells).T
    outcomes = np.log(fit.form.error(fit.draws, {"params": sizes, "samples": samples}))
    ranked = choose_next(
        candidates, outcomes, {"size": target}, fit.residual_sd, by="size", count=len(cells), min_narrowing=0
    )
    order = [(run.candidate.params, run.candidate.samples) for run in ranked]
    assert order[0][1] == 6.4e7, "more data, of which there was little"

    def width(n: float, d: float) -> float:
        widths = []
        for seed in range(8):
            more = points(np.array([n]), np.array([d]), 100 + seed)
            both = Points(
                *(np.concatenate([getattr(base, name), getattr(more, name)])
                  for name in ("error", "compute", "params", "samples", "unique_samples")),
                (*base.groups, "new"), (*base.labels, "new"),
            )  # fmt: skip
            low, high = compute_optimal(fit_law(both, "size_data", num_bootstrap=200), budget, 100).params_interval[
                :, 0
            ]
            widths.append(math.log(high / low))
        return float(np.median(widths))

    assert width(*order[0]) < 0.8 * width(*order[-1])
