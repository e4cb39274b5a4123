"""Claims on real files and processes."""

import fcntl
import subprocess
import sys

import pytest

from vitlight.errors import InputError
from vitlight.sweep.claims import Attempts, Claim, is_claimed, read_attempts


def test_a_claim_is_exclusive_until_released(tmp_path):
    path = tmp_path / "cell.lock"
    assert not is_claimed(path)
    claim = Claim.take(path)
    assert Claim.take(path) is None
    assert is_claimed(path)
    claim.release()
    assert not is_claimed(path)
    again = Claim.take(path)
    assert again is not None
    again.release()


def test_looking_does_not_take_a_claim(tmp_path):
    path = tmp_path / "cell.lock"
    Claim.take(path).release()
    with path.open("rb") as other_reader:
        fcntl.flock(other_reader, fcntl.LOCK_SH)
        assert not is_claimed(path)


def test_a_child_that_inherits_the_claim_keeps_it(tmp_path):
    path = tmp_path / "cell.lock"
    claim = Claim.take(path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(claim.fd,))
    claim.release()
    assert is_claimed(path)
    assert Claim.take(path) is None
    child.communicate(b"\n")
    assert not is_claimed(path)


def test_a_child_that_does_not_inherit_it_holds_nothing(tmp_path):
    path = tmp_path / "cell.lock"
    claim = Claim.take(path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    claim.release()
    assert not is_claimed(path)
    child.communicate(b"\n")


def test_attempts_are_recorded_and_a_shorter_record_leaves_no_rest(tmp_path):
    path = tmp_path / "cell.lock"
    assert read_attempts(path) == Attempts(0, None)
    claim = Claim.take(path)
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


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def no_locks(fd, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(InputError, match=r"cell.lock can't be locked \(No locks available\)"):
        Claim.take(tmp_path / "cell.lock")
