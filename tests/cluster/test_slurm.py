"""Runs over two nodes of a real Slurm, disturbed as clusters do: the job script alone brings each to its end, exactly."""

import json
import os
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.conftest import ROOT
from tests.conftest import fit_args as fit_args_fixture
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from vitlight.training.record import RunDirectory

SCRIPT = ROOT / "docs" / "slurm" / "fit.sh"
STEPS = 120
SECONDS = 240.0  # for anything that has to happen


class Job:
    """`fit.sh` in a folder of its own: 120 steps, evaluated after 40, 80 and 120, saved every 10."""

    def __init__(self, slurm: Slurm, shards: Path, root: Path, *options: str) -> None:
        self.slurm, self.root, self.log, self.fast = slurm, root, root / "log", root / "fast"
        slow = [
            {"class_path": "tests.cluster.slow_steps.SlowSteps", "init_args": {"seconds": 1.0, "fast": str(self.fast)}}
        ]
        settings = [
            *fit_args_fixture.__wrapped__(shards, root)[1:],
            f"--model.duration.samples={16 * STEPS}",
            "--run.log_every_steps=5",
            "--run.checkpoint_every_steps=10",
            "--run.rank_timeout_seconds=60",
            "--trainer.strategy=ddp",
            f"--trainer.callbacks={json.dumps(slow)}",
        ]
        bin_folder = root / "bin"
        bin_folder.mkdir()
        program = bin_folder / "vitlight"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vitlight "$@"\n')
        program.chmod(0o755)
        env = {
            "PATH": f"{bin_folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "MASTER_ADDR": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        self.number = slurm.submit(SCRIPT, f"--chdir={root}", f"--output={self.log}", *options, args=settings, env=env)

    @property
    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def num_rows(self) -> int:
        return sum(len(path.read_text().splitlines()) for path in self.root.glob("runs/tiny/*/metrics.jsonl"))

    @property
    def run(self) -> RunDirectory:
        (path,) = (self.root / "runs" / "tiny").iterdir()
        return RunDirectory(path)

    @property
    def num_restarts(self) -> int:
        return int(self.slurm.job(self.number)["Restarts"])

    def wait_until_it_trains(self) -> None:
        self.slurm.wait_for(lambda: self.num_rows >= 3, f"rows of job {self.number}: {self.text}", SECONDS)

    def wait_until_it_stopped(self) -> None:
        self.slurm.wait_for(lambda: self.num_restarts >= 1, f"a restart of job {self.number}: {self.text}", SECONDS)

    def finish(self) -> None:
        self.fast.touch()
        state = self.slurm.wait_until_ended(self.number, SECONDS)
        assert state == "COMPLETED", self.text
        assert "Traceback" not in self.text


def assert_resumed_exactly(job: Job, whole: Job) -> None:
    assert job.num_restarts >= 1
    assert "resumes at step" in job.text
    run, undisturbed = job.run, whole.run
    assert rows_without_times(run) == rows_without_times(undisturbed)
    left, right = final_state(run), final_state(undisturbed)
    for key in ("state_dict", "optimizer_states", "global_step"):
        assert_bit_equal(left[key], right[key], key)
    result = run.read_result()
    assert (result["status"], result["num_ranks"]) == ("done", 2)
    assert result["top1_count"] == undisturbed.read_result()["top1_count"]


@pytest.fixture(scope="module")
def jobs(slurm, tiny_shards, tmp_path_factory) -> dict[str, Job]:
    """Those that don't get in each other's way, so that one's waiting is another's time."""

    def start(name: str, *options: str) -> Job:
        return Job(slurm, tiny_shards, tmp_path_factory.mktemp(name), *options)

    # Slurm looks every 30 s whether a limit is near, and signals up to a minute early: here after 60 to 90 s.
    started = {"limit": start("limit", "--time=2", "--signal=USR1@30"), "whole": start("whole")}
    started["whole"].fast.touch()
    started |= {name: start(name) for name in ("signal", "requeue")}
    return started


@pytest.fixture(scope="module")
def whole(jobs) -> Job:
    job = jobs["whole"]
    job.finish()
    assert job.num_restarts == 0
    return job


def test_a_signal(slurm, jobs, whole):
    job = jobs["signal"]
    job.wait_until_it_trains()
    slurm.command("scancel", "--signal=USR1", str(job.number))
    job.wait_until_it_stopped()
    job.finish()
    assert "the same command goes on" in job.text
    assert_resumed_exactly(job, whole)


def test_a_plain_requeue(slurm, jobs, whole):
    job = jobs["requeue"]
    job.wait_until_it_trains()
    slurm.command("scontrol", "requeue", str(job.number))
    job.wait_until_it_stopped()
    job.finish()
    assert_resumed_exactly(job, whole)


def test_the_time_limit(jobs, whole):
    job = jobs["limit"]
    job.wait_until_it_stopped()
    job.finish()
    assert_resumed_exactly(job, whole)


def test_a_preemption(slurm, whole, tiny_shards, tmp_path):
    job = Job(slurm, tiny_shards, tmp_path)
    job.wait_until_it_trains()
    higher = tmp_path / "higher.sh"
    higher.write_text("#!/bin/sh\nsleep 1\n")
    options = ["--partition=high", "--nodelist=node1", "--exclusive", "--output=/dev/null"]
    other = slurm.submit(higher, *options)
    job.wait_until_it_stopped()
    job.finish()
    assert slurm.state(other) == "COMPLETED"
    assert_resumed_exactly(job, whole)


def test_a_node_is_lost_and_comes_back(slurm, whole, tiny_shards, tmp_path):
    job = Job(slurm, tiny_shards, tmp_path)
    job.wait_until_it_trains()
    slurm.lose_node("node2")
    job.wait_until_it_stopped()
    slurm.wait_for(lambda: slurm.state(job.number) == "PENDING", "the job to leave its nodes", SECONDS)
    slurm.start_node("node2")
    job.finish()
    assert_resumed_exactly(job, whole)
