"""Fetches one remote shard into its place in a cache: resumed, retried with backoff, checked, flushed, renamed."""

import errno
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from vitlight.data.cache_space import CacheFolder, Note
from vitlight.data.remote import Remote, Timeouts, TransientFault, open_remote
from vitlight.data.sources import is_pipe, shown
from vitlight.errors import InputError
from vitlight.messages import say

__all__ = ["Cancelled", "FetchPolicy", "Fetcher", "wait"]

_GROWTH_BYTES = 64 * 1024 * 1024  # reserved at a time where the source doesn't tell how much will come
_SAID_FROM_ATTEMPT = 3  # the first two go by in a second, and are counted only
_HASH_BYTES = 4 * 1024 * 1024  # read at a time
_DIGEST_BYTES = 16


class Cancelled(Exception):
    """The caller no longer wants what it asked for."""


@dataclass(frozen=True)
class FetchPolicy:
    """How long to try.

    A fetch ends after `num_attempts` in a row, or `give_up_seconds`, that brought no new byte. Between two attempts it
    waits between half of and the whole of first_wait_seconds x 2^n, at most max_wait_seconds, or as long as the server asks.
    room_seconds: how long a shard that is needed at once waits for others to be released where the cache is full.
    """

    num_attempts: int = 8
    give_up_seconds: float = 600.0
    first_wait_seconds: float = 0.5
    max_wait_seconds: float = 30.0
    room_seconds: float = 60.0
    timeouts: Timeouts = field(default_factory=Timeouts)


def wait(seconds: float, cancel: threading.Event | None) -> None:
    """Sleeps. Raises Cancelled as soon as `cancel` is set."""
    if cancel is None:
        time.sleep(seconds)
    elif cancel.wait(seconds):
        raise Cancelled


class Fetcher:
    """One download of one shard, into the part whose locked descriptor it is given.

    num_bytes, digest: what the shard must have, where it is known. reserve: makes room for what its note says, or raises.
    """

    def __init__(
        self,
        shard: str,
        descriptor: int,
        folder: CacheFolder,
        policy: FetchPolicy,
        reserve: Callable[[Note], None],
        *,
        num_bytes: int | None,
        digest: str | None,
        cancel: threading.Event | None,
    ) -> None:
        self._shard, self._descriptor, self._folder, self._policy = shard, descriptor, folder, policy
        self._reserve, self._num_bytes, self._digest, self._cancel = reserve, num_bytes, digest, cancel
        note = folder.read_note(shard)
        self._note = replace(note, reserved_bytes=0)
        self._size = os.fstat(descriptor).st_size
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        is_useful = note.num_bytes is not None and self._size <= note.num_bytes and num_bytes in (None, note.num_bytes)
        self._rewind(self._size if is_useful else 0)

    def run(self) -> Path:
        """Downloads what is missing and gives the file its final name; the descriptor's lock becomes a shared one.

        Raises InputError where the shard can't be had, is not what was indexed, or does not fit, and Cancelled.
        """
        attempt, furthest, has_restarted, last_progress = 0, self._size, False, time.monotonic()
        if self._num_bytes is not None:
            self._grow(self._num_bytes)
        while True:
            try:
                if self._size != self._note.num_bytes:
                    self._attempt()
                os.fsync(self._descriptor)
                digest = self._hash.hexdigest()
                if self._num_bytes in (None, self._size) and self._digest in (None, digest):
                    return self._folder.finish(self._shard, self._descriptor, digest)
                found = f"{self._size} bytes with digest {digest}, not {self._num_bytes} with {self._digest}"
                self._rewind(0)
                if has_restarted:
                    raise InputError(self._changed(found))
                attempt, furthest, has_restarted, last_progress = 0, 0, True, time.monotonic()
                self._folder.count_retry()
            except TransientFault as fault:
                if self._size > furthest:
                    attempt, furthest, last_progress = 0, self._size, time.monotonic()
                attempt += 1
                pause = self._pause(attempt, fault)
                waited = time.monotonic() - last_progress
                if attempt >= self._policy.num_attempts or waited + pause > self._policy.give_up_seconds:
                    raise InputError(
                        f"{shown(self._shard)}: can't be fetched: gave up after {attempt} attempts in {waited:.0f} s "
                        f"without a new byte ({self._size} bytes had come); last: {fault}"
                    ) from fault
                if fault.restart:
                    self._rewind(0)
                self._folder.count_retry()
                if attempt >= _SAID_FROM_ATTEMPT:
                    say(
                        f"vitlight: {shown(self._shard)}: {fault}; attempt {attempt + 1} of {self._policy.num_attempts} "
                        f"in {pause:.0f} s"
                    )
                wait(pause, self._cancel)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise InputError(
                    f"{self._folder.folder}: no space left for {shown(self._shard)}; lower data.cache_gib or set "
                    "data.cache_dir to another disk"
                ) from error

    def _pause(self, attempt: int, fault: TransientFault) -> float:
        policy = self._policy
        backoff = min(policy.max_wait_seconds, policy.first_wait_seconds * 2.0 ** (attempt - 1))
        return max(random.SystemRandom().uniform(backoff / 2, backoff), fault.retry_after_seconds)

    def _attempt(self) -> None:
        start = 0 if self._note.num_bytes is None else self._size
        with open_remote(self._shard, start, self._note.validator, self._policy.timeouts) as remote:
            self._accept(remote)
            for chunk in remote.chunks:
                if self._cancel is not None and self._cancel.is_set():
                    raise Cancelled
                self._write(chunk, remote.num_bytes)
        # a command that says it is done is done; a connection may be cut without a word
        announced = self._num_bytes if remote.num_bytes is None and not is_pipe(self._shard) else remote.num_bytes
        if announced is not None and self._size < announced:
            raise TransientFault(f"the connection was cut after {self._size} of {announced} bytes")

    def _accept(self, remote: Remote) -> None:
        """Takes over the size and validator that the source tells, and goes to the byte that it begins with."""
        if remote.num_bytes is not None and self._num_bytes not in (None, remote.num_bytes):
            raise InputError(self._changed(f"it has {remote.num_bytes} bytes, not {self._num_bytes}"))
        if remote.start and (remote.start > self._size or remote.num_bytes != self._note.num_bytes):
            raise TransientFault("another part of the shard came than was asked for", restart=True)
        if remote.start < self._size:
            self._rewind(remote.start)
        self._note = replace(self._note, num_bytes=remote.num_bytes, validator=remote.validator)
        self._grow(max(remote.num_bytes or 0, self._num_bytes or 0, self._size), always=True)

    def _write(self, chunk: bytes, num_bytes: int | None) -> None:
        end = self._size + len(chunk)
        if num_bytes is not None and end > num_bytes:
            raise TransientFault(f"more than the {num_bytes} bytes came that were announced", restart=True)
        if end > self._note.reserved_bytes:
            if self._num_bytes is not None:
                raise InputError(self._changed(f"it has more than {self._num_bytes} bytes"))
            bound = self._folder.max_bytes
            self._grow(end + _GROWTH_BYTES if bound is None else max(end, min(end + _GROWTH_BYTES, bound)))
        view = memoryview(chunk)
        while view:
            view = view[os.pwrite(self._descriptor, view, end - len(view)) :]
        self._hash.update(chunk)
        self._size = end

    def _grow(self, num_bytes: int, *, always: bool = False) -> None:
        if always or num_bytes > self._note.reserved_bytes:
            self._note = replace(self._note, reserved_bytes=max(num_bytes, self._note.reserved_bytes))
            self._reserve(self._note)

    def _rewind(self, size: int) -> None:
        """Keeps the first `size` bytes of the part."""
        os.ftruncate(self._descriptor, size)
        self._size = size
        self._hash = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for offset in range(0, size, _HASH_BYTES):
            self._hash.update(os.pread(self._descriptor, min(_HASH_BYTES, size - offset), offset))

    def _changed(self, how: str) -> str:
        return f"{shown(self._shard)}: changed since it was indexed ({how}); index it again"
