"""torchrun over two hosts: a worker killed, a node lost, a node back. Each run ends done, with a quiet one's samples."""

import json
import os
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest

from tests.cluster.sample_ledger import read_samples
from tests.cluster.two_hosts import join_two_hosts, missing_for_two_hosts
from tests.conftest import fit_args as fit_args_fixture
from tests.requirements import require
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from tests.training.zygote import free_port, open_zygote, rank_environment
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

STEPS = 24
SECONDS = 180.0  # for anything that has to happen
TOLERANCE = 2e-6  # of losses, relative: one and two ranks sum the same float32 gradients


@pytest.fixture(scope="module")
def hosts():
    missing = missing_for_two_hosts()
    require(missing is None, missing or "")
    with join_two_hosts() as hosts:
        yield hosts


class Job:
    """24 steps, saved after every 5, logged at every 2, evaluated after 8, 16 and 24."""

    def __init__(self, shards: Path, root: Path, gates: dict[int, int] | None = None) -> None:
        self.folder = root / "samples"
        self.folder.mkdir(parents=True)
        ledger = {
            "class_path": "tests.cluster.sample_ledger.SampleLedger",
            "init_args": {"folder": str(self.folder), "gates": gates},
        }
        self.args = [
            *fit_args_fixture.__wrapped__(shards, root),
            f"--model.duration.samples={16 * STEPS}",
            "--trainer.devices=auto",
            "--run.rank_timeout_seconds=10",
            "--run.claim_wait_seconds=60",
            f"--trainer.callbacks={json.dumps([ledger])}",
        ]
        self.run = RunDirectory(resolve_run(self.args).run_dir)

    def wait_for(self, step: int, world: int) -> dict[int, int]:
        """{rank: process id}, when every rank of a world of this size has come to the step."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            pids = {
                line["rank"]: line["pid"]
                for line in read_samples(self.folder)
                if (line["step"], line["world"]) == (step, world)
            }
            if len(pids) == world:
                return pids
            time.sleep(0.1)
        raise AssertionError(f"{world} ranks did not come to step {step}")

    def open_gate(self, step: int, world: int) -> None:
        (self.folder / f"gate-{step}-{world}").touch()

    def images_of_steps(self) -> dict[int, list[str]]:
        """The images of every step, in the order of the ranks. Where a step was done again, it was with the same ones."""
        parts: dict[tuple[int, int], dict[int, list[str]]] = defaultdict(dict)
        for line in read_samples(self.folder):
            of_ranks = parts[line["step"], line["world"]]
            assert of_ranks.setdefault(line["rank"], line["images"]) == line["images"]
        steps: dict[int, list[str]] = {}
        for (step, world), of_ranks in parts.items():
            if len(of_ranks) == world:
                images = [image for rank in range(world) for image in of_ranks[rank]]
                assert steps.setdefault(step, images) == images
        return steps


@pytest.fixture(scope="module")
def quiet(tiny_shards, tmp_path_factory):
    """The same run on two ranks that nothing disturbs."""
    root = tmp_path_factory.mktemp("quiet")
    job = Job(tiny_shards, root)
    port = free_port()
    with open_zygote() as zygote:
        pids = [zygote.start(job.args, root / "log", rank_environment(rank, 2, port)) for rank in range(2)]
        assert [zygote.exit_code(pid) for pid in pids] == [0, 0], (root / "log").read_text()
    return job


def assert_ended_well(hosts, job: Job, quiet: Job, logs: dict[str, Path]) -> None:
    for host in (hosts.a, hosts.b):
        assert host.agent.wait(SECONDS) == 0, "\n".join(log.read_text() for log in logs.values())
    assert job.run.read_result()["status"] == "done"
    assert job.images_of_steps() == quiet.images_of_steps()
    assert sorted(job.images_of_steps()) == list(range(STEPS))


def test_a_killed_worker_is_started_again_and_changes_nothing(hosts, quiet, tiny_shards, tmp_path):
    job = Job(tiny_shards, tmp_path, gates={2: 8})
    logs = {name: tmp_path / f"log-{name}" for name in "ab"}
    hosts.a.torchrun(job.args, logs["a"], rendezvous=hosts.a)
    hosts.b.torchrun(job.args, logs["b"], rendezvous=hosts.a)
    pids = job.wait_for(8, 2)
    os.kill(pids[1], signal.SIGKILL)
    job.open_gate(8, 2)
    assert_ended_well(hosts, job, quiet, logs)
    assert rows_without_times(job.run) == rows_without_times(quiet.run)
    for key in ("state_dict", "optimizer_states"):
        assert_bit_equal(final_state(job.run)[key], final_state(quiet.run)[key], key)


def test_a_lost_node_is_done_without_and_joins_again(hosts, quiet, tiny_shards, tmp_path):
    job = Job(tiny_shards, tmp_path, gates={2: 8, 1: 13})
    logs = {name: tmp_path / f"log-{name}" for name in "ab"}
    hosts.a.torchrun(job.args, logs["a"], rendezvous=hosts.a)
    hosts.b.torchrun(job.args, logs["b"], rendezvous=hosts.a)
    job.wait_for(8, 2)
    hosts.b.connect(False)
    hosts.b.kill_all()
    job.open_gate(8, 2)
    job.wait_for(13, 1)
    hosts.b.connect(True)
    hosts.b.torchrun(job.args, logs["b"], rendezvous=hosts.a)
    assert_ended_well(hosts, job, quiet, logs)
    worlds = [line["world"] for line in read_samples(job.folder) if line["step"] == STEPS - 1]
    assert worlds == [2, 2]
    rows, expected = rows_without_times(job.run), rows_without_times(quiet.run)
    for row, other in zip(rows, expected, strict=True):
        loss = f"{row['event']}/loss"
        assert row.pop(loss) == pytest.approx(other[loss], rel=TOLERANCE)
        assert row == {name: value for name, value in other.items() if name != loss}
