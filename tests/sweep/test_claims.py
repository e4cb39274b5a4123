"""Claims on real files and processes of one host; test_hosts.py has several."""

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.sweep.conftest import DEADLINE_SECONDS, wait_for
from vitlight.errors import InputError
from vitlight.sweep.claims import Attempts, Claims, is_claimed, read_attempts
from vitlight.sweep.leases import newest_lease


@pytest.fixture
def claims():
    with Claims(beat_seconds=0.05) as claims:
        yield claims


def test_a_claim_is_exclusive_until_released(tmp_path, claims):
    path = tmp_path / "cell.lock"
    assert not is_claimed(path)
    claim = claims.take(path)
    assert claims.take(path) is None
    assert is_claimed(path)
    claim.release()
    assert not is_claimed(path)
    again = claims.take(path)
    assert again is not None
    again.release()


def test_looking_does_not_take_a_claim(tmp_path, claims):
    path = tmp_path / "cell.lock"
    claims.take(path).release()
    with path.open("rb") as other_reader:
        fcntl.flock(other_reader, fcntl.LOCK_SH)
        assert not is_claimed(path)


def test_a_child_that_inherits_the_claim_keeps_it(tmp_path, claims):
    path = tmp_path / "cell.lock"
    claim = claims.take(path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(claim.fd,))
    claim.release()
    assert is_claimed(path)
    assert claims.take(path) is None
    child.communicate(b"\n")
    assert not is_claimed(path)


def test_a_child_that_does_not_inherit_it_holds_nothing(tmp_path, claims):
    path = tmp_path / "cell.lock"
    claim = claims.take(path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim.release()
    assert not is_claimed(path)
    child.communicate(b"\n")


def test_attempts_are_recorded_and_a_shorter_record_leaves_no_rest(tmp_path, claims):
    path = tmp_path / "cell.lock"
    assert read_attempts(path) == Attempts(0, None)
    claim = claims.take(path)
    claim.record(Attempts(2, "a reason that is rather long"))
    assert claim.attempts() == read_attempts(path) == Attempts(2, "a reason that is rather long")
    claim.record(Attempts(2))
    assert read_attempts(path) == Attempts(2, None)
    assert path.read_text() == '{"num_failures": 2, "reason": null}\n'
    claim.release()


@pytest.mark.parametrize("content", ["", '{"num_fail', "[]", '{"num_failures": "x", "reason": null}'])
def test_a_torn_record_counts_no_failure(tmp_path, content):
    path = tmp_path / "cell.lock"
    path.write_text(content)
    assert read_attempts(path) == Attempts(0, None)


def test_a_file_that_cannot_be_locked_is_named(tmp_path, monkeypatch, claims):
    def refuse(fd, operation):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"cell.lock can't be locked \(Operation not permitted\); put the runs"):
        claims.take(tmp_path / "cell.lock")


def test_without_locks_on_the_file_system_this_hosts_temporary_folder_has_them(tmp_path, monkeypatch, claims):
    (tmp_path / "local").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "local"))
    flock, path = fcntl.flock, tmp_path / "cell.lock"

    def flock_on_local_files(fd, operation):
        if "local" not in Path(f"/proc/self/fd/{fd}").readlink().parts:
            raise OSError(errno.ENOLCK, "No locks available")
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock_on_local_files)
    assert not is_claimed(path)
    claim = claims.take(path)
    assert claims.take(path) is None
    assert is_claimed(path)
    claim.release()
    assert not is_claimed(path)


def test_the_keeper_beats_until_the_claim_is_released(tmp_path, claims):
    path = tmp_path / "cell.lock"
    claim = claims.take(path)
    wait_for(lambda: newest_lease(path).count > b"%020d" % 2, "two beats")
    claim.release()
    released = newest_lease(path)
    assert released.is_released
    claims.take(path).release()
    assert (released.number, newest_lease(path).number) == (1, 2)


def test_a_killed_keeper_is_started_again(tmp_path, claims):
    path = tmp_path / "cell.lock"
    claim = claims.take(path)
    keeper = claims._keeper
    os.kill(keeper.pid, signal.SIGKILL)
    keeper.wait(DEADLINE_SECONDS)
    claims.check_keeper()
    assert claims._keeper.pid != keeper.pid
    count = newest_lease(path).count
    wait_for(lambda: newest_lease(path).count != count, "a beat")
    claim.release()


def test_a_lease_outlives_its_runner_with_the_child_that_has_the_claim(tmp_path):
    """And says so when the child ends, so that other hosts need not wait."""
    path = tmp_path / "cell.lock"
    code = """
import os, subprocess, sys
from pathlib import Path
from vitlight.sweep.claims import Claims
claim = Claims(beat_seconds=0.05).take(Path(sys.argv[1]))
child = subprocess.Popen([sys.executable, "-c", "input()"], pass_fds=(claim.fd,))
print(child.pid, flush=True)
os._exit(0)
"""
    runner = subprocess.Popen([sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    int(runner.stdout.readline())
    assert runner.wait(DEADLINE_SECONDS) == 0
    count = newest_lease(path).count
    wait_for(lambda: newest_lease(path).count != count, "a beat after the runner's end")
    assert is_claimed(path)
    runner.communicate(b"\n")  # the child's input, too
    wait_for(lambda: newest_lease(path).is_released, "the lease to be free")
    assert not is_claimed(path)


def test_a_keeper_ends_when_its_directory_is_deleted(tmp_path):
    folder = tmp_path / "claims"
    folder.mkdir()
    with Claims(beat_seconds=0.05) as claims:
        claim = claims.take(folder / "cell.lock")
        shutil.rmtree(folder)
    assert claims._keeper.wait(DEADLINE_SECONDS) == 0
    os.close(claim.fd)
