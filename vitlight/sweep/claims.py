"""Claims: which runner has which cell, by advisory locks that the operating system frees when their holders are dead.

A claim is an exclusive `flock` on `claims/<run id>.lock`. The lock belongs to the open file description, so the child
process that inherits the descriptor keeps the claim after its runner was killed, and the claim is free once both are
gone: no stale claims, no heartbeats, no clocks. Lock files are never deleted, because two processes could then hold
locks on two files of one name. Over a network the file system must carry `flock` (NFS does from Linux 2.6.12 on).

The file also records how often the cell failed, written by the holder only.
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path

from vitlight.errors import InputError

__all__ = ["Attempts", "Claim", "is_claimed", "read_attempts"]


@dataclass(frozen=True)
class Attempts:
    """How a cell's runs went that ended without a result: how many failed, and why the last one did.

    `reason` is None where the cell was started again since.
    """

    num_failures: int = 0
    reason: str | None = None


class Claim:
    """An exclusive lock on one cell, held until it is released here and in every process that inherited `fd`."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def take(cls, path: Path) -> "Claim | None":
        """The claim, or None where somebody else has it. InputError where the file system has no locks."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError as error:
            os.close(fd)
            raise InputError(
                f"{path} can't be locked ({error.strerror}); give a root on a file system with flock"
            ) from None
        return cls(fd)

    def attempts(self) -> Attempts:
        return _parse(os.pread(self.fd, 1 << 16, 0))

    def record(self, attempts: Attempts) -> None:
        content = json.dumps({"num_failures": attempts.num_failures, "reason": attempts.reason}).encode() + b"\n"
        os.pwrite(self.fd, content, 0)
        os.ftruncate(self.fd, len(content))

    def release(self) -> None:
        """Give up this process's hold: closed, not unlocked, so that a child which is alive keeps the claim."""
        os.close(self.fd)


def is_claimed(path: Path) -> bool:
    """Whether somebody holds the claim. Tried with a shared lock for an instant: a runner that meets it tries again."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def read_attempts(path: Path) -> Attempts:
    """What the claim file records, read without the claim."""
    try:
        return _parse(path.read_bytes())
    except FileNotFoundError:
        return Attempts()


def _parse(content: bytes) -> Attempts:
    """An empty or torn record counts as no failure: the cell is then run once more, which is safe."""
    try:
        record = json.loads(content.partition(b"\n")[0])
        return Attempts(int(record["num_failures"]), record["reason"])
    except (ValueError, KeyError, TypeError):
        return Attempts()
