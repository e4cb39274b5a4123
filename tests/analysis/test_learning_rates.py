"""The best learning rate of each size, whether one serves all, and how the report says so."""

import math

import numpy as np
import pandas as pd
import pytest

from tests.analysis.fake_runs import result, write_run
from vitlight.analysis.learning_rates import best_rate, one_rate, rate_sets
from vitlight.analysis.report_data import gather_report
from vitlight.analysis.report_page import build_page
from vitlight.analysis.report_rates import rate_section, state_rates
from vitlight.analysis.runs import load_runs

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


def fake_table(tmp_path, lowest, seeds=(0, 1), **changes):
    """Runs of three ViTs x four rates; `lowest`: the optimum of each."""
    for rung, at in enumerate(lowest, start=1):
        for rate, (error,) in parabola(at).items():
            for seed in seeds:
                accuracy = 1 - error + 0.002 * (-1) ** seed
                values = {"top1": accuracy, "val_top1": accuracy, "top1_count": round(1e4 * accuracy), "lr": rate}
                run_id = f"{rung}-{rate}-{seed}"
                write_run(tmp_path, result(f"vit_nano{rung}", 1000, seed, run_id=run_id, **values, **changes))
    return load_runs(tmp_path)


def test_sizes_are_compared_within_what_they_have_in_common(tmp_path):
    runs = fake_table(tmp_path, (2e-3, 1.5e-3, 1e-3))
    (found,) = rate_sets(runs)
    assert (found.measure, found.noise_from) == ("val_top1", "seeds")
    assert found.noise_sd == pytest.approx(0.002 * math.sqrt(2))
    assert [size.arch for size in found.sizes] == ["vit_nano1", "vit_nano2", "vit_nano3"]
    assert [size.optimum for size in found.sizes] == pytest.approx([2e-3, 1.5e-3, 1e-3])
    assert found.sizes[0].num_seeds == (2, 2, 2, 2)
    assert rate_sets(runs[runs["lr"] == 1e-3]) == []
    assert rate_sets(runs.assign(status="failed")) == []


def test_a_rate_that_diverges_ends_the_row_rightly(tmp_path):
    runs = fake_table(tmp_path, (1e-2, 1e-2, 1e-2))
    lost = result("vit_nano1", 1000, 0, run_id="lost", lr=3e-2, status="diverged", top1=None, val_top1=None)
    write_run(tmp_path, lost)
    (found,) = rate_sets(load_runs(tmp_path))
    assert found.sizes[0].diverged == (3e-2,)
    said = " ".join(state_rates(found))
    assert "The highest rate tried is the best of vit_nano2, vit_nano3: the row may be too short" in said
    assert len(runs) + 1 == len(load_runs(tmp_path))


def test_what_is_said(tmp_path):
    (found,) = rate_sets(fake_table(tmp_path, (2e-3, 1.5e-3, 1e-3)))
    lines = state_rates(found)
    assert lines[0].startswith(
        "vit: no rate tried serves all within noise; with 0.001, the nearest to it, vit_nano1 loses "
    )
    assert lines[0].endswith(" By the parabolas, one from 0.0012 to 0.0016 may.")
    assert lines[1] == ("vit: the optimum goes from 0.002 (vit_nano1) to 0.001 (vit_nano3), 0.50 times as large.")
    assert lines[-1] == "By accuracy on val. Seeds spread by 0.28 points (standard deviation, pooled over all cells)."
    (same,) = rate_sets(fake_table(tmp_path / "same", (1e-3, 1e-3, 1e-3)))
    assert state_rates(same)[0] == "vit: 0.001 is the best rate of each."


def test_without_seeds_noise_is_not_invented(tmp_path):
    (found,) = rate_sets(fake_table(tmp_path, (2e-3, 1e-3), seeds=(0,)))
    assert (found.noise_sd, found.noise_from) == (None, None)
    assert "No cell has two seeds, so what noise is can't be told." in state_rates(found)[-1]
    counted = rate_sets(load_runs(tmp_path).assign(val_top1=pd.NA))[0]
    assert counted.noise_from == "evaluation"
    assert counted.noise_sd == pytest.approx(math.sqrt(0.25 * 0.75 / 10_000), rel=0.05)


def test_the_report_shows_rates_where_runs_differ_in_them(tmp_path):
    fake_table(tmp_path / "runs", (2e-3, 1.5e-3, 1e-3))
    page = build_page(gather_report([tmp_path / "runs"], tmp_path / "report", num_bootstrap=0))
    assert '<section id="learning-rates">' in page
    assert page.count("<strong>") >= 3
    assert "no rate tried serves all within noise" in page
    write_run(tmp_path / "one", result("vit_nano1", 1000, 0))
    page = build_page(gather_report([tmp_path / "one"], tmp_path / "second", num_bootstrap=0))
    assert "Learning rates" not in page
    assert rate_section([]) == ""


def test_of_a_search_the_report_shows_the_best_rate_alone(tmp_path):
    rates = [round(10 ** (-4 + 0.17 * place), 6) for place in range(12)]
    for rate in rates:
        accuracy = 0.8 - 0.02 * math.log(rate / 1e-3) ** 2
        values = {"top1": accuracy, "val_top1": accuracy, "lr": rate, "run_id": f"run-{rate}"}
        write_run(tmp_path, result("vit_nano1", 1000, 0, **values))
    (found,) = rate_sets(load_runs(tmp_path))
    assert "<td>12, 0.0001 to 0.0074</td><td>0.00105</td><td>20.00</td><td>0.001</td>" in rate_section([found])
