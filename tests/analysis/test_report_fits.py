"""The report's laws: the right form for the grid, what is held out, and who takes part."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.fake_runs import result, write_run
from vitlight.analysis import load_runs
from vitlight.analysis.published import load_published
from vitlight.analysis.report_fits import choose_form, drawn_fits, fit_families
from vitlight.analysis.tables import load_table

EXACT = {"e": 0.05, "A": 3.0, "B": 8.0, "alpha": 0.25, "beta": 0.4}


def write_law(
    root: Path, rungs: tuple[int, ...] = (1, 2, 3, 4), sizes: tuple[int, ...] = (500, 2000, 8000, 32000)
) -> None:
    """Runs on E = e + A/N^alpha + B/D^beta, exactly."""
    for rung in rungs:
        for size in sizes:
            run = result(f"vit_nano{rung}", size, 0)
            error = EXACT["e"] + EXACT["A"] / run["params"] ** EXACT["alpha"]
            error += EXACT["B"] / run["samples_seen"] ** EXACT["beta"]
            write_run(root, run | {"top1": 1 - error, "top1_count": None})


def test_an_exact_law_is_recovered_and_its_held_out_runs_lie_on_it(tmp_path: Path) -> None:
    write_law(tmp_path)
    fits, excluded = fit_families(load_runs(tmp_path), num_bootstrap=20)
    (one,) = fits
    assert one.fit is not None and one.held_out is not None
    assert (one.family, one.fit.form.name, excluded) == ("vit", "size_data", [])
    for name, value in EXACT.items():
        assert one.fit.parameters[name] == pytest.approx(value, rel=1e-3), name
    (panel,) = drawn_fits(fits)
    held = [point for point in panel["points"] if point["predicted"] is not None]
    assert len(panel["points"]) == 16 and len(held) == len(one.held_out.labels) >= 4
    for point in held:
        assert point["predicted"] == pytest.approx(point["y"], rel=1e-3)
    assert [curve["rank"] for curve in panel["curves"]] == [0, 1, 2, 3]
    for curve in panel["curves"]:
        assert np.all(np.diff(curve["y"]) < 0) and np.all(np.array(curve["low"]) <= np.array(curve["high"]))


def test_runs_that_took_no_part_are_named_with_the_reason(tmp_path: Path) -> None:
    write_law(tmp_path)
    write_run(tmp_path, result("vit_nano1", 500, 9, status="diverged", reason="loss is NaN", top1=None))
    _, excluded = fit_families(load_runs(tmp_path), num_bootstrap=0)
    (one,) = excluded
    assert "vit_nano1-500-9" in one.run and one.reason == "diverged: loss is NaN"


def test_too_little_is_no_law_and_the_reason_is_said(tmp_path: Path) -> None:
    write_law(tmp_path, rungs=(1, 2), sizes=(500, 2000))
    (one,), _ = fit_families(load_runs(tmp_path), num_bootstrap=0)
    assert one.fit is None and one.reason is not None
    assert one.reason.startswith("4 runs at 3 amounts of compute: a law needs five amounts")
    assert drawn_fits([one]) == []


def test_the_form_follows_from_the_grid(tmp_path: Path) -> None:
    write_law(tmp_path / "one_size", rungs=(2,), sizes=(500, 1000, 2000, 4000, 8000))
    write_law(tmp_path / "grid")
    for size in (500, 2000, 8000):  # all see 64,000 samples, as in sweeps at equal cost
        for rung in (1, 2, 3):
            write_run(tmp_path / "repeated", result(f"vit_nano{rung}", size, 0, samples_seen=64_000))
    chosen = {
        name: choose_form(fit_families(load_runs(tmp_path / name), num_bootstrap=0)[0][0].points)
        for name in ("one_size", "grid", "repeated")
    }
    assert chosen == {"one_size": "compute", "grid": "size_data", "repeated": "size_data_repeated"}


def test_published_results_enter_a_law_only_where_asked(tmp_path: Path) -> None:
    write_law(tmp_path)
    table = pd.concat([load_table(tmp_path), load_published("vit_compute")], ignore_index=True)
    own, _ = fit_families(table, num_bootstrap=0)
    both, _ = fit_families(table, num_bootstrap=0, with_published=True)
    assert [one.family for one in own] == ["vit"]
    assert len(both) > len(own)
    assert sum(len(one.points.runs) for one in own) == 16
