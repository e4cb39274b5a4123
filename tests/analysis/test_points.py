"""Which runs become points, in which sets, and why the others don't."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.analysis.fake_runs import FAMILIES, result, write_grid, write_run
from vitlight.analysis.points import column_error, law_points, law_sets
from vitlight.analysis.tables import load_table
from vitlight.errors import InputError


def table(root: Path) -> pd.DataFrame:
    return load_table([root])


def test_the_axes_of_every_run_are_the_tables(tmp_path: Path) -> None:
    runs = table(write_grid(tmp_path))
    sets, excluded = law_sets(runs)
    assert [one.name for one in sets] == ["family=coatnet", "family=resnet", "family=vit"]
    assert excluded == []
    for one in sets:
        points, frame = one.points, one.runs
        assert len(points) == 3 * 3 * 2 and len(set(points.labels)) == len(points)
        assert set(frame["family"]) == {one.name.removeprefix("family=")}
        assert points.error == pytest.approx(1 - frame["top1"].to_numpy(dtype=float), abs=1e-15)
        assert list(points.compute) == [float(flops) for flops in frame["train_flops"]]
        assert list(points.params) == list(frame["params"].astype(float))
        assert list(points.samples) == list(frame["samples_seen"].astype(float))
        assert list(points.unique_samples) == list(frame["unique_samples_seen"].astype(float))


def test_groups_are_the_runs_that_differ_in_their_seed_alone(tmp_path: Path) -> None:
    runs = table(write_grid(tmp_path, seeds=(0, 1, 2)))
    points = law_sets(runs)[0][0].points
    for group in set(points.groups):
        places = [place for place, other in enumerate(points.groups) if other == group]
        assert len(places) == 3
        assert len(set(points.params[places])) == len(set(points.samples[places])) == 1
    assert len(set(points.groups)) == 9


def test_every_run_left_out_is_listed_with_its_reason(tmp_path: Path) -> None:
    write_grid(tmp_path / "a", rungs=(1, 2), seeds=(0,))
    bad = {
        "diverged": {"status": "diverged", "top1": None, "reason": "loss is not finite at step 3\nmore"},
        "failed": {"status": "failed", "top1": None, "reason": None},
        "perfect": {"top1": 1.0},
    }
    for place, (name, changes) in enumerate(bad.items()):
        write_run(tmp_path / "a", result("vit_nano3", 500, place, run_id=name, **changes))
    copy = result("vit_nano1", 500, 0, finished_at="2026-11-25T00:00:00Z", top1=0.5)
    write_run(tmp_path / "b", copy)
    runs = table(tmp_path)
    sets, excluded = law_sets(runs)
    reasons = {one.run.rpartition(", ")[2]: one.reason for one in excluded}
    assert reasons == {
        "diverged": "diverged: loss is not finite at step 3",
        "failed": "failed",
        "perfect": "error is 0, and its logarithm is fitted",
        "vit_nano1-500-0": "another copy of run vit_nano1-500-0 ended later",
    }
    vit = next(one for one in sets if one.name == "family=vit")
    assert len(vit.points) == 2 * 3
    assert sum(len(one.points) for one in sets) + len(excluded) == len(runs)
    assert 0.5 in list(vit.points.error), "of the two copies the later one stands"


@pytest.mark.parametrize(("column", "value"), [("data_digest", "another"), ("eval_split", "val"), ("image_size", 64)])
def test_what_is_not_comparable_is_never_in_one_set_unless_asked(tmp_path: Path, column: str, value: object) -> None:
    write_run(tmp_path, result("vit_nano1", 500, 0))
    write_run(tmp_path, result("vit_nano2", 500, 0, **{column: value}))
    runs = table(tmp_path)
    sets, _ = law_sets(runs)
    assert len(sets) == 2
    assert all(f"{column}=" in one.name for one in sets), "the name says what tells them apart"
    with pytest.raises(InputError, match="make 2 sets"):
        law_points(runs)
    pooled, _ = law_sets(runs, pool=[column])
    assert [len(one.points) for one in pooled] == [2]
    assert pooled[0].notes == (f"{column} has 2 values in this set, as asked",)


def test_families_are_one_set_only_where_pooled(tmp_path: Path) -> None:
    runs = table(write_grid(tmp_path, seeds=(0,)))
    assert len(law_sets(runs)[0]) == len(FAMILIES)
    (one,), _ = law_sets(runs, by=(), pool=("family",))
    assert (one.name, len(one.points)) == ("all runs", len(runs))
    by_size, _ = law_sets(runs, by=("family", "num_train_samples"))
    assert len(by_size) == 9 and "num_train_samples=500" in by_size[0].name


def test_of_several_settings_val_chooses_and_the_rest_is_listed(tmp_path: Path) -> None:
    for lr, top1, val_top1 in ((0.001, 0.70, 0.60), (0.01, 0.65, 0.66)):
        for seed in (0, 1):
            run_id = f"{lr}-{seed}"
            write_run(tmp_path, result("vit_nano1", 500, seed, run_id=run_id, lr=lr, top1=top1, val_top1=val_top1))
    points, excluded = law_points(table(tmp_path))
    assert points.error == pytest.approx([0.35, 0.35]), "by val_top1, though the test accuracy of the other is higher"
    assert [one.reason for one in excluded] == ["lr=0.001: val_top1 0.6000, against 0.6600 with lr=0.01"] * 2
    (one,), _ = law_sets(table(tmp_path))
    assert one.notes == ("settings chosen by val_top1 in 1 cell",)


def test_without_val_no_setting_is_chosen(tmp_path: Path) -> None:
    for lr, top1 in ((0.001, 0.70), (0.01, 0.65)):
        write_run(tmp_path, result("vit_nano1", 500, 0, run_id=str(lr), lr=lr, top1=top1, val_top1=None))
    (one,), excluded = law_sets(table(tmp_path))
    assert len(one.points) == 2 and excluded == []
    assert "all 2 settings stay in, for lack of val_top1" in one.notes[0]


def test_durations_are_cells_and_a_batch_that_rounds_one_is_a_setting(tmp_path: Path) -> None:
    for place, (samples, batch) in enumerate([(4000, 100), (4032, 64), (8000, 100)]):
        run = result("vit_nano1", 500, 0, run_id=str(place), samples_seen=samples, global_batch_size=batch)
        write_run(tmp_path, run | {"val_top1": 0.5 + 0.1 * place})
    points, excluded = law_points(table(tmp_path))
    assert list(points.samples) == [4032, 8000]
    assert len(excluded) == 1 and "global_batch_size=100" in excluded[0].reason


def test_an_axis_that_some_runs_lack_is_absent_or_costs_these_runs(tmp_path: Path) -> None:
    runs = table(write_grid(tmp_path, rungs=(1, 2), sizes=(500, 2000), seeds=(0,)))
    runs = runs[runs["family"] == "vit"].reset_index(drop=True)
    runs.loc[0, "device_seconds"] = pd.NA
    (one,), excluded = law_sets(runs, x="device_seconds")
    assert not one.points.has("compute") and excluded == []
    assert one.notes == ("device_seconds is unknown for 1 of 4 runs, so forms that read it are left out",)
    (one,), excluded = law_sets(runs, x="device_seconds", axes=("compute",))
    assert one.points.has("compute") and len(one.points) == 3
    assert [item.reason for item in excluded] == ["no device_seconds"]


def test_other_errors_and_other_axes(tmp_path: Path) -> None:
    runs = table(write_grid(tmp_path, rungs=(1,), sizes=(500,), seeds=(0,)))
    one = law_sets(runs, "loss", x="forward_macs", size="forward_macs")[0][0]
    assert list(one.points.error) == [float(value) for value in one.runs["loss"]]
    assert list(one.points.compute) == list(one.points.params) == [float(value) for value in one.runs["forward_macs"]]
    one = law_sets(runs, "val_top1")[0][0]
    assert one.points.error == pytest.approx(1 - one.runs["val_top1"].to_numpy(dtype=float))
    with pytest.raises(InputError, match=r"no column 'top_1'; did you mean top1"):
        law_sets(runs, "top_1")
    with pytest.raises(InputError, match="'arch' holds no numbers"):
        law_sets(runs, "arch")


@pytest.mark.parametrize(
    ("column", "error"),
    [
        *[("top1", 0.2), ("val_top5", 0.2), ("mean_class_top1", 0.2), ("test/top1", 0.2), ("top1_real", 0.2)],
        *[("top1_v2", 0.2), ("few_shot/10_shot", 0.2), ("pets/knn/20", 0.2), ("loss", 0.8), ("top1_count", 0.8)],
    ],
)
def test_the_error_of_a_fraction_is_what_it_lacks_to_one(column: str, error: float) -> None:
    assert list(column_error(pd.DataFrame({column: [0.8]}), column)) == pytest.approx([error])


@pytest.mark.parametrize("column", ["few_shot/10_shot_std", "top1_std"])
def test_a_standard_deviation_is_no_error(column: str) -> None:
    said = f"the column '{column}' is a standard deviation, no error; name '{column.removesuffix('_std')}'"
    with pytest.raises(InputError, match=said):
        column_error(pd.DataFrame({column: [0.01]}), column)


def test_published_results_have_no_run_id_and_all_count() -> None:
    runs = load_table(["published:scaling_vit"])
    sets, excluded = law_sets(runs, size="forward_macs")
    assert sum(len(one.points) for one in sets) + len(excluded) == len(runs) == 732
    by_metric = {one.name: len(one.points) for one in sets}
    assert sum("finetune384" in name for name in by_metric) == 1, by_metric
    for one in sets:
        assert np.isfinite(one.points.compute).all()
