"""What the runner says while it works."""

import io
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests.sweep import fake_fit
from vitlight.sweep import load_sweep, plan_sweep
from vitlight.sweep.progress import SweepProgress, duration_text, seconds_left
from vitlight.sweep.time_left import TimeLeft


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (59, "59 s"),
        (59.2, "1 min"),
        (61, "2 min"),
        (3600, "1 h"),
        (5400, "1 h 30 min"),
        (47 * 3600, "47 h"),
        (51 * 3600, "2 d 3 h"),
    ],
)
def test_durations_are_rounded_up(seconds, text):
    assert duration_text(seconds) == text


def test_time_left_is_the_rest_at_the_mean_rate():
    assert seconds_left(flops_done=200, flops_left=600, elapsed_seconds=10.0) == 30.0
    assert seconds_left(flops_done=0, flops_left=600, elapsed_seconds=10.0) is None
    assert seconds_left(flops_done=10**40, flops_left=0, elapsed_seconds=10.0) == 0.0


@pytest.mark.parametrize("terminal", [False, True])
def test_one_line_an_event_with_rate_and_time_left(write_sweep, monkeypatch, terminal):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    planned = plan_sweep(load_sweep(write_sweep({"model.arch": ["ok_1", "ok_2", "ok_3", "ok_4"]})), fake_fit.resolve)
    console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=400, highlight=False)
    with SweepProgress(planned, {planned[0].run.run_id}, console) as progress:
        progress.started(planned[1])
        clock[0] += 60.0
        progress.ended(planned[1], "done", "top1 0.5000", ours=True)
        progress.ended(planned[2], "failed", "no memory [/red]", ours=False)
        progress.tick()
    # In a terminal the bar is erased (ESC [2K) before each line.
    printed = re.split(r"\n|\x1b\[2K", console.file.getvalue())
    lines = [line for line in printed if line.startswith(("started", "done", "failed"))]
    ids = [item.run.run_id for item in planned]
    events = [
        f"started  model.arch=ok_2  {ids[1]}",
        f"done     model.arch=ok_2  {ids[1]}  top1 0.5000",
        f"failed   model.arch=ok_3  {ids[2]}  no memory [/red] (another runner's)",
    ]
    summaries = [
        "1/4 done, 1 running, 2 left",
        "2/4 done, 0 running, 2 left, 2.0e+02 FLOP/s, about 4 min left",
        "2/4 done, 1 failed, 0 running, 1 left, 2.0e+02 FLOP/s, about 2 min left",
    ]
    if terminal:  # there the bar says it
        assert lines == events
        assert summaries[-1] in console.file.getvalue()
    else:
        assert lines == [f"{event}  [{summary}]" for event, summary in zip(events, summaries, strict=True)]


def test_the_time_left_comes_from_rates_where_every_cell_has_one(write_sweep, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    cells = plan_sweep(load_sweep(write_sweep({"model.arch": ["ok_1", "ok_2", "ok_3"]})), fake_fit.resolve)
    cells = [replace(item, run=replace(item.run, settings="real")) for item in cells]
    known = {"ok_1": 100.0, "ok_2": 40.0}

    class Rates:
        def estimate(self, planned):
            return SimpleNamespace(wall_seconds=known[planned.run.arch]) if planned.run.arch in known else None

    monkeypatch.setattr("vitlight.sweep.rates.known_rates", lambda planned: Rates())
    left = TimeLeft(cells, cells)
    left.started(cells[0])
    assert left.seconds() is None, "nothing was read yet"
    clock[0] = 30.0
    assert left.seconds() is None, "of ok_3 nothing is known"
    known["ok_3"] = 20.0
    clock[0] = 60.0
    assert left.seconds() == (100.0 - 60.0) + 40.0 + 20.0
    left.started(cells[1])
    assert left.seconds() == (40.0 + 40.0 + 20.0) / 2
    left.ended(cells[1])
    left.ended(cells[2])
    assert left.seconds() == 40.0
    left.stopped(cells[0])
    assert left.seconds() is None
