"""Cells stopped and cleared from outside, on real runners of fake runs."""

import json
import os
import signal

import pytest

from tests.sweep import fake_fit
from tests.sweep.conftest import end
from tests.sweep.planned_cells import leave_to_dead_host
from vitlight.analysis.runs import find_run_dirs
from vitlight.sweep import control, load_sweep, plan_sweep
from vitlight.sweep.claims import Attempts, Claims, read_attempts
from vitlight.sweep.control import ask_to_stop, clear, wait_until_ended
from vitlight.sweep.job_records import JobRecord, job_path, read_job, write_job
from vitlight.sweep.leases import newest_lease
from vitlight.sweep.requests import write_request
from vitlight.sweep.slurm_cell import SlurmCell
from vitlight.sweep.slurm_queue import JobState, SlurmQueue
from vitlight.sweep.status import cell_state, claim_path
from vitlight.training.stop_file import StopFile


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(control, "LOOK_SECONDS", 0.02)


@pytest.fixture
def planned_on(write_sweep, playground):
    """(planned cells, sweep file) of fake runs with these values of model.arch."""

    def planned_on(*archs):
        sweep_file = write_sweep({"model.arch": list(archs)})
        return plan_sweep(load_sweep(sweep_file), fake_fit.resolve, playground.root), sweep_file

    return planned_on


@pytest.fixture
def claims():
    with Claims() as claims:
        yield claims


def states(planned):
    return [cell_state(item)[0] for item in planned]


def started(playground):
    return [arch for arch, _, _ in playground.events("start")]


def stop(planned, cells=None):
    stopping = ask_to_stop(planned, cells, SlurmQueue())
    ended = []
    wait_until_ended(planned, stopping, lambda item, host: ended.append(item), cells is None, SlurmQueue())
    assert sorted(item.cell.index for item in ended) == [item.cell.index for item in stopping.running]
    return stopping


def test_a_sweep_that_is_stopped_starts_no_more_and_goes_on_with_the_next_run(planned_on, playground):
    planned, sweep_file = planned_on("gated_1", "gated_2", "ok_3")
    runners = [playground.runner(sweep_file), playground.runner(sweep_file)]
    playground.wait_for_events("start", 2)
    stopping = stop(planned)
    assert stopping.running == planned[:2]
    for code, output in map(end, runners):
        assert code == 130
        assert "asked to stop by " in output
    assert sorted(started(playground)) == ["gated_1", "gated_2"]
    assert states(planned) == ["waiting"] * 3
    playground.open_gate()
    assert end(playground.runner(sweep_file))[0] == 0
    assert states(planned) == ["done"] * 3


def test_cells_that_are_stopped_are_left_to_the_next_run_and_others_go_on(planned_on, playground):
    planned, sweep_file = planned_on("gated_1", "ok_2", "ok_3")
    runner = playground.runner(sweep_file)
    playground.wait_for_events("start", 1)
    stopping = stop(planned, [planned[0], planned[2]])
    assert stopping.running == planned[:1]
    code, output = end(runner)
    assert code == 130
    assert f"left     model.arch=ok_3  {planned[2].run.run_id}  as asked" in output
    assert started(playground) == ["gated_1", "ok_2"]
    assert states(planned) == ["waiting", "done", "waiting"]
    playground.open_gate()
    assert end(playground.runner(sweep_file))[0] == 0
    assert states(planned) == ["done"] * 3


def test_a_run_that_outlived_its_runner_ends_too(planned_on, playground):
    planned, sweep_file = planned_on("gated_1", "ok_2")
    runner = playground.runner(sweep_file)
    playground.wait_for_events("start", 1)
    runner.kill()
    end(runner)
    assert stop(planned).running == planned[:1]
    assert states(planned) == ["waiting"] * 2
    assert playground.events("sigterm") == []
    playground.open_gate()
    assert end(playground.runner(sweep_file))[0] == 0
    assert started(playground) == ["gated_1", "gated_1", "ok_2"]


def test_a_run_that_had_just_begun_is_asked_again(planned_on, playground, claims):
    planned, _ = planned_on("ok_1", "ok_2")
    planned[0].run.run_dir.mkdir(parents=True)
    (playground.root / "demo" / "claims").mkdir()
    held = [claims.take(claim_path(item)) for item in planned]
    stopping = ask_to_stop(planned, None, SlurmQueue())
    assert stopping.running == planned
    assert StopFile(planned[0].run.run_dir).path.exists()
    # It began just then, and took the file for one meant for an attempt before it.
    StopFile(planned[0].run.run_dir).withdraw()
    held[1].release()
    ended = []

    def say(item, dead_host):
        assert dead_host is None
        ended.append(item)
        if item is planned[1]:
            assert StopFile(planned[0].run.run_dir).path.exists()
            held[0].release()

    wait_until_ended(planned, stopping, say, True, SlurmQueue())
    assert ended == planned[::-1]


def test_a_cell_of_a_dead_host_is_given_up_and_free(planned_on, playground, monkeypatch, capsys):
    planned, _ = planned_on("ok_1", "ok_2")
    path = claim_path(planned[0])
    leave_to_dead_host(path, monkeypatch)
    assert states(planned) == ["running", "waiting"]
    ended = []
    stopping = ask_to_stop(planned, None, SlurmQueue())
    wait_until_ended(planned, stopping, lambda *seen: ended.append(seen), True, SlurmQueue())
    assert ended == [(planned[0], "gpu7")]
    assert states(planned) == ["waiting", "waiting"]
    assert newest_lease(path).number == 2
    silent = f"silent   model.arch=ok_1  {planned[0].run.run_id}  gpu7, which has it, gives no sign of life; "
    assert capsys.readouterr().err == f"{silent}taken over after 0.12 s\n"


class Queue:
    """Slurm's answers for jobs by number; None: nothing is known here."""

    def __init__(self, states):
        self.states, self.cancelled = states, []

    def state(self, record):
        state = self.states[record.job]
        return None if state is None else JobState(record.job, state, "")

    def cancel(self, job):
        self.cancelled.append(job)


def test_jobs_that_wait_are_cancelled_where_slurm_can_be_asked(planned_on, playground):
    planned, _ = planned_on("ok_1", "ok_2", "ok_3")
    (playground.root / "demo" / "claims").mkdir(parents=True)
    for number, item in enumerate(planned):
        write_job(job_path(item), JobRecord("token", None, "cluster", "somebody", "now", str(number)))
    queue = Queue({"0": "PENDING", "1": None, "2": "GONE"})
    stopping = ask_to_stop(planned, None, queue)
    assert queue.cancelled == ["0"]
    assert stopping.cancelled == [planned[0], planned[2]]
    assert [item for item, _ in stopping.unreachable] == [planned[1]]
    assert [read_job(job_path(item)) is None for item in planned] == [True, False, True]


@pytest.mark.parametrize("action", ["stop", "retry"])
def test_a_job_whose_run_was_asked_to_stop_is_not_requeued(planned_on, playground, tmp_path, monkeypatch, action):
    planned, _ = planned_on("ok_1")
    (playground.root / "demo" / "claims").mkdir(parents=True)
    (playground.root / "demo" / "requests").mkdir()
    words = tmp_path / "bin"
    words.mkdir()
    asked = json.dumps({"action": action, "run_ids": [planned[0].run.run_id], "by": "a@b", "at": ""})
    request = playground.root / "demo" / "requests" / "1.json"
    for name, body in (("srun", f"echo '{asked}' > {request}; exit 75"), ("scontrol", f'echo "$@" >> {tmp_path}/said')):
        (words / name).write_text(f"#!/bin/sh\n{body}\n")
        (words / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{words}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node1")
    monkeypatch.setenv("MASTER_ADDR", "node1")
    (tmp_path / "said").touch()
    write_job(job_path(planned[0]), JobRecord("token", None, "cluster", "somebody", "now", "7"))
    paths = (planned[0].run.run_dir, claim_path(planned[0]), job_path(planned[0]), tmp_path / "log")
    cell = SlurmCell("token", ("vitlight",), 1, 1, None, *paths)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        if action == "stop":
            assert cell() == "stopped"
        else:
            with pytest.raises(SystemExit):
                cell()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert ("requeue 7" in (tmp_path / "said").read_text()) == (action == "retry")
    assert (read_job(job_path(planned[0])) is None) == (action == "stop")


def test_a_runner_at_work_takes_what_is_cleared(planned_on, playground, claims):
    planned, sweep_file = planned_on("broken_1", "nan_2", "gated_3")
    runner = playground.runner(sweep_file)
    playground.wait_for_events("start", 3)
    assert states(planned) == ["failed", "diverged", "running"]
    (playground.root / "repaired").touch()
    assert [clear(item, claims, False) for item in planned] == [True, True, False]
    assert states(planned) == ["waiting", "waiting", "running"]
    write_request(playground.root / "demo", "retry", [item.run.run_id for item in planned[:2]])
    playground.open_gate()
    code, output = end(runner)
    assert code == 0
    assert "again    model.arch=broken_1" in output
    assert "started 5 done 2 failed 0" in output
    assert started(playground) == ["broken_1", "nan_2", "gated_3", "broken_1", "nan_2"]
    assert states(planned) == ["done", "diverged", "done"]


def test_results_are_kept_beside(planned_on, playground, claims):
    planned, sweep_file = planned_on("nan_1")
    run_dir = planned[0].run.run_dir
    for number in (1, 2):
        assert end(playground.runner(sweep_file))[0] == 0
        content = (run_dir / "result.json").read_bytes()
        assert clear(planned[0], claims, False)
        assert (run_dir / f"result.{number}.json").read_bytes() == content
        assert not (run_dir / "result.json").exists()
    assert (run_dir / "metrics.jsonl").exists()
    assert len(started(playground)) == 2


def test_from_scratch_sets_everything_aside_and_loses_nothing(planned_on, playground, claims):
    planned, sweep_file = planned_on("nan_1", "ok_2")
    run_dir = planned[0].run.run_dir
    assert end(playground.runner(sweep_file))[0] == 0
    (run_dir / "checkpoints").mkdir()
    (run_dir / "checkpoints" / "step-1.ckpt").touch()
    StopFile(run_dir).request()
    assert clear(planned[0], claims, True)
    left = {"checkpoints.1", "experiment.1.yaml", "metrics.1.jsonl", "result.1.json"}
    assert {path.name for path in run_dir.iterdir()} == left | {".lock"}
    assert (run_dir / "checkpoints.1" / "step-1.ckpt").exists()
    assert find_run_dirs(playground.root) == [planned[1].run.run_dir]
    assert end(playground.runner(sweep_file))[0] == 0
    assert clear(planned[0], claims, True)
    second = {"experiment.2.yaml", "metrics.2.jsonl", "result.2.json"}
    assert {path.name for path in run_dir.iterdir()} == left | second | {".lock"}


def test_what_somebody_has_or_has_finished_is_left_alone(planned_on, playground, claims):
    planned, sweep_file = planned_on("ok_1", "nan_2", "nan_3", "nan_4")
    assert end(playground.runner(sweep_file))[0] == 0
    before = [(item.run.run_dir / "result.json").read_bytes() for item in planned]
    with Claims() as others:
        held = others.take(claim_path(planned[1]))
        write_job(job_path(planned[2]), JobRecord("token", None, "cluster", "somebody", "now", "7"))
        by_hand = control.take_lock(planned[3].run.run_dir / ".lock")
        assert [clear(item, claims, True) for item in planned] == [False] * 4
        assert [(item.run.run_dir / "result.json").read_bytes() for item in planned] == before
        held.release()
        os.close(by_hand.fd)
    assert clear(planned[1], claims, True)
    assert clear(planned[3], claims, True)


def test_failures_are_forgotten_but_counted(planned_on, playground, claims):
    planned, _ = planned_on("ok_1")
    (playground.root / "demo" / "claims").mkdir(parents=True)
    claim = claims.take(claim_path(planned[0]))
    claim.record(Attempts(2, "killed by SIGKILL"))
    claim.release()
    assert states(planned) == ["failed"]
    assert clear(planned[0], claims, False)
    assert read_attempts(claim_path(planned[0])) == Attempts(2, None)
    assert states(planned) == ["waiting"]


def test_a_failed_result_is_kept_and_no_longer_a_failure(planned_on, playground, claims):
    planned, sweep_file = planned_on("refused_1")
    assert end(playground.runner(sweep_file))[0] == 1
    assert clear(planned[0], claims, False)
    assert states(planned) == ["waiting"]
    assert json.loads((planned[0].run.run_dir / "result.1.json").read_text())["status"] == "failed"
