"""Beats the leases of claims for as long as anybody on this host holds their locks.

A process of its own, so that a cell which outlives its runner keeps its claim on other hosts, too: `claims` starts it as
`python keeper.py BEAT_SECONDS` and writes lines to its standard input, each of words between tabs:

    hold LEASE LOCK    beat this lease
    drop LEASE         it was released
    leave LEASE        beat it until the lock is free, and release it then

When the input ends, for the runner has, every lease is left in this way; after the last one the keeper ends. It imports
the standard library alone and starts in some 20 ms.
"""

import fcntl
import os
import select
import signal
import sys
import time
from contextlib import suppress

__all__ = ["HEADER_BYTES", "mark_released"]

# A lease file: who holds it, in a first part that is never changed; then a count of beats; then a word once it is free.
# The parts have one writer each.
HEADER_BYTES = 512
_RELEASED_AT = HEADER_BYTES + 32
RELEASED = b"released\n"
_LOOK_SECONDS = 1.0  # at locks that are left


def mark_released(lease: str) -> None:
    _write(lease, _RELEASED_AT, RELEASED)


def _write(lease: str, position: int, content: bytes) -> None:
    """OSError where it can't be written; a file system that is away for a while is tried again at the next beat."""
    descriptor = os.open(lease, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(descriptor, content, position)
    finally:
        os.close(descriptor)


def _is_held(lock: str) -> bool:
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


class Keeper:
    def __init__(self, beat_seconds: float) -> None:
        self._beat_seconds = beat_seconds
        self._locks: dict[str, str] = {}  # lease -> lock
        self._left: set[str] = set()
        self._has_runner = True
        self._rest = b""

    def run(self) -> None:
        count, next_beat = 0, time.monotonic() + self._beat_seconds
        while self._has_runner or self._locks:
            pause = max(0.0, next_beat - time.monotonic())
            self._listen(min(pause, _LOOK_SECONDS) if self._left else pause)
            self._release_free()
            if time.monotonic() >= next_beat:
                count += 1
                for lease in self._locks:
                    with suppress(OSError):
                        _write(lease, HEADER_BYTES, b"%020d\n" % count)
                next_beat = time.monotonic() + self._beat_seconds

    def _listen(self, seconds: float) -> None:
        if not self._has_runner:
            time.sleep(seconds)
        elif select.select([0], [], [], seconds)[0]:
            content = os.read(0, 1 << 16)
            *lines, self._rest = (self._rest + content).split(b"\n")
            for line in lines:
                self._obey(*line.decode().split("\t"))
            if not content:
                self._has_runner = False
                self._left = set(self._locks)

    def _obey(self, word: str, lease: str, lock: str = "") -> None:
        if word == "hold":
            self._locks[lease] = lock
        elif word == "leave" and lease in self._locks:
            self._left.add(lease)
        else:
            self._locks.pop(lease, None)

    def _release_free(self) -> None:
        for lease in sorted(self._left):
            try:
                if _is_held(self._locks[lease]):
                    continue
                mark_released(lease)
            except FileNotFoundError:
                pass  # somebody has deleted the sweep's directory
            except OSError:
                continue  # the file system is away: asked again
            self._left.remove(lease)
            del self._locks[lease]


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    Keeper(float(sys.argv[1])).run()
