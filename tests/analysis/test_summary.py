"""Means over seeds against numpy, the Pareto front against its definition."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.fake_runs import result, write_grid, write_run
from vitlight.analysis import load_runs, pareto_front, summarise
from vitlight.analysis.summary import SUMMARY_COLUMNS, choose_settings


def test_statistics_equal_numpy_for_every_cell(tmp_path: Path) -> None:
    runs = load_runs(write_grid(tmp_path, rungs=(1, 2), sizes=(500, 2000), seeds=(0, 1, 2)))
    summary = summarise(runs)
    assert tuple(summary.columns) == SUMMARY_COLUMNS
    assert len(summary) == 3 * 2 * 2
    for _, cell in summary.iterrows():
        of_cell = (runs["arch"] == cell["arch"]) & (runs["num_train_samples"] == cell["num_train_samples"])
        members = runs[of_cell].sort_values("seed")
        top1 = members["top1"].to_numpy(dtype=float)
        assert cell["n"] == len(top1) == 3
        assert cell["top1_mean"] == pytest.approx(np.mean(top1), abs=1e-15)
        assert cell["top1_std"] == pytest.approx(np.std(top1, ddof=1), abs=1e-15)
        assert (cell["top1_min"], cell["top1_max"]) == (top1.min(), top1.max())
        p = np.mean(top1)
        assert cell["top1_eval_standard_error"] == pytest.approx(math.sqrt(p * (1 - p) / 10_000))
        assert cell["val_top1_mean"] == pytest.approx(members["val_top1"].to_numpy(dtype=float).mean())
        for column in ("device_seconds", "images_per_second"):
            assert cell[f"{column}_mean"] == pytest.approx(members[column].to_numpy(dtype=float).mean())
        assert cell["seeds"] == "0 1 2"
        assert [float(value) for value in cell["top1_values"].split()] == list(top1)
        assert cell["train_flops"] == members["train_flops"].iloc[0]


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    write_run(tmp_path, result("vit_nano1", 500, 0))
    cell = summarise(load_runs(tmp_path)).iloc[0]
    assert cell["n"] == 1
    assert pd.isna(cell["top1_std"])
    assert cell["top1_min"] == cell["top1_mean"] == cell["top1_max"]


def test_only_done_runs_count_and_a_copied_run_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", result("vit_nano1", 500, 0, top1=0.5))
    write_run(tmp_path / "a", result("vit_nano1", 500, 1, top1=0.6))
    write_run(tmp_path / "a", result("vit_nano1", 500, 2, status="diverged", top1=None))
    write_run(tmp_path / "a", result("vit_nano1", 500, 3, status="failed", top1=0.9))
    write_run(tmp_path / "b", result("vit_nano1", 500, 1, top1=0.7, finished_at="2026-11-23T00:00:00Z"))
    cell = summarise(load_runs(tmp_path)).iloc[0]
    assert cell["n"] == 2
    assert cell["top1_mean"] == pytest.approx(0.6), "of the two copies of seed 1 the later one stands"


def test_settings_that_differ_are_cells_of_their_own_and_val_chooses(tmp_path: Path) -> None:
    for lr, top1, val_top1 in ((0.001, 0.70, 0.60), (0.01, 0.65, 0.66)):
        for seed in (0, 1):
            run_id = f"{lr}-{seed}"
            write_run(tmp_path, result("vit_nano1", 500, seed, run_id=run_id, lr=lr, top1=top1, val_top1=val_top1))
    write_run(tmp_path, result("vit_nano2", 500, 0))
    summary = summarise(load_runs(tmp_path))
    assert [(cell["arch"], cell["lr"], cell["n"]) for _, cell in summary.iterrows()] == [
        ("vit_nano1", 0.001, 2),
        ("vit_nano1", 0.01, 2),
        ("vit_nano2", 0.001, 1),
    ]
    chosen = choose_settings(summary)
    assert list(chosen["lr"]) == [0.01, 0.001], "by val_top1, though the test accuracy of the other is higher"
    assert list(chosen["num_settings"]) == [2, 1]
    assert chosen["chosen_by"].iloc[0] == "val_top1" and pd.isna(chosen["chosen_by"].iloc[1])


def test_without_val_the_choice_is_by_top1_and_says_so(tmp_path: Path) -> None:
    for lr, top1 in ((0.001, 0.70), (0.01, 0.65)):
        write_run(tmp_path, result("vit_nano1", 500, 0, run_id=str(lr), lr=lr, top1=top1, val_top1=None))
    chosen = choose_settings(summarise(load_runs(tmp_path)))
    assert (chosen["lr"].iloc[0], chosen["chosen_by"].iloc[0]) == (0.001, "top1")


def test_settings_that_are_null_are_one_group(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path, result("vit_nano1", 500, seed, lr=None, data_digest=None, num_eval_samples=None))
    summary = summarise(load_runs(tmp_path))
    assert list(summary["n"]) == [2]
    assert pd.isna(summary["top1_eval_standard_error"].iloc[0])
    assert len(choose_settings(summary)) == 1


def test_no_done_run_gives_an_empty_summary(tmp_path: Path) -> None:
    write_run(tmp_path, result("vit_nano1", 500, 0, status="failed"))
    summary = summarise(load_runs(tmp_path))
    assert (len(summary), tuple(summary.columns)) == (0, SUMMARY_COLUMNS)


def beaten(i: int, x: np.ndarray, y: np.ndarray) -> bool:
    """The definition, over all pairs: another is as cheap and as good, and better in one or listed earlier."""
    return any(x[j] <= x[i] and y[j] >= y[i] and (x[j] < x[i] or y[j] > y[i] or j < i) for j in range(len(x)) if j != i)


@pytest.mark.parametrize("seed", range(20))
def test_pareto_front_equals_the_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 40))
    x, y = rng.integers(0, 8, count).astype(float), rng.integers(0, 8, count).astype(float)
    front = pareto_front(x, y)
    assert sorted(front) == [i for i in range(count) if not beaten(i, x, y)]
    assert list(x[front]) == sorted(x[front])


def test_pareto_front_passes_over_what_is_not_finite() -> None:
    nan, inf = math.nan, math.inf
    assert list(pareto_front([1, 2, nan, 3, 4], [nan, 5, 9, inf, 6])) == [1, 4]
    assert list(pareto_front([], [])) == []
    with pytest.raises(ValueError, match="one length"):
        pareto_front([1, 2], [1])
