"""The books that are kept of a sweep's jobs, on a real Slurm with cells that train nothing: whoever is killed, each cell is
started once at a time and done once."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import yaml
from rich.console import Console

from tests.conftest import ROOT
from tests.sweep import fake_fit
from tests.sweep.fake_runner import FIT
from vitlight.errors import InputError
from vitlight.sweep import LocalExecutor, control, load_sweep, plan_sweep, run_sweep, sweep_status
from vitlight.sweep.job_records import job_path, read_job, write_job
from vitlight.sweep.slurm_queue import SlurmQueue
from vitlight.sweep.slurm_runner import run_on_slurm
from vitlight.sweep.slurm_submit import SlurmOptions, SlurmSubmitter
from vitlight.sweep.status import log_path

SECONDS = 60.0


@pytest.fixture
def cluster(slurm, monkeypatch):
    """This process, and the jobs that it submits, belong to the cluster."""
    for name, value in {
        "SLURM_CONF": slurm.env["SLURM_CONF"],
        "PYTHONPATH": str(ROOT),
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    return slurm


class FakeSweep:
    """A sweep of fake cells in a root of its own."""

    def __init__(self, cluster, root, archs, **options):
        self.cluster, self.root, self.options = cluster, root, SlurmOptions(**options)
        root.mkdir(exist_ok=True)
        path = root.parent / "demo.yaml"
        content = {"name": "demo", "method": "grid", "command": ["${env}", "vitlight", "fit", "${args}"]}
        path.write_text(yaml.safe_dump(content | {"parameters": {"model.arch": {"values": archs}}}))
        self.sweep = load_sweep(path)
        self.planned = plan_sweep(self.sweep, fake_fit.resolve, root)
        self.output = root.parent / "said"
        self.output.touch()

    def run(self, detach=False):
        queue = SlurmQueue(refresh_seconds=0.3)
        submitter = SlurmSubmitter(self.planned, self.options, queue, FIT)
        with self.output.open("a", buffering=1) as output:
            console = Console(file=output, width=200)
            return run_on_slurm(self.planned, self.sweep.path, submitter, queue, detach, 0.3, console)

    def events(self, word):
        path = self.root / "events"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.split()[1] for line in lines if line.split()[0] == word]

    def wait_for_starts(self, count):
        self.cluster.wait_for(lambda: len(self.events("start")) >= count, f"{count} starts: {self.said()}", SECONDS)

    def said(self):
        logs = [path.read_text() for path in (self.root / "demo").rglob("*.log")]
        return "\n".join([self.output.read_text(), *logs])

    def open_gate(self):
        (self.root / "gate").touch()

    def rows(self):
        return sweep_status(self.sweep, fake_fit.resolve, self.root)

    def jobs(self):
        return [record and record.job for record in (read_job(job_path(item)) for item in self.planned)]


def test_cells_run_as_one_array_and_a_second_call_submits_nothing(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["ok_1", "ok_2", "nan_3"], max_parallel=2)
    outcome = sweep.run()
    assert (outcome.num_done, outcome.num_diverged, outcome.num_started, outcome.exit_code) == (2, 1, 3, 0), (
        sweep.said()
    )
    assert sorted(sweep.events("start")) == ["nan_3", "ok_1", "ok_2"]
    (script,) = (sweep.root / "demo" / "slurm").glob("*_submission.sh")
    assert "#SBATCH --array=0-2%2\n" in script.read_text()
    assert (
        log_path(sweep.planned[0]).read_text().startswith("$ srun --nodes=1 --ntasks=1 --ntasks-per-node=1 --wait=60 ")
    )
    again = sweep.run()
    assert (again.num_done, again.num_started, len(sweep.events("start"))) == (2, 0, 3)
    assert sweep.jobs() == [None, None, None]


def test_the_script_that_is_shown_is_the_one_that_is_submitted(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["ok_1", "ok_2"], partition="low", mem="100M", setup=("export A=b",))
    shown = SlurmSubmitter(sweep.planned, sweep.options, SlurmQueue(), FIT).script(sweep.planned)
    assert sweep.run().exit_code == 0, sweep.said()
    (script,) = (sweep.root / "demo" / "slurm").glob("*_submission.sh")
    token = next(line for line in script.read_text().splitlines() if "--comment" in line).rpartition("=")[2]
    assert script.read_text() == shown.replace("TOKEN", token)
    assert "#SBATCH --mem=100M\n" in shown
    assert "\nexport A=b\n" in shown


def test_a_detached_sweep_is_adopted_by_the_next_call(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["gated_1", "gated_2"])
    outcome = sweep.run(detach=True)
    assert (outcome.num_started, outcome.num_queued, outcome.exit_code) == (2, 2, 0)
    numbers = sweep.jobs()
    assert [number.rpartition("_")[2] for number in numbers] == ["0", "1"]
    sweep.wait_for_starts(2)
    assert [(row["state"], row["job"]) for row in sweep.rows()] == [("running", number) for number in numbers]
    sweep.open_gate()
    again = sweep.run()
    assert (again.num_started, again.num_done) == (0, 2), sweep.said()
    assert sorted(sweep.events("start")) == ["gated_1", "gated_2"]


def test_queued_cells_are_shown_and_left_alone_by_runners_of_this_machine(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["ok_1"], sbatch=("hold",))
    sweep.run(detach=True)
    (number,) = sweep.jobs()
    assert [(row["state"], row["job"]) for row in sweep.rows()] == [("queued", number)]
    local = subprocess.Popen(
        [sys.executable, "-m", "tests.sweep.fake_runner", sweep.sweep.path, sweep.root, "1"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert local.stdout.readline().startswith("with Slurm  model.arch=ok_1")
    cluster.command("scontrol", "release", number)
    assert local.wait(SECONDS) == 0
    assert "started 0 done 1 failed 0" in local.communicate()[0]
    assert sweep.events("start") == ["ok_1"]


def test_a_cell_whose_job_was_cancelled_in_the_queue_is_free_for_others(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["ok_1"], sbatch=("hold",))
    sweep.run(detach=True)
    cluster.command("scancel", *sweep.jobs())
    executor = LocalExecutor(1, FIT)
    outcome = run_sweep(sweep.sweep, fake_fit.resolve, sweep.root, executor=executor, poll_seconds=0.2)
    assert (outcome.num_started, outcome.num_done) == (1, 1)
    assert sweep.jobs() == [None]


def test_a_cell_that_fails_says_why_and_is_tried_by_the_next_call(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["broken_1", "refused_2", "ok_3"])
    outcome = sweep.run()
    assert (outcome.num_done, outcome.exit_code) == (1, 1), sweep.said()
    reasons = {failure.planned.run.arch: failure.reason for failure in outcome.failures}
    assert reasons["broken_1"] == "exit code 1 and no result: ValueError: broken on purpose"
    assert reasons["refused_2"].startswith("refused by ")
    (sweep.root / "repaired").touch()
    assert sweep.run().num_done == 2


def test_a_cancelled_job_is_a_failure_with_slurms_word_for_it(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["ok_1"], sbatch=("hold",))
    sweep.run(detach=True)
    (number,) = sweep.jobs()
    cluster.command("scancel", number)
    (failure,) = sweep.run().failures
    assert failure.reason == f"Slurm ended job {number}: CANCELLED, exit code 0:0"
    assert sweep.rows()[0]["reason"] == failure.reason


def test_a_job_that_slurm_has_forgotten_is_submitted_again(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["ok_1"])
    sweep.run(detach=True)
    cluster.wait_for(lambda: sweep.jobs() == [None], sweep.said(), SECONDS)
    (result,) = (sweep.root / "demo").glob("*/result.json")
    result.unlink()
    record = replace(record_of(sweep), job="99999999", token="none")
    write_job(job_path(sweep.planned[0]), record)
    outcome = sweep.run()
    assert (outcome.num_started, outcome.num_done, sweep.events("start")) == (1, 1, ["ok_1", "ok_1"])


def record_of(sweep):
    from vitlight.sweep.job_records import JobRecord

    queue = SlurmQueue()
    return JobRecord("none", None, queue.cluster, queue.user, "2026-01-01T00:00:00+00:00")


def test_a_submission_whose_maker_was_killed_before_it_had_the_numbers_is_found(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["gated_1", "gated_2"])
    sweep.run(detach=True)
    for item in sweep.planned:
        write_job(job_path(item), replace(read_job(job_path(item)), job=None))
    sweep.open_gate()
    outcome = sweep.run()
    assert (outcome.num_started, outcome.num_done) == (0, 2), sweep.said()
    assert sorted(sweep.events("start")) == ["gated_1", "gated_2"]


def test_a_job_that_asks_to_be_started_again_is_requeued_by_itself(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["gated_1"])
    sweep.run(detach=True)
    sweep.wait_for_starts(1)
    (number,) = sweep.jobs()
    cluster.command("scancel", "--signal=USR1", number)
    cluster.wait_for(lambda: cluster.job(number)["Restarts"] == "1", sweep.said(), SECONDS)
    sweep.open_gate()
    assert cluster.wait_until_ended(number, SECONDS) == "COMPLETED", sweep.said()
    assert (sweep.events("start"), sweep.events("end")) == (["gated_1"] * 2, ["gated_1"])
    assert sweep.run().num_started == 0


def test_a_job_that_was_killed_without_a_word_is_submitted_again_twice(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["gated_1"])
    pid = os.fork()
    if pid == 0:
        os._exit(sweep.run().exit_code)
    killed = []
    for count in (1, 2, 3):
        sweep.wait_for_starts(count)
        (number,) = sweep.jobs()
        cluster.kill_processes(number)
        killed.append(number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert len(set(killed)) == 3
    assert sweep.rows()[0]["reason"] == f"Slurm ended job {killed[-1]}: FAILED, exit code 0:9"


def test_a_runner_that_is_stopped_leaves_its_jobs(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["gated_1"])
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a caller in the background ignores it
        outcome = sweep.run()
        os._exit(outcome.exit_code + outcome.num_queued)
    sweep.wait_for_starts(1)
    os.kill(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130 + 1
    sweep.open_gate()
    assert sweep.run().num_done == 1
    assert sweep.events("start") == ["gated_1"]


def test_runners_that_are_killed_at_once_or_later_lose_no_cell_and_start_none_twice(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", [f"ok_{cost}" for cost in range(1, 9)])
    for after in (0.05, 0.15, 0.3, 0.6, 1.0):
        pids = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                sweep.run()
                os._exit(0)
            pids.append(pid)
        time.sleep(after)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    outcome = sweep.run()
    assert outcome.num_done == 8, sweep.said()
    assert sorted(sweep.events("end")) == sorted(f"ok_{cost}" for cost in range(1, 9))


def test_what_sbatch_refuses_is_said_in_a_line_and_frees_the_cells(cluster, tmp_path):
    sweep = FakeSweep(cluster, tmp_path / "runs", ["ok_1"], partition="nowhere")
    with pytest.raises(InputError, match=r"^sbatch refuses: .*[Ii]nvalid partition"):
        sweep.run()
    assert [(row["state"], row["job"]) for row in sweep.rows()] == [("waiting", None)]


def test_a_stop_ends_running_jobs_cancels_the_others_and_the_next_call_goes_on(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(control, "LOOK_SECONDS", 0.1)
    sweep = FakeSweep(cluster, tmp_path / "runs", ["gated_1", "gated_2", "gated_3"], max_parallel=1)
    sweep.run(detach=True)
    sweep.wait_for_starts(1)
    cluster.wait_for(
        lambda: sorted(row["state"] for row in sweep.rows()) == ["queued", "queued", "running"], "one", SECONDS
    )
    stopping = control.ask_to_stop(sweep.planned, None, SlurmQueue(refresh_seconds=0.3))
    ended = []
    queue = SlurmQueue(refresh_seconds=0.3)
    control.wait_until_ended(sweep.planned, stopping, lambda item, host: ended.append(item), True, queue)
    assert (ended, stopping.running, stopping.cancelled) == (sweep.planned[:1], sweep.planned[:1], sweep.planned[1:])
    assert [row["state"] for row in sweep.rows()] == ["waiting"] * 3
    assert sweep.jobs() == [None] * 3
    cluster.wait_for(lambda: not cluster.command("squeue", "--noheader").strip(), "no job is left", SECONDS)
    assert sweep.events("start") == ["gated_1"]
    sweep.open_gate()
    assert sweep.run().num_done == 3, sweep.said()
    assert sorted(sweep.events("start")) == ["gated_1", "gated_1", "gated_2", "gated_3"]
