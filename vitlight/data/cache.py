"""A bounded cache of whole remote shards on a node's disk, shared by all workers and ranks of the node, with no daemon."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitlight.data.cache_space import CacheCounts, CacheFolder, NoRoom, Note
from vitlight.data.fetch import Cancelled, Fetcher, FetchPolicy, wait
from vitlight.data.sources import shown
from vitlight.errors import InputError

__all__ = ["ShardCache"]

_POLL_SECONDS = 0.02  # for a download that another process is at
_ROOM_POLL_SECONDS = 0.25
_TOUCH_SECONDS = 1.0


class ShardCache:
    """Whole shards in a folder. May be pickled, and used by any number of processes and threads at once.

    A shard is downloaded by one of those who want it while the others wait, and lies under its final name only when it is
    whole. Where a new one doesn't fit into `max_bytes`, those released longest ago go; a shard is held by those who pinned
    it and, for a moment, by its readers. The bound counts whole files and the full size of downloads in progress, and holds
    at every moment; None is no bound.

    Where num_bytes and digest (32 hex digits of blake2b) are given to a method, the shard has them, or InputError is raised.
    InputError too where a shard can't be fetched, or does not fit beside what is in use.
    """

    def __init__(self, folder: Path, max_bytes: int | None, policy: FetchPolicy | None = None) -> None:
        self.folder, self.max_bytes, self.policy = Path(folder), max_bytes, policy or FetchPolicy()
        self._space = CacheFolder(self.folder, max_bytes)
        self._paths: dict[str, Path] = {}
        self._pins: dict[str, int] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardCache, (self.folder, self.max_bytes, self.policy)

    @staticmethod
    def digest(path: Path) -> str:
        """The blake2b digest of a cached file: 16 bytes as 32 hex digits, computed while it was downloaded."""
        return path.name.split("-")[1]

    def counts(self) -> CacheCounts:
        """Downloads, retries and evictions in this folder, over all processes, since it was made."""
        return self._space.counts()

    def fetch(self, shard: str, num_bytes: int | None = None, digest: str | None = None) -> Path:
        """The whole local file of `shard`. Unless it is pinned it may be evicted as soon as another one is fetched."""
        with self.hold(shard, num_bytes, digest) as path:
            return path

    @contextlib.contextmanager
    def hold(self, shard: str, num_bytes: int | None = None, digest: str | None = None) -> Iterator[Path]:
        """The whole local file of `shard`, which stays while the block runs."""
        descriptor, path = self._acquire(shard, num_bytes, digest)
        try:
            yield path
        finally:
            self._space.release(descriptor)

    def read(
        self, shard: str, offset: int, size: int, num_bytes: int | None = None, digest: str | None = None
    ) -> bytes:
        """`size` bytes at `offset`. The file is opened and closed each time, so that eviction frees its disk at once."""
        path = self._paths.get(shard)
        descriptor = None
        if path is not None:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        if descriptor is None:
            descriptor, self._paths[shard] = self._acquire(shard, num_bytes, digest)
        try:
            parts, end = [], offset + size
            while offset < end:
                part = os.pread(descriptor, end - offset, offset)
                if not part:
                    raise InputError(f"shard {shown(shard)} ends before byte {end}; index it again")
                parts.append(part)
                offset += len(part)
            now = time.time()
            if now - os.fstat(descriptor).st_mtime > _TOUCH_SECONDS:
                os.utime(descriptor, (now, now))
        finally:
            os.close(descriptor)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def pin(
        self,
        shard: str,
        num_bytes: int | None = None,
        digest: str | None = None,
        *,
        leave_bytes: int | None = None,
        cancel: threading.Event | None = None,
    ) -> Path:
        """Fetches `shard` and keeps it until `unpin`, or until this process ends.

        With leave_bytes the pin is made ahead of need: it waits without end for room, and for so much more that stays free
        for what others need at once. Raises fetch.Cancelled when `cancel` is set meanwhile.
        """
        descriptor, path = self._acquire(shard, num_bytes, digest, leave_bytes, cancel)
        if self._pins.setdefault(shard, descriptor) != descriptor:
            self._space.release(descriptor)
        return path

    def unpin(self, shard: str) -> None:
        """Nothing where it is not pinned by this object."""
        descriptor = self._pins.pop(shard, None)
        if descriptor is not None:
            self._space.release(descriptor)

    def _acquire(
        self,
        shard: str,
        num_bytes: int | None,
        digest: str | None,
        leave_bytes: int | None = None,
        cancel: threading.Event | None = None,
    ) -> tuple[int, Path]:
        """A descriptor of the whole file that holds it there, and its path."""
        space = self._space
        space.make()
        is_ahead = leave_bytes is not None
        while True:
            if cancel is not None and cancel.is_set():
                raise Cancelled
            if (path := space.find(shard, num_bytes, digest)) is not None:
                if (held := space.hold(path)) is None:
                    wait(_POLL_SECONDS, cancel)
                    continue
                if leave_bytes is None or space.has_room(leave_bytes):
                    return held, path
                space.release(held)
                wait(_ROOM_POLL_SECONDS, cancel)
                continue
            descriptor = space.lock_part(shard)
            if descriptor is None:
                wait(_POLL_SECONDS, cancel)
                continue
            is_done = False
            try:
                if space.find(shard, num_bytes, digest) is not None:
                    continue

                def reserve(note: Note) -> None:
                    if is_ahead:
                        space.reserve(shard, note, leave_bytes or 0)
                    else:
                        self._reserve_now(shard, note)

                fetcher = Fetcher(
                    shard, descriptor, space, self.policy, reserve, num_bytes=num_bytes, digest=digest, cancel=cancel
                )
                path = fetcher.run()
                is_done = True
                return descriptor, path
            except NoRoom:
                pass
            finally:
                if not is_done:
                    if os.fstat(descriptor).st_size == 0 or space.read_note(shard).num_bytes is None:
                        space.drop_part(shard)  # nothing that could be resumed
                    os.close(descriptor)
            # The part is unlocked, so that whoever needs this shard at once does not wait for the room as well.
            wait(_ROOM_POLL_SECONDS, cancel)

    def _reserve_now(self, shard: str, note: Note) -> None:
        deadline = time.monotonic() + self.policy.room_seconds
        while True:
            try:
                self._space.reserve(shard, note)
                return
            except NoRoom as error:
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{shown(shard)} ({note.reserved_bytes} bytes) found no room for "
                        f"{self.policy.room_seconds:g} s: the cache in {self.folder} is bounded to {self.max_bytes} bytes, "
                        "and too many of them are in use; raise data.cache_gib"
                    ) from error
            time.sleep(_ROOM_POLL_SECONDS)
