"""Claims: which runner has which cell.

A claim is an exclusive lock on `claims/<run id>.lock` and a lease beside it. The lock settles everything between the
processes of one host, and between hosts where the file system carries `flock` (NFS does from Linux 2.6.12 on): a child
that inherits it keeps the claim after its runner was killed, and it is free once both are dead. The lease guards between
hosts where locks end at each of them, or where there are none (see `leases`).

The lock's file also records how often the cell failed, written by the holder only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from vitlight.sweep import keeper
from vitlight.sweep.leases import BEAT_SECONDS, Lease, LeaseWatch, newest_lease
from vitlight.training.locks import Lock, find_lock, take_lock

__all__ = ["Attempts", "Claim", "Claims", "is_claimed", "read_attempts"]


_GOODBYE_SECONDS = 2.0


@dataclass(frozen=True)
class Attempts:
    """How a cell's runs went that ended without a result: how many failed, and why the last one did.

    `reason` is None where the cell was started again since.
    """

    num_failures: int = 0
    reason: str | None = None


class Claims(AbstractContextManager["Claims"]):
    """The claims that one process takes, and the keeper that beats their leases."""

    def __init__(self, beat_seconds: float = BEAT_SECONDS) -> None:
        self.leases = LeaseWatch(beat_seconds)
        self._keeper: subprocess.Popen[bytes] | None = None
        self._held: dict[Path, Path] = {}  # lease -> lock
        self._said_silent: set[Path] = set()  # leases

    def take(self, path: Path) -> Claim | None:
        """The claim, or None where somebody else has it or may have it. InputError where nothing can be locked."""
        lock = take_lock(path)
        if lock is None:
            return None
        lease = self.leases.take(path, lock)
        if lease is None:
            os.close(lock.fd)
            return None
        self._held[lease.path] = lock.path
        self._tell("hold", lease.path, lock.path)
        return Claim(self, path, lock, lease)

    def new_silence(self, path: Path, cell: str) -> str | None:
        """A line that the host which has the claim, of `cell`, gives no sign of life: once, after two of its beats have
        failed to come."""
        lease = self.leases.silent(path)
        if lease is None or lease.path in self._said_silent:
            return None
        self._said_silent.add(lease.path)
        then = f"taken over after {lease.silence_seconds:g} s"
        return f"silent   {cell}  {lease.host}, which has it, gives no sign of life; {then}"

    def free_if_silent(self, path: Path) -> str | None:
        """Take a claim over whose holder's host gives no sign of life, and leave it free; the name of that host. None where
        there is no such host, or it has not yet been silent for long enough: to be called again every few seconds."""
        if find_lock(path)[0] or not is_claimed(path):
            return None
        silent = self.leases.silent(path)
        claim = self.take(path)
        if claim is None:
            return None
        claim.release()
        return silent.host if silent is not None and not silent.is_released else None

    def check_keeper(self) -> None:
        """Start it again where something has killed it; to be called once in a while."""
        if self._keeper is not None and self._keeper.poll() is not None:
            self._keeper.__exit__(None, None, None)
            self._keeper = None
            for lease, lock in self._held.items():
                self._tell("hold", lease, lock)

    def let_go(self, lease: Lease, lock: Path) -> None:
        """Called when the lock is closed here: the lease is free, unless a child still has the lock."""
        del self._held[lease.path]
        if find_lock(lock)[0]:
            self._tell("leave", lease.path)
        else:
            keeper.mark_released(str(lease.path))
            self._tell("drop", lease.path)

    def __exit__(self, *exception: object) -> None:
        """The keeper goes on for as long as a child of this process has a claim."""
        if self._keeper is not None and self._keeper.stdin is not None:
            with suppress(BrokenPipeError):
                self._keeper.stdin.close()
            try:
                self._keeper.wait(_GOODBYE_SECONDS)
            except subprocess.TimeoutExpired:
                self._keeper.returncode = 0  # it is meant to outlive this process: nothing to warn of

    def _tell(self, *words: str | Path) -> None:
        if self._keeper is None:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", keeper.__file__, str(self.leases.beat_seconds)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                start_new_session=True,
            )
        assert self._keeper.stdin is not None
        with suppress(BrokenPipeError):  # killed: check_keeper tells the next one
            self._keeper.stdin.write("\t".join(map(str, words)).encode() + b"\n")


class Claim:
    """One cell, held until it is released here and `fd` is closed in every process that inherited it."""

    def __init__(self, claims: Claims, path: Path, lock: Lock, lease: Lease) -> None:
        self._claims, self._path, self._lock, self._lease = claims, path, lock, lease
        self.fd = lock.fd

    def is_lost(self) -> bool:
        """Whether another host has taken the cell over: this one was away for longer than a lease lasts."""
        return self._claims.leases.is_lost(self._path, self._lease)

    def attempts(self) -> Attempts:
        return read_attempts(self._path)

    def record(self, attempts: Attempts) -> None:
        content = json.dumps({"num_failures": attempts.num_failures, "reason": attempts.reason}).encode() + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, content, 0)
            os.ftruncate(fd, len(content))
        finally:
            os.close(fd)

    def release(self) -> None:
        """Give up this process's hold: closed, not unlocked, so that a child which is alive keeps the claim."""
        os.close(self.fd)
        self._claims.let_go(self._lease, self._lock.path)


def is_claimed(path: Path) -> bool:
    """Whether somebody holds the claim, by the lock or by the lease of another host; that one may have died since. What this
    host had when it went down is free."""
    is_held, domain = find_lock(path)
    if is_held or not domain:
        return is_held
    lease = newest_lease(path)
    if lease is None or lease.is_released or lease.domain == domain:
        return False
    return not lease.is_older_than_this_start(time.time())


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
