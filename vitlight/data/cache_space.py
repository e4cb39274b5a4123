"""The folder of a shard cache: names, locks, and the bound on its bytes, for processes that know nothing of each other.

In the folder lie, for every shard, either a whole file `KEY-DIGEST-NAME.tar` or a download `KEY-NAME.part` with a note
`KEY-NAME.json` beside it, where KEY hashes the shard's URL. All locks are `flock`, so they vanish with a killed process:

* `.lock`, exclusive, while files are counted, evicted or renamed; never during a download;
* a part, exclusive, by who downloads it: an unlocked part was left by a killed process, to be resumed or evicted;
* a whole file, shared, by who needs it: eviction takes only what it can lock exclusively.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from vitlight.data.sources import shard_name
from vitlight.errors import InputError

__all__ = ["CacheCounts", "CacheFolder", "NoRoom", "Note"]

_OURS = re.compile(r"[0-9a-f]{16}-.*\.(?:tar|part)")
_WHOLE = re.compile(r"[0-9a-f]{16}-([0-9a-f]{32})-.*\.tar")


class NoRoom(Exception):
    """Too much of the cache is in use at this moment."""


@dataclass
class CacheCounts:
    """What happened in a cache's folder since it was made, over all processes."""

    downloads: int = 0
    """Shards fetched whole."""
    retries: int = 0
    """Attempts beyond the first of each fetch."""
    evictions: int = 0


@dataclass(frozen=True)
class Note:
    """What is known of a download in progress."""

    reserved_bytes: int = 0
    num_bytes: int | None = None
    """Of the whole shard."""
    validator: str | None = None


class CacheFolder:
    """Names and locks of one folder; holds no state, so that any number of processes may use it at once.

    max_bytes: bound on whole files and downloads, those in progress at their full size; None is no bound. The notes and
    the counts, about 150 bytes a download, are not counted.
    """

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes

    def make(self) -> None:
        """Raises InputError where the folder can't be written to, or its filesystem has no locks."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                pass
        except OSError as error:
            raise InputError(
                f"{self.folder}: can't keep shards here ({error.strerror}); set data.cache_dir to another folder"
            ) from error

    def part_path(self, shard: str) -> Path:
        return self.folder / f"{_key(shard)}-{_plain_name(shard)}.part"

    def whole_path(self, shard: str, digest: str) -> Path:
        return self.folder / f"{_key(shard)}-{digest}-{_plain_name(shard)}.tar"

    def find(self, shard: str, num_bytes: int | None, digest: str | None) -> Path | None:
        """The whole file of this shard, of this size and digest where they are given; the newest of several."""
        if digest is not None:
            found = [self.whole_path(shard, digest)]
        else:
            found = [path for path in self.folder.glob(f"{_key(shard)}-*.tar") if _WHOLE.fullmatch(path.name)]
        stats = [(stat, path) for path in found if (stat := _stat(path)) is not None]
        fitting = [(stat.st_mtime_ns, path) for stat, path in stats if num_bytes in (None, stat.st_size)]
        return max(fitting)[1] if fitting else None

    def hold(self, path: Path) -> int | None:
        """A descriptor of the whole file with a shared lock on it, or None where it is gone or just going."""
        return _lock(path, os.O_RDONLY, fcntl.LOCK_SH)

    def release(self, descriptor: int) -> None:
        """Ends a hold; the file is now the last in the order of eviction."""
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))
        fcntl.flock(descriptor, fcntl.LOCK_UN)  # a forked child may have the descriptor, too
        os.close(descriptor)

    def lock_part(self, shard: str) -> int | None:
        """A descriptor of the shard's download, locked for this caller, or None where another one has it."""
        return _lock(self.part_path(shard), os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX)

    def drop_part(self, shard: str) -> None:
        """Removes the caller's download."""
        with self._locked():
            self._remove(self.part_path(shard))

    def read_note(self, shard: str) -> Note:
        return _read_note(self.part_path(shard))

    def reserve(self, shard: str, note: Note, leave_bytes: int = 0) -> None:
        """Makes room for the caller's download up to `note.reserved_bytes`, evicting what was released longest ago.

        leave_bytes: what must stay free or evictable beside it. Raises NoRoom where too much is in use now, and
        InputError where the shard is larger than the bound.
        """
        part = self.part_path(shard)
        with self._locked():
            if self.max_bytes is not None:
                if note.reserved_bytes > self.max_bytes:
                    raise InputError(
                        f"{shard_name(shard)} has {note.reserved_bytes} bytes or more, but the cache in {self.folder} is "
                        f"bounded to {self.max_bytes}; raise data.cache_gib"
                    )
                self._make_room(part, note.reserved_bytes, self.max_bytes, leave_bytes)
            part.with_suffix(".json").write_text(json.dumps(asdict(note)), encoding="utf-8")

    def has_room(self, num_bytes: int) -> bool:
        """Whether so many bytes are free or evictable at this moment."""
        if self.max_bytes is None:
            return True
        with self._locked():
            try:
                self._make_room(self.folder, 0, self.max_bytes, num_bytes)
            except NoRoom:
                return False
        return True

    def finish(self, shard: str, descriptor: int, digest: str) -> Path:
        """Gives the caller's whole and flushed download its final name; its exclusive lock becomes a shared one."""
        part, whole = self.part_path(shard), self.whole_path(shard, digest)
        with self._locked():
            part.rename(whole)
            part.with_suffix(".json").unlink(missing_ok=True)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._count(downloads=1)
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        return whole

    def count_retry(self) -> None:
        with self._locked():
            self._count(retries=1)

    def counts(self) -> CacheCounts:
        try:
            numbers = json.loads((self.folder / ".counts.json").read_bytes())
            return CacheCounts(**{field.name: int(numbers[field.name]) for field in fields(CacheCounts)})
        except (OSError, ValueError, KeyError, TypeError):
            return CacheCounts()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        descriptor = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _count(self, **added: int) -> None:
        counts = self.counts()
        for name, number in added.items():
            setattr(counts, name, getattr(counts, name) + number)
        beside = self.folder / ".counts.json.new"
        beside.write_text(json.dumps(asdict(counts)), encoding="utf-8")
        beside.rename(self.folder / ".counts.json")

    def _make_room(self, own_part: Path, num_bytes: int, max_bytes: int, leave_bytes: int) -> None:
        used, files = 0, []  # a part counts with what was reserved for it, whether or not it still is downloaded
        for entry in os.scandir(self.folder):
            if not _OURS.fullmatch(entry.name) or entry.name == own_part.name:
                continue
            with contextlib.suppress(FileNotFoundError):
                stat = entry.stat()
                size = max(stat.st_size, _reserved_bytes(entry.path))
                files.append((stat.st_mtime_ns, entry.path, size))
                used += size
        must_free, must_be_free = used + num_bytes - max_bytes, used + num_bytes + leave_bytes - max_bytes
        free = freed = num_evicted = 0
        order = sorted(files)
        for _, name, size in order:
            if free >= must_be_free:
                break
            free += size if self._is_free(Path(name), remove=False) else 0
        if free < must_be_free:
            raise NoRoom
        for _, name, size in order:
            if freed >= must_free:
                break
            if self._is_free(Path(name), remove=True):
                freed += size
                num_evicted += 1
        if num_evicted:
            self._count(evictions=num_evicted)
        if freed < must_free:
            raise NoRoom

    def _is_free(self, path: Path, *, remove: bool) -> bool:
        """Whether nobody needs the file at this moment; `remove` removes it in that case."""
        descriptor = _lock(path, os.O_RDONLY, fcntl.LOCK_EX)
        if descriptor is None:
            return False
        try:
            if remove:
                self._remove(path)
        finally:
            os.close(descriptor)
        return True

    def _remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        if path.suffix == ".part":
            path.with_suffix(".json").unlink(missing_ok=True)


def _key(shard: str) -> str:
    return hashlib.blake2b(shard.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def _plain_name(shard: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", shard_name(shard).removesuffix(".tar"))[-100:]


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _reserved_bytes(path: str) -> int:
    return _read_note(Path(path)).reserved_bytes if path.endswith(".part") else 0


def _read_note(part: Path) -> Note:
    try:
        return Note(**json.loads(part.with_suffix(".json").read_bytes()))
    except (OSError, ValueError, TypeError):
        return Note()


def _lock(path: Path, flags: int, how: int) -> int | None:
    """A descriptor locked without waiting; None where the file is locked by another or no longer has this name."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        at_path, own = _stat(path), os.fstat(descriptor)
        if at_path is not None and (at_path.st_ino, at_path.st_dev) == (own.st_ino, own.st_dev):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None
