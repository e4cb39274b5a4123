"""What `vitlight sweep status` prints, on fake runs."""

import argparse
import io
import json
from contextlib import ExitStack

import pytest
from rich.console import Console

from tests.sweep import fake_fit
from tests.sweep.conftest import table_cells
from vitlight.errors import InputError
from vitlight.sweep import load_sweep, plan_sweep, status_command
from vitlight.sweep.claims import Claims
from vitlight.sweep.status import claim_path, log_path, status_rows
from vitlight.sweep.status_table import (
    chosen_columns,
    fact_lines,
    failure_lines,
    fitting,
    most_telling,
    status_columns,
)
from vitlight.sweep.tables import CAPTION


def test_a_table_is_printed_with_facts_and_failures(sweep_cli, write_sweep, capsys, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1", "broken_2", "nan_3"]})
    assert sweep_cli("run", sweep_file) == 1
    capsys.readouterr()
    for place in (sweep_file, tmp_path / "runs" / "demo"):
        assert sweep_cli("status", place) == 0
        lines = capsys.readouterr().out.splitlines()
        rows = table_cells("\n".join(lines))
        assert [row[3:5] for row in rows] == [["done", ""], ["failed", "40%"], ["diverged", "30%"], ["", ""]]
        planned = plan_sweep(load_sweep(sweep_file), fake_fit.resolve, tmp_path / "runs")
        ids = [item.run.run_id for item in planned]
        assert lines[-6:] == [
            "3 cells: 1 done, 1 failed, 1 diverged",
            f"done: {60 * (1 + 0.8 + 0.9) * 100:.3e} of {60 * 6 * 100:.3e} train FLOPs (45%)",
            "left: unknown; 1 of 1 cells are like none that has trained yet "
            "(`vitlight sweep plan --calibrate` measures them)",
            CAPTION,
            f"failed cell 1 {ids[1]}: exit code 1 and no result: ValueError: broken on purpose; log: {log_path(planned[1])}",
            f"diverged cell 2 {ids[2]}: loss is NaN at step 3",
        ]
    assert sweep_cli("status", sweep_file, "--json", "--failed") == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["failed", "diverged"]
    assert sweep_cli("status", sweep_file, "--failed", "--columns", "cell,state,images") == 0
    assert table_cells(capsys.readouterr().out)[:2] == [["1", "failed", "100"], ["2", "diverged", "100"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--columns", "cell,progres"], r"^--columns has 'progres', which is none; did you mean progress\?$"),
        (["--watch", "0"], r"^--watch 0 is not above 0 seconds$"),
        (["--json", "--watch"], r"^--json prints whole rows once; leave --watch out$"),
        (["--json", "--columns", "cell"], r"^--json prints whole rows once; leave --columns out$"),
    ],
)
def test_options_that_mean_nothing_are_refused(sweep_cli, write_sweep, options, message):
    with pytest.raises(InputError, match=message):
        sweep_cli("status", write_sweep({"model.arch": ["ok_1"]}), *options)


def test_a_directory_must_be_a_sweeps(sweep_cli, tmp_path):
    with pytest.raises(InputError, match=r"runs has no sweep\.yaml, so it is no sweep's directory"):
        sweep_cli("status", tmp_path / "runs")


def test_watching_in_a_pipe_prints_once(sweep_cli, write_sweep, capsys):
    assert sweep_cli("status", write_sweep({"model.arch": ["ok_1"]}), "--watch") == 0
    printed = capsys.readouterr()
    assert printed.err == "--watch: this is no terminal, so the status is printed once\n"
    assert printed.out.count("1 cell: 1 waiting") == 1


@pytest.fixture
def busy(write_sweep, tmp_path):
    """40 planned cells of which 3 run, 2 have failed and 30 are done, and their claims."""
    parameters = {"model.arch": [f"ok_{cost}" for cost in range(1, 21)], "seed_everything": [0, 1]}
    planned = plan_sweep(load_sweep(write_sweep(parameters)), fake_fit.resolve, tmp_path / "runs")
    with Claims() as claims, ExitStack() as held:
        for number, item in enumerate(planned):
            item.run.run_dir.mkdir(parents=True)
            claim_path(item).parent.mkdir(exist_ok=True)
            result = None
            if number < 30:
                result = {
                    "status": "done",
                    "top1": 0.5,
                    "samples_seen": 100,
                    "wall_seconds": 12.0,
                    "device_seconds": 12.0,
                }
            elif number < 32:
                result = {"status": "failed", "reason": "out of memory\nthe second line"}
            elif number < 35:
                held.callback(claims.take(claim_path(item)).release)
                (item.run.run_dir / ".lock").write_text(f"{123456 + number} on a-host-with-a-long-name")
                row = {"data/samples_seen": 40, "perf/images_per_second": 0.5, "perf/data_wait_fraction": 0.125}
                (item.run.run_dir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
            if result is not None:
                (item.run.run_dir / "result.json").write_text(json.dumps(result))
        yield planned


def shown(planned, rows, width, **chosen):
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    columns = chosen_columns(status_columns(planned), chosen.get("names"), rows)
    console.print(fitting(columns, rows, console, "names" not in chosen, chosen.get("shown")))
    return console.file.getvalue()


def test_columns_go_until_the_table_fits_and_no_value_is_folded(busy):
    rows = status_rows(busy)
    titles = {}
    for width in (80, 120, 200):
        text = shown(busy, rows, width)
        assert max(map(len, text.splitlines())) <= width
        assert len([row for row in table_cells(text) if row[0].isdecimal()]) == len(rows)
        head = next(line for line in text.splitlines() if "state" in line)
        titles[width] = head.replace("┃", " ").split()
    assert titles[80] == ["cell", "arch", "seed_everything", "state", "progress", "left", "top1"]
    assert set(titles[80]) < set(titles[120]) < set(titles[200])
    assert "where" in titles[120]
    assert {"run", "params", "where", "seconds"} <= set(titles[200])
    narrow = shown(busy, rows, 80, names="run,where,params,flops,images,macs,seen")
    assert narrow.count("a-host") == 3


def test_facts_are_sums_over_the_cells(busy):
    rows = status_rows(busy)
    done = sum(row["train_flops"] for row in rows[:30]) + sum(0.4 * row["train_flops"] for row in rows[32:35])
    total = sum(row["train_flops"] for row in rows)
    first, second, *_ = fact_lines(rows)
    assert first == "40 cells: 30 done, 3 running, 2 failed, 5 waiting"
    assert second == f"done: {done:.3e} of {total:.3e} train FLOPs ({done / total:.0%}), 6 min of device time"
    unknown = "7 of 10 cells are like none that has trained yet (`vitlight sweep plan --calibrate` measures them)"
    assert list(fact_lines(rows))[2:] == [f"left: more than 6 min of device time; {unknown}", CAPTION]
    for row in rows[30:32] + rows[35:]:
        row["seconds_left"] = row["device_seconds_left"] = 60.0
    running = (100 - 40) / 0.5
    left = 7 * 60 + 3 * running
    assert left == 780
    assert list(fact_lines(rows))[2:] == ["left: 13 min of device time, about 5 min with 3 at a time", CAPTION]
    reasons = [f"failed cell {row['cell']} {row['run_id']}: out of memory" for row in rows[30:32]]
    assert list(failure_lines(rows)) == reasons


def test_a_live_table_shows_what_matters_as_far_as_there_is_room(busy):
    rows = status_rows(busy)
    assert [row["cell"] for row in most_telling(rows, 6)] == [30, 31, 32, 33, 34, 35]
    assert most_telling(rows, 100) == rows
    args = argparse.Namespace(failed=False, columns=None)
    console = Console(width=80, height=24, force_terminal=True, color_system=None, file=io.StringIO())
    console.print(status_command._screen(args, busy, rows, console))
    lines = console.file.getvalue().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    numbers = [int(row[0]) for row in table_cells(console.file.getvalue()) if row[0].isdecimal()]
    assert numbers == list(range(30, 40))
    assert lines[-1].strip() == "30 more cells; there is room for 10"


def test_a_watch_ends_when_all_cells_have(sweep_cli, write_sweep, monkeypatch, tmp_path):
    sweep_file = write_sweep({"model.arch": ["ok_1", "ok_2"]})
    out = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(width=100, height=30, force_terminal=True, file=out)
    )
    asleep = []

    def sleep(seconds):
        """The first time a cell is added, the second time all of them are run."""
        asleep.append(seconds)
        if len(asleep) == 1:
            assert sweep_cli("add", sweep_file, "--model.arch=ok_3") == 0
        else:
            for item in plan_sweep(load_sweep(sweep_file), fake_fit.resolve, tmp_path / "runs"):
                item.run.run_dir.mkdir(parents=True)
                (item.run.run_dir / "result.json").write_text('{"status": "done", "samples_seen": 100}')

    monkeypatch.setattr(status_command.time, "sleep", sleep)
    assert sweep_cli("status", sweep_file, "--watch", "0.5") == 0
    assert asleep == [0.5, 0.5]
    assert "2 cells: 2 waiting" in out.getvalue()
    assert "3 cells: 3 waiting" in out.getvalue()
    assert "3 cells: 3 done" in out.getvalue()
