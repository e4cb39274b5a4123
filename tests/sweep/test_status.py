"""The rows that a directory gives, without any runner."""

import json
import os
import platform

import pytest

from tests.sweep import fake_fit
from tests.sweep.planned_cells import planned_cell, write_done
from vitlight.sweep import load_sweep, plan_sweep, sweep_status
from vitlight.sweep.claims import Attempts, Claims
from vitlight.sweep.status import claim_path, log_path, status_rows
from vitlight.training.record import RunDirectory
from vitlight.training.stop_file import StopFile

KEYS = [
    "cell",
    "parameters",
    "run_id",
    "run_dir",
    "state",
    "job",
    "host",
    "pid",
    "is_stopping",
    "params",
    "forward_macs",
    "train_flops",
    "own_train_flops",
    "horizon_samples",
    "samples_seen",
    "images_per_second",
    "data_wait_fraction",
    "top1",
    "seconds",
    "device_seconds",
    "seconds_left",
    "device_seconds_left",
    "log",
    "reason",
]


@pytest.fixture
def sweep(write_sweep):
    return load_sweep(write_sweep({"model.arch": ["ok_1", "ok_2", "ok_3", "ok_4", "ok_5", "ok_6"]}))


@pytest.fixture
def planned(sweep, tmp_path):
    planned = plan_sweep(sweep, fake_fit.resolve, tmp_path)
    for item in planned:
        item.run.run_dir.mkdir(parents=True)
    claim_path(planned[0]).parent.mkdir()
    return planned


def write_result(planned, **values):
    (planned.run.run_dir / "result.json").write_text(json.dumps(values))


@pytest.fixture
def claims():
    with Claims() as claims:
        yield claims


def test_every_state(sweep, planned, tmp_path, claims):
    done, running, diverged, failed, crashed, _ = planned
    write_result(done, status="done", top1=0.5, samples_seen=100, wall_seconds=9.5, reason=None)
    running_claim = claims.take(claim_path(running))
    (running.run.run_dir / ".lock").write_text("4711 on node7")
    row = {"data/samples_seen": 40, "time/wall_seconds": 1.5}
    (running.run.run_dir / "metrics.jsonl").write_text('{"data/samples_seen": 20}\n' + json.dumps(row) + '\n{"data/s')
    write_result(diverged, status="diverged", top1=None, samples_seen=30, wall_seconds=2.0, reason="loss is NaN")
    write_result(failed, status="failed", top1=None, reason="out of memory")
    crash_claim = claims.take(claim_path(crashed))
    crash_claim.record(Attempts(1, "killed by SIGKILL"))
    crash_claim.release()
    other = tmp_path / "demo" / "f00"
    other.mkdir()
    (other / "experiment.yaml").touch()

    rows = sweep_status(sweep, fake_fit.resolve, tmp_path)
    running_claim.release()
    assert [list(row) for row in rows] == [KEYS] * 7
    assert [row["state"] for row in rows] == ["done", "running", "diverged", "failed", "failed", "waiting", "other"]
    assert [row["samples_seen"] for row in rows] == [100, 40, 30, 0, 0, 0, 0]
    assert [row["seconds"] for row in rows] == [9.5, 1.5, 2.0, None, None, None, None]
    assert [row["top1"] for row in rows] == [0.5] + [None] * 6
    reasons = [None, None, "loss is NaN", "out of memory", "killed by SIGKILL", None, None]
    assert [row["reason"] for row in rows] == reasons
    assert [row["cell"] for row in rows] == [0, 1, 2, 3, 4, 5, None]
    assert [row["params"] for row in rows] == [1000, 2000, 3000, 4000, 5000, 6000, None]
    assert rows[0]["parameters"] == {"model.arch": "ok_1"}
    assert rows[2]["train_flops"] == 60 * 3 * 100
    assert (rows[6]["run_id"], rows[6]["run_dir"]) == ("f00", str(other))
    assert [(row["host"], row["pid"]) for row in rows] == [(None, None), ("node7", 4711), *[(None, None)] * 5]


def test_a_running_cell_says_how_fast_it_is_and_when_it_will_end(sweep, planned, tmp_path, claims):
    claim = claims.take(claim_path(planned[0]))
    rows = [
        {"data/samples_seen": 20, "perf/images_per_second": 8.0, "perf/data_wait_fraction": 0.5},
        {"data/samples_seen": 40, "perf/images_per_second": 4.0, "perf/data_wait_fraction": 0.25},
        {"data/samples_seen": 40, "event": "val", "time/wall_seconds": 9.0, "time/device_seconds": 8.0},
    ]
    (planned[0].run.run_dir / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "demo" / "logs").mkdir()
    log_path(planned[0]).touch()
    row = sweep_status(sweep, fake_fit.resolve, tmp_path)[0]
    assert (row["images_per_second"], row["data_wait_fraction"]) == (4.0, 0.25)
    assert (row["seconds"], row["device_seconds"]) == (9.0, 8.0)
    assert (row["seconds_left"], row["device_seconds_left"]) == ((100 - 40) / 4.0, (100 - 40) / 4.0)
    assert (row["log"], row["is_stopping"]) == (str(log_path(planned[0])), False)
    StopFile(planned[0].run.run_dir).request()
    assert sweep_status(sweep, fake_fit.resolve, tmp_path)[0]["is_stopping"]
    claim.release()
    assert not sweep_status(sweep, fake_fit.resolve, tmp_path)[0]["is_stopping"]


def test_a_run_that_was_started_by_hand_is_running(sweep, planned, tmp_path):
    run_dir = planned[1].run.run_dir
    with RunDirectory(run_dir).claimed():
        row = sweep_status(sweep, fake_fit.resolve, tmp_path)[1]
        assert (row["state"], row["host"], row["pid"]) == ("running", platform.node(), os.getpid())
        (run_dir / ".lock").write_text(f"{os.getpid()} on another-host")
        assert sweep_status(sweep, fake_fit.resolve, tmp_path)[1]["state"] == "waiting"
        (run_dir / ".lock").write_text(f"{os.getpid()} on {platform.node()}")
        write_result(planned[1], status="done", top1=0.5)
        assert sweep_status(sweep, fake_fit.resolve, tmp_path)[1]["state"] == "done"
    (run_dir / "result.json").unlink()
    assert sweep_status(sweep, fake_fit.resolve, tmp_path)[1]["state"] == "waiting"


def test_time_left_is_that_of_a_plan_less_what_is_done(tmp_path):
    """Of half a cell and of a whole one at the rate of the done one, 2 s a step."""
    planned = [planned_cell(index, steps=10, folder=tmp_path / "demo") for index in range(3)]
    write_done(planned[0], 20.0, samples_seen=100)
    planned[1].run.run_dir.mkdir(parents=True)
    (planned[1].run.run_dir / "metrics.jsonl").write_text(json.dumps({"data/samples_seen": 50}) + "\n")
    rows = status_rows(planned)
    assert [row["state"] for row in rows] == ["done", "waiting", "waiting"]
    assert [row["device_seconds_left"] for row in rows] == [0.0, 10.0, 20.0]
    assert [row["seconds_left"] for row in rows] == [0.0, 10.0, 20.0]
    alone = status_rows([planned_cell(1, arch="resnet_nano1", folder=tmp_path / "demo")])
    assert (alone[0]["seconds_left"], alone[0]["device_seconds_left"]) == (None, None)


def test_looking_frees_and_takes_no_claim(sweep, planned, tmp_path, claims):
    claim = claims.take(claim_path(planned[0]))
    for _ in range(2):
        assert sweep_status(sweep, fake_fit.resolve, tmp_path)[0]["state"] == "running"
    assert claims.take(claim_path(planned[0])) is None
    claim.release()
    assert sweep_status(sweep, fake_fit.resolve, tmp_path)[0]["state"] == "waiting"
    assert not claim_path(planned[1]).exists()


def test_a_failed_cell_that_was_started_again_and_stopped_is_waiting(sweep, planned, tmp_path, claims):
    claim = claims.take(claim_path(planned[0]))
    claim.record(Attempts(1, "killed by SIGKILL"))
    claim.record(Attempts(1))
    claim.release()
    assert sweep_status(sweep, fake_fit.resolve, tmp_path)[0]["state"] == "waiting"


def test_an_unreadable_result_is_a_failure_that_names_the_file(sweep, planned, tmp_path):
    path = planned[0].run.run_dir / "result.json"
    path.write_text("[1, 2]")
    row = sweep_status(sweep, fake_fit.resolve, tmp_path)[0]
    assert row["state"] == "failed"
    assert row["reason"].startswith(f"{path} is no result (TypeError: ")


def test_a_directory_that_is_not_there_has_waiting_cells_only(sweep, tmp_path):
    rows = sweep_status(sweep, fake_fit.resolve, tmp_path / "absent")
    assert {row["state"] for row in rows} == {"waiting"}
    assert not (tmp_path / "absent").exists()
