"""The best learning rate of each size, and whether one serves all."""

import math

import numpy as np
import pytest

from vitlight.analysis.learning_rates import best_rate, one_rate

RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def parabola(lowest, rates=RATES, floor=0.2, curvature=0.02):
    return {rate: [floor + curvature * math.log(rate / lowest) ** 2] for rate in rates}


@pytest.mark.parametrize("lowest", [7e-4, 1e-3, 2.2e-3, 4.9e-3])
def test_the_optimum_of_a_parabola_is_found_wherever_it_lies(lowest):
    size = best_rate(parabola(lowest), None)
    assert size.optimum == pytest.approx(lowest, rel=1e-9)
    assert size.best == min(RATES, key=lambda rate: abs(math.log(rate / lowest)))
    assert (size.low, size.high, size.lies_at) == (None, None, None)


def test_the_range_within_noise_is_where_the_parabola_rises_by_what_seeds_explain():
    errors = {rate: [value - 0.01, value, value + 0.01] for rate, (value,) in parabola(2e-3).items()}
    size = best_rate(errors, 0.01)
    rise = 1.645 * 0.01 * math.sqrt(2 / 3)
    assert 0.02 * math.log(size.high / 2e-3) ** 2 == pytest.approx(rise)
    assert size.low * size.high == pytest.approx(2e-3**2)
    wide = best_rate(errors, 1.0)
    assert (wide.low, wide.high) == (RATES[0], RATES[-1])


@pytest.mark.parametrize(("lowest", "where"), [(1e-5, "lowest"), (1.0, "highest")])
def test_a_row_that_is_too_short_has_no_optimum(lowest, where):
    size = best_rate(parabola(lowest), 0.01)
    assert (size.optimum, size.low, size.lies_at) == (None, None, where)


def test_equal_errors_have_the_first_rate_for_an_optimum():
    size = best_rate({1e-3: [0.5], 2e-3: [0.4], 4e-3: [0.5]}, None)
    assert size.optimum == pytest.approx(2e-3)
    assert best_rate({1e-3: [0.5], 2e-3: [0.5]}, None).optimum is None


def test_one_rate_serves_all_or_the_worst_served_is_named():
    near = [best_rate(parabola(lowest), 0.005, arch) for arch, lowest in (("a", 9e-4), ("b", 1.3e-3))]
    assert one_rate(near, 0.005).serves is True
    assert one_rate(near, 0.005).rate == 1e-3
    far = [best_rate(parabola(lowest), 0.005, arch) for arch, lowest in (("a", 3e-4), ("b", 1e-2))]
    verdict = one_rate(far, 0.005)
    assert (verdict.serves, verdict.rate) == (False, 1e-3)
    assert verdict.worst == pytest.approx(0.02 * math.log(10) ** 2)
    assert verdict.worst_arch == "b"
    assert one_rate(far, None).serves is None
    assert one_rate(far[:1], 0.005) is None
    apart = [best_rate({1e-3: [0.1]}, None), best_rate({2e-3: [0.1]}, None)]
    assert one_rate(apart, None) is None


def test_where_one_rate_is_right_for_all_it_is_seldom_refused():
    """Of 200 rows of four sizes with the same optimum and three seeds each, the verdict refuses what seeds explain."""
    rng = np.random.default_rng(3)
    refused = 0
    for _ in range(200):
        sizes = []
        for arch in "abcd":
            errors = {
                rate: (value + 0.01 * rng.standard_normal(3)).tolist() for rate, (value,) in parabola(1e-3).items()
            }
            sizes.append(best_rate(errors, 0.01, arch))
        refused += not one_rate(sizes, 0.01).serves
    assert refused <= 10


def test_a_rate_of_which_a_run_diverged_is_not_the_best_of_its_survivor():
    errors = {1e-3: [0.30, 0.31, 0.29], 3e-3: [0.25, 0.26, 0.24], 1e-2: [0.20]}
    size = best_rate(errors, 0.01, "a", diverged={1e-2: (2, 3)})
    assert (size.rates, size.best, size.optimum) == ((1e-3, 3e-3), 3e-3, None)
    assert (size.tried, size.lies_at) == ((1e-3, 3e-3, 1e-2), None)
    other = best_rate(errors, 0.01, "b")
    assert other.best == 1e-2
    assert one_rate([size, other], 0.01).rate == 3e-3
    assert one_rate([size, best_rate({1e-2: [0.2]}, 0.01, "c")], 0.01) is None


def test_where_all_rates_diverged_the_survivors_are_all_there_is():
    size = best_rate({1e-3: [0.30], 3e-3: [0.25]}, None, diverged={1e-3: (1, 2), 3e-3: (1, 2)})
    assert (size.rates, size.best, size.lies_at) == ((1e-3, 3e-3), 3e-3, "highest")
