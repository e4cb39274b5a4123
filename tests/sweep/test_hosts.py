"""Several hosts on one directory whose locks don't reach from host to host, and many agents that are killed at random."""

import contextlib
import errno
import fcntl
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.requirements import require
from vitlight.sweep.claims import Claims, is_claimed
from vitlight.sweep.leases import BEATS_UNTIL_DEAD, LeaseWatch, newest_lease
from vitlight.training.locks import Lock

BEAT = 0.05
SILENCE = BEATS_UNTIL_DEAD * BEAT


class Host:
    """What a process on a host of this name sees: its own locks, in a folder that other hosts don't have, and none on
    shared files."""

    def __init__(self, name, folder, monkeypatch):
        self.name, self.folder, self._monkeypatch = name, folder, monkeypatch
        folder.mkdir()
        self.claims = Claims(BEAT)

    @contextlib.contextmanager
    def on(self):
        flock = fcntl.flock

        def local_flock(fd, operation):
            if not Path(f"/proc/self/fd/{fd}").readlink().is_relative_to(self.folder):
                raise OSError(errno.ENOLCK, "No locks available")
            flock(fd, operation)

        with self._monkeypatch.context() as patch:
            patch.setattr(fcntl, "flock", local_flock)
            patch.setattr(platform, "node", lambda: self.name)
            patch.setattr(tempfile, "tempdir", str(self.folder))
            yield

    def take(self, path):
        with self.on():
            return self.claims.take(path)

    def release(self, claim):
        with self.on():
            claim.release()

    def is_claimed(self, path):
        with self.on():
            return is_claimed(path)

    def lose_power(self):
        """Its claims end without a word."""
        os.kill(self.claims._keeper.pid, signal.SIGKILL)
        self.claims._keeper.wait(10)


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    hosts = [Host(name, tmp_path / name, monkeypatch) for name in ("a", "b", "c")]
    yield hosts
    for host in hosts:
        host.claims.__exit__(None, None, None)


def wait_to_take(host, path, seconds):
    """The claim and how long it took."""
    began = time.monotonic()
    while (claim := host.take(path)) is None:
        assert time.monotonic() < began + seconds
        time.sleep(BEAT / 2)
    return claim, time.monotonic() - began


def test_a_claim_is_kept_from_other_hosts_for_as_long_as_it_is_held(hosts, tmp_path):
    path, (a, b, _) = tmp_path / "cell.lock", hosts
    claim = a.take(path)
    until = time.monotonic() + 3 * SILENCE
    while time.monotonic() < until:
        assert b.take(path) is None
        time.sleep(BEAT)
    assert b.is_claimed(path)
    assert not claim.is_lost()
    a.release(claim)
    assert not b.is_claimed(path)
    b.release(b.take(path))


def test_a_dead_hosts_claim_is_taken_over_after_its_silence_and_not_before(hosts, tmp_path):
    path, (a, b, c) = tmp_path / "cell.lock", hosts
    lost = a.take(path)
    a.lose_power()
    claim, seconds = wait_to_take(b, path, 60.0)
    assert seconds >= SILENCE
    assert lost.is_lost()  # should it come back
    assert not claim.is_lost()
    assert c.take(path) is None
    b.release(claim)
    os.close(lost.fd)


def test_on_its_own_host_a_dead_claim_is_free_at_once(hosts, tmp_path):
    path, a = tmp_path / "cell.lock", hosts[0]
    dead = a.take(path)
    a.lose_power()
    os.close(dead.fd)  # as when its process dies
    again = Host.__new__(Host)
    again.__dict__ = {**vars(a), "claims": Claims(BEAT)}
    claim = again.take(path)
    assert claim is not None
    again.release(claim)
    again.claims.__exit__(None, None, None)


def test_of_many_hosts_one_takes_a_dead_ones_claim(tmp_path):
    path = tmp_path / "cell.lock"
    assert LeaseWatch(0.001).take(path, Lock(-1, path, "dead")) is not None

    def compete(index):
        watch = LeaseWatch(10.0)
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            if lease := watch.take(path, Lock(-1, path, f"host{index}")):
                return lease.number
            time.sleep(0.001)
        return None

    with ThreadPoolExecutor(16) as pool:
        numbers = list(pool.map(compete, range(16)))
    assert sorted(number for number in numbers if number) == [2]


def test_a_watcher_that_was_stopped_has_seen_nothing_meanwhile(tmp_path, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    path = tmp_path / "cell.lock"
    LeaseWatch(10.0).take(path, Lock(-1, path, "other"))
    watch, lock = LeaseWatch(10.0), Lock(-1, path, "this")
    assert watch.take(path, lock) is None
    clock[0] += 3600.0  # a laptop's lid
    assert watch.take(path, lock) is None
    assert watch.silent(path) is None
    for _ in range(9):
        clock[0] += 10.0
        assert watch.take(path, lock) is None
    assert watch.silent(path).silence_seconds == 120.0
    clock[0] += 10.0
    assert watch.take(path, lock).number == 2


@pytest.mark.parametrize(
    ("host", "silent_seconds", "up_seconds", "is_free"),
    [
        (platform.node(), 700, 600, True),
        (platform.node(), 500, 600, False),  # beaten since this host started: another one of its name
        (platform.node(), 100, 50, False),  # and that one may have missed some beats
        ("other", 700, 600, False),
    ],
)
def test_what_a_host_had_before_it_was_started_again_is_free_at_once(
    tmp_path, monkeypatch, host, silent_seconds, up_seconds, is_free
):
    path = tmp_path / "cell.lock"
    path.touch()
    with monkeypatch.context() as there:
        there.setattr(platform, "node", lambda: host)
        lease = LeaseWatch(10.0).take(path, Lock(-1, path, "before"))
    os.utime(lease.path, (time.time() - silent_seconds,) * 2)
    monkeypatch.setattr(time, "clock_gettime", lambda clock: up_seconds)
    assert is_claimed(path) == (not is_free)
    assert (LeaseWatch().take(path, Lock(-1, path, "now")) is not None) == is_free


def test_a_host_whose_clock_is_ahead_takes_nothing_from_another_of_its_name(tmp_path, monkeypatch):
    path, now = tmp_path / "cell.lock", time.time()
    path.touch()
    LeaseWatch(10.0).take(path, Lock(-1, path, "the other's"))
    monkeypatch.setattr(time, "clock_gettime", lambda clock: 600.0)
    monkeypatch.setattr(time, "time", lambda: now + 3600.0)
    assert LeaseWatch().take(path, Lock(-1, path, "this")) is None


def test_a_lease_whose_maker_was_killed_before_it_wrote_is_dead_after_the_usual_silence(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    path = tmp_path / "cell.lock"
    (tmp_path / "cell.lease-1").touch()
    watch = LeaseWatch()
    while (lease := watch.take(path, Lock(-1, path, "this"))) is None:
        clock[0] += 5.0
    assert (clock[0], lease.number, newest_lease(path).domain) == (120.0, 2, "this")


@pytest.mark.parametrize("num_hosts", [1, 2])
def test_each_cell_is_done_exactly_once_by_agents_that_are_killed_at_random(tmp_path, num_hosts):
    """The short form of benchmarks/killed_agents.py, with the network cut off."""
    require(
        shutil.which("unshare") is not None and os.getuid() == 0, "unshare and the rights to cut the network off (root)"
    )
    command = ["unshare", "-n", sys.executable, ROOT / "benchmarks" / "killed_agents.py", f"--hosts={num_hosts}"]
    command += [
        "--cells=32",
        "--agents=4",
        "--seconds",
        "0.02",
        "0.2",
        f"--json={tmp_path / 'report.json'}",
        "--limit-seconds=100",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["cells_done"], report["done_twice"], report["repeated"], report["overlaps"]) == (32, 0, 0, 0)
    assert not report["network"]
    assert sum(report["kills"].values()) >= 3
    assert report["agents_started"] > 4
