"""What a budget pays for, and the sweep file that is left."""

import pytest

from tests.sweep import fake_fit
from tests.sweep.planned_cells import planned_cell
from vitlight.errors import InputError
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.budget import Budget, keep_cheapest, packed_seconds, parse_budget, seed_groups
from vitlight.sweep.reduced import kept_parameters, scaled_parameters, write_sweep


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("3e18", Budget(3e18, "FLOPs")),
        ("3.5e18 FLOPs", Budget(3.5e18, "FLOPs")),
        ("24h", Budget(86_400.0, "device-seconds")),
        ("90m", Budget(5400.0, "device-seconds")),
        ("0.5d", Budget(43_200.0, "device-seconds")),
    ],
)
def test_budgets_are_read(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "much", "0", "-1h", "3 weeks", "1..2h", "inf"])
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(InputError, match="is no budget; write training FLOPs as 3e18, or device-hours as 24h"):
        parse_budget(text)


@pytest.fixture
def grid():
    """2 networks x 3 durations x 2 seeds, in grid order; FLOPs of a cell are 6 x 10 x macs x steps."""
    return [
        planned_cell(index, arch, macs, steps, seed=seed)
        for index, (arch, macs, steps, seed) in enumerate(
            (arch, macs, steps, seed)
            for arch, macs in (("vit_nano1", 10), ("vit_nano2", 40))
            for steps in (1, 2, 8)
            for seed in (0, 1)
        )
    ]


def indices(cells):
    return [item.cell.index for item in cells]


def test_groups_hold_all_seeds(grid):
    assert [indices(group) for group in seed_groups(grid)] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


def test_the_cheapest_groups_are_kept_whole_up_to_the_first_that_is_too_dear(grid):
    # In units of 600 FLOPs a group costs 2, 4, 16, 8, 16, 64; from the cheapest: 2, 4, 8, 16, 16, 64.
    result = keep_cheapest(grid, Budget(600 * 31, "FLOPs"), lambda item: None)
    assert indices(result.kept) == [0, 1, 2, 3, 4, 5, 6, 7]
    assert indices(result.dropped) == [8, 9, 10, 11]
    assert result.cost == 600 * 30
    all_of_it = keep_cheapest(grid, Budget(600 * 110, "FLOPs"), lambda item: None)
    assert (len(all_of_it.kept), all_of_it.cost) == (12, 600 * 110)


def test_a_budget_never_pays_for_more_than_it_is_and_keeps_a_staircase(grid):
    for amount in range(2 * 600, 120 * 600, 377):
        result = keep_cheapest(grid, Budget(amount, "FLOPs"), lambda item: None)
        assert result.cost == sum(item.own_train_flops for item in result.kept) <= amount
        dearest = max(item.run.train_flops for item in result.kept)
        assert all(item.run.train_flops >= dearest for item in result.dropped)


def test_device_hours_are_counted_where_every_cells_time_is_known(grid):
    result = keep_cheapest(grid, Budget(3.5, "device-seconds"), lambda item: item.run.steps / 2)
    assert (indices(result.kept), result.cost) == ([0, 1, 2, 3], 3.0)
    with pytest.raises(InputError, match=r"that of cell 6 \(.*vit_nano2.*\) is not known; give --rate or --calibrate"):
        keep_cheapest(grid, Budget(3.5, "device-seconds"), lambda item: 1.0 if item.run.arch == "vit_nano1" else None)


def test_a_budget_for_nothing_names_the_cheapest_cells(grid):
    with pytest.raises(
        InputError, match=r"pays for no cell: the cheapest 2 cells \(.*vit_nano1.*\) cost 1\.200e\+03 FLOPs"
    ):
        keep_cheapest(grid, Budget(1199, "FLOPs"), lambda item: None)


def test_cells_of_a_trunk_are_paid_for_in_its_order():
    cells = [planned_cell(0, steps=10), planned_cell(1, steps=11, own=0.2), planned_cell(2, steps=20, own=0.5)]
    result = keep_cheapest(cells, Budget(6000 * 123, "FLOPs"), lambda item: None)
    assert (indices(result.kept), result.cost) == ([0, 1], 60_000 * 10 + 60_000 * 11 // 5)


def test_packing_is_longest_first_and_counts_the_devices_of_a_cell():
    assert packed_seconds([(3, 1), (3, 1), (2, 1), (2, 1), (2, 1)], 2) == 7  # the least is 6
    assert packed_seconds([(5, 1)] * 4, 4) == 5
    assert packed_seconds([(4, 2), (3, 1), (3, 1)], 2) == 7
    with pytest.raises(InputError, match="a cell trains on 4 devices, more than --devices 2"):
        packed_seconds([(1, 4)], 2)


def reduced(write_sweep_file, tmp_path, chosen, axes, **keys):
    """The cells' settings before and after keeping the chosen ones, through a file."""
    sweep = load_sweep(write_sweep_file(axes, **keys))
    kept = [item for item in plan_sweep(sweep, fake_fit.resolve) if chosen(item)]
    parameters = kept_parameters(sweep, kept)
    write_sweep(tmp_path / "reduced.yaml", sweep, parameters, "a note\nof two lines")
    again = load_sweep(tmp_path / "reduced.yaml")
    before = sorted(sorted(map(str, item.cell.settings.items())) for item in kept)
    after = sorted(sorted(map(str, cell.settings.items())) for cell in again.cells())
    kept_keys = ("name", "command", "metric", "run_cap", "early_terminate")
    assert [getattr(again, key) for key in kept_keys] == [getattr(sweep, key) for key in kept_keys]
    assert before == after
    return parameters


AXES = {"model.arch": ["ok_1", "ok_2", "ok_3"], "data.num_train_samples": [10, 20], "seed_everything": [0, 1]}


def test_what_is_a_grid_still_is_written_as_one(write_sweep, tmp_path):
    parameters = reduced(write_sweep, tmp_path, lambda item: item.run.arch != "ok_2", AXES)
    assert parameters == {
        "data.num_train_samples": {"values": [10, 20]},
        "model.arch": {"values": ["ok_1", "ok_3"]},
        "seed_everything": {"values": [0, 1]},
    }
    assert (tmp_path / "reduced.yaml").read_text().startswith("# a note\n# of two lines\nname: demo\n")


def test_a_staircase_becomes_one_axis_of_settings_that_go_together(write_sweep, tmp_path):
    parameters = reduced(
        write_sweep, tmp_path, lambda item: item.run.train_flops < 60 * 50, {**AXES, "run.tags": [["a"]]}
    )
    assert parameters == {
        "config": {
            "values": [
                {"data": {"num_train_samples": samples}, "model": {"arch": arch}}
                for samples, arch in ((10, "ok_1"), (10, "ok_2"), (10, "ok_3"), (20, "ok_1"), (20, "ok_2"))
            ]
        },
        "run.tags": {"value": ["a"]},
        "seed_everything": {"values": [0, 1]},
    }


EARLY_ENDS = {
    "metric": {"name": "val/top1", "goal": "maximize"},
    "early_terminate": {"type": "hyperband", "min_iter": 2, "eta": 3},
}


def test_seeds_that_not_all_cells_have_go_with_the_others_settings(write_sweep, tmp_path):
    axes = {"model.arch": ["ok_1", "ok_2"], "seed_everything": [0, 1]}
    parameters = reduced(write_sweep, tmp_path, lambda item: True, axes, run_cap=3, **EARLY_ENDS)
    cells = [("ok_1", 0), ("ok_1", 1), ("ok_2", 0)]
    assert parameters == {
        "config": {"values": [{"model": {"arch": arch}, "seed_everything": seed} for arch, seed in cells]}
    }


def test_seeds_within_mappings_are_cells_of_their_own(write_sweep, tmp_path):
    """As the file has it that the test above writes, once more reduced."""
    configs = [{"model": {"arch": arch}, "seed_everything": seed} for arch in ("ok_1", "ok_2") for seed in (0, 1)]
    axes = {"config": configs, "data.num_train_samples": [10, 20]}
    parameters = reduced(write_sweep, tmp_path, lambda item: item.cell.index != 7, axes)
    assert len(parameters["config"]["values"]) == 7


def test_files_and_mappings_of_a_staircase_are_merged(tmp_path, write_sweep):
    (tmp_path / "delta.yaml").write_text("model: {optimizer: {lr: 0.5}}\ndata: {val_fraction: 0.1}\n")
    path = write_sweep(
        {"config": [str(tmp_path / "delta.yaml"), {"model": {"optimizer": {"lr": 0.25}}}], "model.arch": ["a", "b"]}
    )
    sweep = load_sweep(path)
    kept = [planned for planned in map(_planned, sweep.cells()) if planned.cell.index != 1]
    assert kept_parameters(sweep, kept) == {
        "config": {
            "values": [
                {"model": {"optimizer": {"lr": 0.5}, "arch": "a"}, "data": {"val_fraction": 0.1}},
                {"model": {"optimizer": {"lr": 0.25}, "arch": "a"}},
                {"model": {"optimizer": {"lr": 0.25}, "arch": "b"}},
            ]
        }
    }


def _planned(cell):
    import dataclasses

    return dataclasses.replace(planned_cell(cell.index), cell=cell)


def test_all_durations_are_scaled_wherever_they_are_written(write_sweep):
    axes = {
        "config": [{"model": {"duration": {"epochs": 10}, "arch": "a"}}, {"model": {"arch": "b"}}],
        "model.duration.samples": [1000, "null"],
        "seed_everything": [10],
    }
    sweep = load_sweep(write_sweep(axes))
    planned = [_with_duration(item, min_samples=400) for item in map(_planned, sweep.cells())]
    assert scaled_parameters(sweep, planned, 0.25) == {
        "config": {"values": [{"model": {"duration": {"epochs": 2.5}, "arch": "a"}}, {"model": {"arch": "b"}}]},
        "model.duration.min_samples": {"value": 100},
        "model.duration.samples": {"values": [250, "null"]},
        "seed_everything": {"value": 10},
    }
    planned[0] = _with_duration(planned[0], min_samples=500)
    with pytest.raises(InputError, match=r"model\.duration\.min_samples is 400 or 500, as the cells' files have it"):
        scaled_parameters(sweep, planned, 0.25)


def test_a_scaled_sweep_has_as_many_cells_and_ends_them_as_early(write_sweep, tmp_path):
    axes = {"model.duration.epochs": [2, 4], "seed_everything": [0, 1]}
    sweep = load_sweep(write_sweep(axes, run_cap=3, **EARLY_ENDS))
    parameters = scaled_parameters(sweep, plan_sweep(sweep, fake_fit.resolve), 0.5)
    write_sweep_to(tmp_path / "short.yaml", sweep, parameters)
    again = load_sweep(tmp_path / "short.yaml")
    assert [tuple(cell.parameters.values()) for cell in again.cells()] == [(1.0, 0), (1.0, 1), (2.0, 0)]
    assert (again.run_cap, again.early_terminate) == (3, EARLY_ENDS["early_terminate"])


def _with_duration(planned, **given):
    from jsonargparse import Namespace

    planned.run.settings.model.duration = Namespace(
        **{"epochs": None, "samples": None, "train_flops": None, "min_samples": 0, **given}
    )
    return planned


def test_a_place_that_cant_be_written_is_named(write_sweep, tmp_path):
    sweep = load_sweep(write_sweep(AXES))
    with pytest.raises(InputError, match=r"--out .*absent/x\.yaml can't be written \(No such file or directory\)"):
        write_sweep_to(tmp_path / "absent" / "x.yaml", sweep, {"a": {"value": 1}})


def write_sweep_to(path, sweep, parameters):
    write_sweep(path, sweep, parameters, "")
