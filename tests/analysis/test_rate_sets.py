"""Which runs are rates of one size and sizes of one set, and how the report says what they come to."""

import math

import pandas as pd
import pytest
import yaml

from tests.analysis.fake_runs import result, write_run
from vitlight.analysis.rate_sets import rate_sets
from vitlight.analysis.report_data import gather_report
from vitlight.analysis.report_page import build_page
from vitlight.analysis.report_rates import rate_section, set_name, state_rates
from vitlight.analysis.runs import load_runs

RATES = (3e-4, 1e-3, 3e-3, 1e-2)


def parabola(lowest):
    return {rate: 0.2 + 0.02 * math.log(rate / lowest) ** 2 for rate in RATES}


def fake_table(tmp_path, lowest, seeds=(0, 1), **changes):
    """Runs of three ViTs x four rates; `lowest`: the optimum of each."""
    for rung, at in enumerate(lowest, start=1):
        for rate, error in parabola(at).items():
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
    assert found.sizes[0].diverged == {3e-2: (1, 1)}
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


def add(root, rate, error, seed=0, arch="vit_nano1", *, model=None, data=None, **changes):
    """A run with a whole experiment.yaml."""
    changes = {"run_id": str(len(list(root.rglob("result.json"))))} | changes
    values = {"top1": 1 - error, "val_top1": 1 - error, "top1_count": None} if error is not None else {}
    if error is None:
        values = {"status": "diverged", "top1": None, "val_top1": None}
    run_dir = write_run(root, result(arch, 1000, seed, lr=rate, **values | changes))
    config = {
        "seed_everything": seed,
        "model": {
            **{"arch": arch, "optimizer": {"name": "adamw", "lr": rate}, "schedule": {"name": "cosine"}},
            **{"duration": {"epochs": 8}, "model_options": None, "weights": None, "ema_decay": None},
        }
        | (model or {}),
        "data": {"train": "data/train", "augmentation": {"policy": "none"}, "num_workers": seed} | (data or {}),
        "trainer": {"precision": "32-true"},
    }
    (run_dir / "experiment.yaml").write_text(yaml.safe_dump(config))
    return run_dir


def test_runs_of_two_augmentations_are_two_sets_and_no_spread_over_seeds(tmp_path):
    for rate, error in parabola(2e-3).items():
        add(tmp_path, rate, error)
        add(tmp_path, rate, error + 0.08, data={"augmentation": {"policy": "randaugment"}})
    plain, strong = sets = rate_sets(load_runs(tmp_path))
    assert [one.sizes[0].num_seeds for one in sets] == [(1, 1, 1, 1)] * 2
    assert [one.noise_from for one in sets] == [None, None]
    assert strong.sizes[0].errors[1] - plain.sizes[0].errors[1] == pytest.approx(0.08)
    assert [set_name(one, sets) for one in sets] == [
        "data.augmentation.policy none",
        "data.augmentation.policy randaugment",
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": {"name": "rsqrt"}},
        {"optimizer": {"name": "lamb", "lr": None}},
        {"label_smoothing": 0.1},
        {"ema_decay": 0.99},
    ],
)
def test_each_hidden_setting_makes_a_set_of_its_own(tmp_path, change):
    for rate in RATES:
        add(tmp_path, rate, 0.5)
        add(tmp_path, rate, 0.25, model=change)
    assert [one.sizes[0].errors for one in rate_sets(load_runs(tmp_path))] == [(0.5,) * 4, (0.25,) * 4]


def test_seeds_and_what_is_no_setting_stay_in_one_set(tmp_path):
    for rate, error in parabola(2e-3).items():
        for seed in (0, 1, 2):
            add(tmp_path, rate, error + 0.01 * (seed - 1), seed, model={"seed": seed}, data={"seed": seed})
    (one,) = rate_sets(load_runs(tmp_path))
    assert one.sizes[0].num_seeds == (3, 3, 3, 3)
    assert one.noise_sd == pytest.approx(0.01)


def test_options_and_weights_that_go_with_a_model_tell_sizes_apart_in_one_set(tmp_path):
    for rate, error in parabola(2e-3).items():
        add(tmp_path, rate, error, arch="vit_nano1", model={"model_options": {"drop_path_rate": 0.1}})
        add(tmp_path, rate, error, arch="vit_nano2", model={"model_options": {"drop_path_rate": 0.0}})
        add(tmp_path, rate, error, arch="vit_nano2", model={"model_options": {"drop_path_rate": 0.3}})
    (one,) = rate_sets(load_runs(tmp_path))
    assert [size.arch for size in one.sizes] == [
        "vit_nano1",
        "vit_nano2 drop_path_rate=0",
        "vit_nano2 drop_path_rate=0.3",
    ]
    assert one.verdict().rate == 3e-3


def test_rows_without_a_file_are_told_apart_by_their_columns_and_one_seed_is_no_spread(tmp_path):
    for rate, error in parabola(2e-3).items():
        add(tmp_path, rate, error)
        add(tmp_path, rate, error + 0.08, data={"augmentation": {"policy": "randaugment"}})
    (one,) = rate_sets(load_runs(tmp_path).assign(run_dir=pd.NA))
    assert one.sizes[0].num_seeds == (1, 1, 1, 1)
    assert one.sizes[0].errors == pytest.approx([error + 0.04 for error in parabola(2e-3).values()])
    assert one.noise_from is None


def test_a_rate_that_most_seeds_diverged_at_is_shown_as_that_and_wins_nothing(tmp_path):
    for rate, error in parabola(1e-2).items():
        for seed in (0, 1, 2):
            add(tmp_path, rate, None if (rate, seed > 0) == (1e-2, True) else error, seed)
    (one,) = rate_sets(load_runs(tmp_path))
    (size,) = one.sizes
    assert (size.best, size.diverged) == (3e-3, {1e-2: (2, 3)})
    assert not any("too short" in line for line in state_rates(one))
    assert '<td class="quiet">2 of 3 diverged</td>' in rate_section([one])
    assert one.noise_sd == pytest.approx(0, abs=1e-9)


def test_a_best_rate_that_diverged_itself_is_no_reason_to_go_higher(tmp_path):
    for rate, errors in {1e-3: (0.3, None), 3e-3: (0.25, None)}.items():
        for seed, error in enumerate(errors):
            add(tmp_path, rate, error, seed)
    (one,) = rate_sets(load_runs(tmp_path))
    assert one.sizes[0].best == 3e-3
    assert not any("too short" in line for line in state_rates(one))
    assert "<strong>25.00</strong> (1 of 2 diverged)" in rate_section([one])


def test_divergence_is_that_of_the_same_settings_and_of_a_copy_once(tmp_path):
    for rate, error in parabola(1e-2).items():
        add(tmp_path / "runs", rate, error)
        add(tmp_path / "runs", rate, error, data={"augmentation": {"policy": "randaugment"}})
    for place in ("runs", "copy"):
        add(tmp_path / place, 3e-2, None, run_id="lost", data={"augmentation": {"policy": "randaugment"}})
    plain, strong = rate_sets(load_runs(tmp_path))
    assert plain.sizes[0].diverged == {}
    assert strong.sizes[0].diverged == {3e-2: (1, 1)}


def test_a_size_of_which_one_rate_alone_is_left_is_in_the_table(tmp_path):
    add(tmp_path, 1e-3, 0.3)
    add(tmp_path, 3e-3, None)
    (one,) = rate_sets(load_runs(tmp_path))
    assert (one.sizes[0].rates, one.sizes[0].diverged) == ((1e-3,), {3e-3: (1, 1)})
    assert "The lowest rate tried is the best of vit_nano1: the row may be too short, try one below it." in state_rates(
        one
    )
