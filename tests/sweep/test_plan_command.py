"""`vitlight sweep plan` as the command line calls it."""

import argparse
import json

import pytest
import yaml

from tests.conftest import ROOT, fit_args
from tests.sweep import fake_fit
from tests.sweep.planned_cells import write_done
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.sweep import commands, load_sweep, plan, tables
from vitlight.sweep.added import append_added


@pytest.fixture
def plan_cli(monkeypatch, tmp_path):
    """Call `vitlight sweep plan ARGS` on the fake `fit`; returns its exit code."""
    real = plan.plan_sweep
    monkeypatch.setattr(plan, "plan_sweep", lambda sweep, root, track: real(sweep, fake_fit.resolve, root, track))
    parser = argparse.ArgumentParser()
    commands.add_sweep_parser(parser.add_subparsers())

    def call(file, *options):
        args = parser.parse_args(["sweep", "plan", str(file), f"--root={tmp_path / 'runs'}", *options])
        return args.handler(args)

    return call


def table(out):
    """Titles, rows and totals, and the lines beneath them."""
    lines = out.splitlines()
    cells = [[word.strip() for word in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    titles = [word.strip() for word in lines[1].split("┃")[1:-1]]
    return (
        titles,
        cells,
        [line.strip() for line in lines[lines.index(next(x for x in lines if x.startswith("└"))) + 1 :]],
    )


def test_cells_with_cost_and_totals(plan_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1", "ok_22000"], "data.num_train_samples": [1000]})
    assert plan_cli(sweep_file) == 0
    titles, cells, lines = table(capsys.readouterr().out)
    assert cells[0][2:] == ["ok_1", "1.00 k", "10", "6.000e+04", "1,000", "100"]
    assert cells[1][2:] == ["ok_22000", "22.0 M", "220 k", "1.320e+09", "1,000", "100"]
    assert cells[2] == ["total", "", "", "", "", "1.320e+09", "2,000", "200"]
    assert titles[2:] == ["arch", "params", "forward MACs per image", "train FLOPs", "images", "steps"]
    unknown = "device time: unknown; --rate or --calibrate says, and so does a cell's first result"
    assert lines == ["2 cells", tables.CAPTION, unknown]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("run_name", "is_said"), [("another", True), ("demo", False)])
def test_runs_that_go_to_another_sweeps_directory_are_said(plan_cli, write_sweep, capsys, tmp_path, run_name, is_said):
    """A file is copied and its name changed, and the command still says the old one."""
    sweep_file = write_sweep({"model.arch": ["ok_1"], "run.name": [run_name]})
    assert plan_cli(sweep_file) == 0
    line = f"{sweep_file}: its name is demo, and its runs go to {tmp_path / 'runs' / run_name}, as --run.name of its command"
    assert (line in capsys.readouterr().err) == is_said


def test_rows_as_json(plan_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1"]})
    assert plan_cli(sweep_file, "--json", "--rate", "3kFLOP/s") == 0
    (row,) = json.loads(capsys.readouterr().out)
    run = plan.plan_sweep(load_sweep(sweep_file), tmp_path / "runs", iter)[0].run
    assert row == {
        "cell": 0,
        "parameters": {"model.arch": "ok_1"},
        "args": [
            "fit",
            "--config=base.yaml",
            "--model.arch=ok_1",
            "--run.name=demo",
            f"--run.root={tmp_path / 'runs'}",
        ],
        "run_id": run.run_id,
        "run_dir": str(run.run_dir),
        "arch": "ok_1",
        "image_size": 32,
        "num_train_samples": 100,
        "seed": 0,
        "params": 1000,
        "forward_macs": 10,
        "train_flops": 6000,
        "own_train_flops": 6000,
        "horizon_samples": 100,
        "steps": 10,
        "global_batch_size": 10,
        "num_devices": 1,
        "batch_size_per_device": None,
        "peak_memory_bytes": None,
        "fits_memory": None,
        "estimated_device_seconds": 2.0,
        "estimated_wall_seconds": 2.0,
        "estimated_from": "given",
        "measured_device_seconds": None,
        "is_kept": None,
    }


AXES = {"model.arch": ["ok_1", "ok_2", "ok_4"], "seed_everything": [0, 1]}


def test_a_rate_gives_times_and_devices_the_wall_clock(plan_cli, write_sweep, capsys):
    assert plan_cli(write_sweep(AXES), "--rate", "10FLOP/s", "--devices", "2") == 0
    titles, cells, lines = table(capsys.readouterr().out)
    assert titles[-2:] == ["device time", "from"]
    assert [row[-2:] for row in cells[:3]] == [["10 min", "given"], ["10 min", "given"], ["20 min", "given"]]
    assert cells[-1][-2] == "2 h 20 min"
    assert lines[2:] == [
        "device time: 2 h 20 min; longest cell 4 (model.arch=ok_4 seed_everything=0): 40 min",
        "on 2 devices: 1 h 10 min, the longest cells first",
    ]


def test_finished_cells_correct_the_estimate_and_are_compared_with_it(plan_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep(AXES)
    planned = plan.plan_sweep(load_sweep(sweep_file), tmp_path / "runs", iter)
    write_done(planned[0], 60.0)
    write_done(planned[1], 120.0)
    assert plan_cli(sweep_file, "--rate", "measured", "--devices", "3") == 0
    titles, cells, lines = table(capsys.readouterr().out)
    assert titles[-3:] == ["device time", "from", "measured"]
    assert cells[0][-3:] == ["2 min", "1 finished cell", "1 min"]
    assert cells[1][-3:] == ["1 min", "1 finished cell", "2 min"]
    assert cells[4][-3:] == ["unknown", "", ""]
    assert lines[2:] == [
        "device time: 3 min, 0 s of it left; longest cell 1 (model.arch=ok_1 seed_everything=1): 2 min; without 4 cells "
        "that nothing says of (2-5)",
        "estimate over measured, of 2 finished cells, each from the others: median 1.25, 0.50 to 2.00",
        "on 3 devices: unknown, as cell 2 is",
    ]


def test_a_budget_drops_cells_and_writes_what_is_left(plan_cli, write_sweep, capsys, tmp_path):
    out = tmp_path / "less.yaml"
    assert plan_cli(write_sweep(AXES), "--budget", "4e4", "--out", str(out)) == 0
    titles, cells, lines = table(capsys.readouterr().out)
    assert (titles[-1], [row[-1] for row in cells]) == ("budget", ["keeps"] * 4 + ["drops"] * 2 + [""])
    assert lines[3:] == [
        "budget: keeps 4 of 6 cells, 3.600e+04 FLOPs of 4.000e+04 FLOPs: the cheapest, all seeds of each",
        "dropped: cells 4-5",
        f"written: {out}",
    ]
    assert load_sweep(out).parameters == {"model.arch": ("ok_1", "ok_2"), "seed_everything": (0, 1)}


def test_no_sweep_is_written_that_added_cells_would_come_back_to(plan_cli, write_sweep, tmp_path):
    append_added(tmp_path / "runs" / "demo", [{"model.arch": "ok_9", "seed_everything": 0}], 0)
    with pytest.raises(InputError, match=r"less\.yaml: .*added\.jsonl adds its cells to any file named demo, whatever"):
        plan_cli(write_sweep(AXES), "--budget", "4e4", "--out", str(tmp_path / "less.yaml"))
    assert not (tmp_path / "less.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "x.yaml"], "--out is about a budget; give --budget too"),
        (["--budget-by", "scale"], "--budget-by is about a budget; give --budget too"),
        (["--rate", "1images/s", "--calibrate", "3"], "--rate and --calibrate both say how fast cells train"),
        (["--calibrate", "0"], "--calibrate 0 is not above 0"),
        (["--devices", "0"], "--devices 0 is not above 0"),
        (["--device-memory", "-1"], "--device-memory -1 is not above 0"),
        (["--rate", "measured"], r"--rate measured, but no cell in .*demo has trained yet"),
        (["--budget", "1h"], "a budget in device-hours needs the time of every cell, and that of cell 0"),
    ],
)
def test_options_that_say_nothing_are_refused(plan_cli, write_sweep, options, message):
    with pytest.raises(InputError, match=message):
        plan_cli(write_sweep(AXES), *options)


def test_every_invalid_cell_is_named_before_the_one_line(plan_cli, write_sweep, capsys):
    with pytest.raises(InputError, match=r"2 of 3 cells are invalid \(0, 2\); cell 0"):
        plan_cli(write_sweep({"model.arch": ["bad_1", "ok_1", "bad_2"]}))
    assert capsys.readouterr().err.splitlines() == [
        "invalid cell 0 (model.arch=bad_1): model.arch=bad_1 is unknown",
        "invalid cell 2 (model.arch=bad_2): model.arch=bad_2 is unknown",
    ]


@pytest.fixture(scope="module")
def real_sweep(tiny_shards, tmp_path_factory):
    """A sweep file of real, tiny runs, with a batch size that goes with its architecture."""
    folder = tmp_path_factory.mktemp("planned")
    fixed = [
        arg
        for arg in fit_args.__wrapped__(tiny_shards, folder)
        if not arg.startswith(("--model.arch", "--run.name", "--run.root", "--data.global_batch_size"))
    ]
    path = folder / "real.yaml"
    sweep = {
        "name": "real",
        "method": "grid",
        "program": "vitlight",
        "command": ["${env}", "vitlight", *fixed, "${args}"],
        "parameters": {
            "config": {
                "values": [
                    {"model": {"arch": "vit_nano1"}, "data": {"global_batch_size": 16}},
                    {"model": {"arch": "vit_nano2", "optimizer": {"lr": 1e-05}}, "data": {"global_batch_size": 64}},
                ]
            },
            "seed_everything": {"values": [0, 1]},
        },
    }
    path.write_text(yaml.safe_dump(sweep))
    return path


def real_rows(capsys, path, *options):
    code = main(["sweep", "plan", str(path), f"--root={path.parent / 'runs'}", "--json", *options])
    said = capsys.readouterr()
    assert said.out, said.err
    return code, json.loads(said.out)


def test_a_run_is_the_same_however_its_settings_are_written(real_sweep, tmp_path, capsys):
    _, coupled = real_rows(capsys, real_sweep)
    content = yaml.safe_load(real_sweep.read_text())
    del content["parameters"]["config"]
    ids = []
    for lr, model, batch in ((0.001, "vit_nano1", 16), ("1e-5", "vit_nano2", 64)):
        dotted = {"model.arch": model, "model.optimizer.lr": lr, "data.global_batch_size": batch}
        parameters = {name: {"value": value} for name, value in dotted.items()}
        path = tmp_path / "dotted.yaml"
        path.write_text(yaml.safe_dump({**content, "parameters": {**content["parameters"], **parameters}}))
        ids += [row["run_id"] for row in real_rows(capsys, path)[1]]
    assert ids == [row["run_id"] for row in coupled]
    groups = {
        "model": {"value": {"arch": "vit_nano2", "optimizer": {"lr": 1.0e-5}}},
        "data": {"value": {"global_batch_size": 64}},
    }
    path.write_text(yaml.safe_dump({**content, "parameters": {**content["parameters"], **groups}}))
    assert [row["run_id"] for row in real_rows(capsys, path)[1]] == ids[2:]


def test_whole_numbers_among_options_may_lose_their_point(real_sweep, tmp_path, capsys):
    """W&B's server makes 0 of 0.0 on its way to the agent."""
    content = yaml.safe_load(real_sweep.read_text())
    ids = set()
    for rate in (0.0, 0):
        content["parameters"]["model.model_options"] = {"value": {"drop_path_rate": rate, "depth": 2}}
        path = tmp_path / "options.yaml"
        path.write_text(yaml.safe_dump(content))
        ids.add(tuple(row["run_id"] for row in real_rows(capsys, path)[1]))
    assert len(ids) == 1


def test_memory_names_what_does_not_fit_and_the_exit_code_says_so(real_sweep, capsys, tmp_path):
    code, rows = real_rows(capsys, real_sweep, "--device-memory", "1")
    assert (code, [row["fits_memory"] for row in rows]) == (0, [True] * 4)
    assert [row["batch_size_per_device"] for row in rows] == [16, 16, 64, 64]
    peaks = [row["peak_memory_bytes"] for row in rows]
    assert peaks[0] == peaks[1] < peaks[2] == peaks[3]
    gib = (peaks[0] + peaks[2]) / 2 / 2**30
    assert main(["sweep", "plan", str(real_sweep), f"--root={tmp_path}", "--device-memory", repr(gib)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith(f"memory: 2 of 4 cells fit {gib:.3g} GiB; for the others: more devices") for line in lines
    )
    (too_large,) = (line for line in lines if line.startswith("too large: "))
    size = f"{peaks[2] / 2**30:.3g} GiB for 64 images on a device"
    assert too_large == f"too large: vit_nano2, {size}: cells 2-3"


def test_a_staircase_that_was_written_is_the_same_runs(real_sweep, tmp_path, capsys):
    content = yaml.safe_load(real_sweep.read_text())
    content["parameters"]["model.duration.samples"] = {"values": [192, 384, 768]}
    path, out = tmp_path / "steps.yaml", tmp_path / "less.yaml"
    path.write_text(yaml.safe_dump(content))
    _, rows = real_rows(capsys, path)
    amount = sum(row["train_flops"] for row in rows) * 0.45
    _, marked = real_rows(capsys, path, "--budget", f"{amount:.6e}", "--out", str(out))
    kept = {row["run_id"] for row in marked if row["is_kept"]}
    assert 2 < len(kept) < 12
    _, again = real_rows(capsys, out)
    assert {row["run_id"] for row in again} == kept
    assert sum(row["train_flops"] for row in again) <= amount


def test_durations_are_scaled_into_the_budget(real_sweep, tmp_path, capsys):
    _, rows = real_rows(capsys, real_sweep)
    amount, out = sum(row["train_flops"] for row in rows) * 0.5, tmp_path / "short.yaml"
    code, _ = real_rows(capsys, real_sweep, "--budget", f"{amount:.6e}", "--budget-by", "scale", "--out", str(out))
    _, short = real_rows(capsys, out)
    assert code == 0
    assert [row["parameters"]["config"] for row in short] == [row["parameters"]["config"] for row in rows]
    assert 0.5 * amount < sum(row["train_flops"] for row in short) <= amount
    assert {row["run_id"] for row in short}.isdisjoint(row["run_id"] for row in rows)


def test_calibrating_trains_real_steps_and_keeps_the_rates(real_sweep, tmp_path, capsys):
    content = yaml.safe_load(real_sweep.read_text())
    content["parameters"]["config"]["values"].pop()
    path = tmp_path / "one.yaml"
    path.write_text(yaml.safe_dump(content))
    code, rows = real_rows(capsys, path, "--calibrate", "0.2")
    assert (code, [row["estimated_from"] for row in rows]) == (0, ["calibrated"] * 2)
    assert all(row["estimated_device_seconds"] > 0 for row in rows)
    assert [path.name for path in (tmp_path / "runs" / "real").iterdir()] == ["calibration.json"]
    _, again = real_rows(capsys, path)
    assert [row["estimated_device_seconds"] for row in again] == [row["estimated_device_seconds"] for row in rows]


def test_the_page_names_every_option(capsys):
    parser = argparse.ArgumentParser()
    commands.add_sweep_parser(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["sweep", "plan", "--help"])
    options = {word.strip("[],") for word in capsys.readouterr().out.split() if word.startswith("--")}
    page = (ROOT / "docs" / "sweeps.md").read_text()
    assert sorted(option for option in options - {"--help", "--root"} if option not in page) == []
