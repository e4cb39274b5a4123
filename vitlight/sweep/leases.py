"""Leases: what tells other hosts that a claim's holder lives, where locks don't reach from host to host.

A lease is a file `<run id>.lease-<n>` beside the lock; the highest n counts. Whoever finds it free makes n + 1 with
O_CREAT | O_EXCL, which one of all hosts can do, on every network file system in use (NFS since version 3). Nobody
deletes or renames a lease. The holder's `keeper` counts its beats in it. A lease is free when it says so; when its holder
held the very lock that the taker now holds, and so is dead; when it is of the taker's own host, and older than that host's
last start; or when the taker has looked on for `BEATS_UNTIL_DEAD` beats and seen no count. Each measures that with its own
monotonic clock, so that hosts' clocks may differ.
"""

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from vitlight.sweep.keeper import HEADER_BYTES, RELEASED
from vitlight.training.locks import Lock

__all__ = ["BEATS_UNTIL_DEAD", "BEAT_SECONDS", "Lease", "LeaseWatch", "newest_lease"]

BEAT_SECONDS = 10.0
BEATS_UNTIL_DEAD = 12


@dataclass(frozen=True)
class Lease:
    """One state of a lease file."""

    path: Path
    number: int
    domain: str  # of the lock that its holder holds
    host: str
    beat_seconds: float
    count: bytes
    is_released: bool

    @property
    def silence_seconds(self) -> float:
        """Without a beat for so long, its holder is dead."""
        return BEATS_UNTIL_DEAD * self.beat_seconds

    def is_older_than_this_start(self, now: float) -> bool:
        """Whether its holder died when this host went down: the host's name is in it, and by the clock of the file system,
        which reads `now`, it was last beaten before the host started. Another host of the same name goes on beating.
        """
        if sys.platform != "linux" or self.host != platform.node():
            return False
        return now - self.path.stat().st_mtime > max(self.silence_seconds, time.clock_gettime(time.CLOCK_BOOTTIME))


def _lease_path(lock: Path, number: int) -> Path:
    return lock.with_name(f"{lock.stem}.lease-{number}")


def newest_lease(lock: Path, first: int = 1) -> Lease | None:
    """The lease that counts, looked for from number `first` on; None where there is none yet."""
    number = first
    while _lease_path(lock, number + 1).exists():
        number += 1
    try:
        return _read(_lease_path(lock, number), number)
    except FileNotFoundError:
        return None


def _read(path: Path, number: int) -> Lease:
    content = path.read_bytes()
    try:
        header = json.loads(content[:HEADER_BYTES])
        domain, host, beat_seconds = str(header["domain"]), str(header["host"]), float(header["beat_seconds"])
    except (ValueError, KeyError, TypeError):  # its maker was killed before it wrote: dead after the usual silence
        domain, host, beat_seconds = "", "?", BEAT_SECONDS
    beats = content[HEADER_BYTES:]
    return Lease(path, number, domain, host, beat_seconds, beats.partition(b"\n")[0], RELEASED in beats)


def _died_with_this_host(lease: Lease, lock: Path) -> bool:
    """Read twice: this host's clock may be hours away from the file system's, which a file just touched tells."""
    if not lease.is_older_than_this_start(time.time()):
        return False
    os.utime(lock)
    return lease.is_older_than_this_start(lock.stat().st_mtime)


@dataclass
class _Seen:
    number: int
    count: bytes
    at: float
    silent_seconds: float


class LeaseWatch:
    """One process's view of leases, and how long it has seen each of them stand still."""

    def __init__(self, beat_seconds: float = BEAT_SECONDS) -> None:
        self.beat_seconds = beat_seconds
        self._newest: dict[Path, int] = {}
        self._seen: dict[Path, _Seen] = {}

    def take(self, path: Path, lock: Lock) -> Lease | None:
        """The next lease of the claim at `path`, for the holder of its lock; None while another host may hold it."""
        newest = newest_lease(path, self._newest.get(path, 1))
        if newest is not None:
            self._newest[path] = newest.number
            is_free = newest.is_released or newest.domain == lock.domain or _died_with_this_host(newest, path)
            if not (is_free or self._is_dead(path, newest)):
                return None
        self._seen.pop(path, None)
        return self._make(path, newest.number + 1 if newest else 1, lock)

    def silent(self, path: Path) -> Lease | None:
        """A lease of another host that was seen to stand still for two beats, and isn't dead yet."""
        seen = self._seen.get(path)
        newest = newest_lease(path, seen.number) if seen else None
        return newest if newest and seen and seen.silent_seconds > 2 * newest.beat_seconds else None

    def is_lost(self, path: Path, lease: Lease) -> bool:
        """Whether another host has taken over what `lease` holds, having heard nothing of this one for too long."""
        newest = newest_lease(path, lease.number)
        return newest is not None and newest.number > lease.number

    def _is_dead(self, path: Path, lease: Lease) -> bool:
        now = time.monotonic()
        seen = self._seen.get(path)
        if seen is None or (seen.number, seen.count) != (lease.number, lease.count):
            self._seen[path] = _Seen(lease.number, lease.count, now, 0.0)
            return False
        # A watcher that was itself stopped, or waited for the file system, has seen nothing meanwhile.
        seen.silent_seconds += min(now - seen.at, 2 * lease.beat_seconds)
        seen.at = now
        return seen.silent_seconds >= lease.silence_seconds

    def _make(self, path: Path, number: int, lock: Lock) -> Lease | None:
        target, host = _lease_path(path, number), platform.node()
        header = {"domain": lock.domain, "host": host, "pid": os.getpid(), "beat_seconds": self.beat_seconds}
        content = json.dumps(header).encode().ljust(HEADER_BYTES - 1) + b"\n" + b"%020d\n" % 0
        try:
            fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return None
        try:
            os.write(fd, content)
        finally:
            os.close(fd)
        self._newest[path] = number
        return Lease(target, number, lock.domain, host, self.beat_seconds, b"", False)
