"""What is handed to Slurm and when, with a stand-in for the cluster; tests/cluster has a real one."""

import io
import json

import pytest
from rich.console import Console

from tests.sweep import fake_fit
from tests.sweep.planned_cells import leave_to_dead_host
from vitlight.sweep import load_sweep, plan_sweep, slurm_runner
from vitlight.sweep.claims import Claims
from vitlight.sweep.job_records import JobRecord, job_path, remove_job, write_job
from vitlight.sweep.slurm_queue import JobState
from vitlight.sweep.slurm_runner import run_on_slurm
from vitlight.sweep.status import claim_path


class Cluster:
    """Submitter and queue in one. Whenever it is asked of the newest job, the oldest ends with a result, or is lost."""

    trouble = None

    def __init__(self, planned, max_parallel, shapes, lost=()):
        self.max_parallel, self._shapes, self._lost = max_parallel, shapes, list(lost)
        self._archs = {item.run.run_id: item.run.arch for item in planned}
        self._jobs = {}  # number -> cell, in the order of submission
        self.batches = []  # (archs, how many jobs there were before)

    def arrays(self, cells):
        groups = [[item for item in cells if item.run.arch in shape] for shape in self._shapes]
        return [group for group in groups if group]

    def submit(self, cells):
        self.batches.append(([item.run.arch for item in cells], len(self._jobs)))
        numbers = [f"{len(self.batches)}_{task}" for task in range(len(cells))]
        for number, item in zip(numbers, cells, strict=True):
            write_job(job_path(item), JobRecord("token", None, "cluster", "me", "now", number))
            self._jobs[number] = item
        return numbers

    def is_complete(self, job):
        return True

    def forget(self):
        pass

    def exit_code(self, job):
        return None

    def state(self, record):
        if record.job not in self._jobs:
            return JobState(record.job, "GONE", "")
        if record.job == list(self._jobs)[-1]:
            item = self._jobs.pop(next(iter(self._jobs)))
            if item.run.arch in self._lost:
                self._lost.remove(item.run.arch)
            else:
                item.run.run_dir.mkdir(parents=True)
                (item.run.run_dir / "result.json").write_text(json.dumps({"status": "done"}))
                remove_job(job_path(item))
        return JobState(record.job, "RUNNING", "node1")


@pytest.fixture
def sweep(write_sweep, tmp_path, monkeypatch):
    """Run cells of these parameters on a stand-in for Slurm: the batches it was handed, and what was said."""
    monkeypatch.setattr(slurm_runner, "TICK_SECONDS", 0.001)

    def run(parameters, shapes, max_parallel=None, detach=False, lost=()):
        sweep_file = write_sweep(parameters)
        planned = plan_sweep(load_sweep(sweep_file), fake_fit.resolve, tmp_path / "runs")
        cluster = Cluster(planned, max_parallel, shapes, lost)
        console = Console(file=io.StringIO(), width=200)
        run_on_slurm(planned, sweep_file, cluster, cluster, detach, 0.001, console)
        return cluster.batches, console.file.getvalue()

    return run


ARCHS = ["ok_1", "ok_2", "ok_3", "ok_4", "ok_5", "ok_6"]


def test_the_jobs_of_all_arrays_together_are_at_most_as_many_as_was_said(sweep):
    batches, _ = sweep({"model.arch": ARCHS}, [ARCHS[:4], ARCHS[4:]], max_parallel=2)
    assert batches == [(ARCHS[:4], 0), (["ok_5"], 1), (["ok_6"], 1)]


def test_a_job_that_was_lost_is_submitted_again_within_the_bound(sweep):
    batches, _ = sweep({"model.arch": ARCHS}, [ARCHS], max_parallel=2, lost=["ok_1"])
    assert batches == [(ARCHS, 0), (["ok_1"], 1)]


def test_without_a_bound_arrays_go_at_once(sweep):
    batches, _ = sweep({"model.arch": ARCHS}, [ARCHS[:4], ARCHS[4:]])
    assert batches == [(ARCHS[:4], 0), (ARCHS[4:], 4)]


def test_who_detaches_hears_of_the_cells_that_are_left_out(sweep):
    trunks = {"model.schedule.name": ["wsd"], "data.num_train_samples": [100, 200], "model.arch": ["ok_1", "ok_2"]}
    batches, said = sweep(trunks, [ARCHS], max_parallel=1, detach=True)
    assert batches == [(["ok_1", "ok_2"], 0)]
    assert "not submitted: cells 2-3, to begin where shorter cells of the trunk end; the same command " in said
    batches, said = sweep({"model.arch": ["ok_3", "ok_4"]}, [["ok_3"], ["ok_4"]], max_parallel=1, detach=True)
    assert batches == [(["ok_3"], 0), (["ok_4"], 1)]
    assert "not submitted" not in said


def test_cells_that_somebody_else_has_are_left_alone(sweep, write_sweep, tmp_path):
    planned = plan_sweep(load_sweep(write_sweep({"model.arch": ARCHS[:2]})), fake_fit.resolve, tmp_path / "runs")
    claim_path(planned[0]).parent.mkdir(parents=True)
    with Claims() as claims:
        held = claims.take(claim_path(planned[0]))
        assert sweep({"model.arch": ARCHS[:2]}, [ARCHS], detach=True)[0] == [(["ok_2"], 0)]
        held.release()


def test_a_cell_of_a_dead_host_is_submitted_after_its_silence(sweep, write_sweep, tmp_path, monkeypatch):
    planned = plan_sweep(load_sweep(write_sweep({"model.arch": ARCHS[:1]})), fake_fit.resolve, tmp_path / "runs")
    path = claim_path(planned[0])
    leave_to_dead_host(path, monkeypatch)
    batches, said = sweep({"model.arch": ARCHS[:1]}, [ARCHS])
    assert batches == [(["ok_1"], 0)]
    assert "gpu7, which has it, gives no sign of life; taken over after 0.12 s" in said
