"""Reads every byte of a set of shards and says all that is wrong with them, not only what is wrong first."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np

from vitlight.data.cache import ShardCache
from vitlight.data.columns import ScannedShard, find_repeated, key_hash
from vitlight.data.faults import Fault, FaultError, Kind
from vitlight.data.index import default_cache
from vitlight.data.scan import ScanSettings, examine_shard
from vitlight.data.scan_pool import each_shard, num_processes_for
from vitlight.data.shard_set import ShardSet
from vitlight.data.sources import is_remote, local_path, shown
from vitlight.data.tar import tar_samples
from vitlight.data.verify_index import IndexedShard, IndexedShards
from vitlight.errors import InputError

__all__ = ["ShardReport", "verify"]

_WHOLE_SHARD = (Kind.MISSING_SHARD, Kind.UNREADABLE_SHARD, Kind.TRUNCATED_TAR, Kind.DAMAGED_TAR)


@dataclass(frozen=True)
class ShardReport:
    """What was found in one shard. Where its keys come in other shards too, there is a second report of it at the end."""

    shard: str
    faults: tuple[Fault, ...]
    num_samples: int = 0
    """Sound ones, counted in the first report."""
    num_bytes: int = 0
    """Likewise."""


def verify(
    shards: ShardSet,
    *,
    folder: Path | None = None,
    num_classes: int | None = None,
    decode: bool = True,
    cache: ShardCache | None = None,
    num_processes: int | None = None,
) -> Iterator[ShardReport]:
    """A report for each shard as it is done, and then those on keys that come in several shards.

    Where an index knows a shard, the shard is held against it. `folder`: where all shards lie; those that an index names
    there and that are gone are missing. `num_classes`: labels lie below it. `decode`: decode every image; otherwise its
    ends are looked at. Memory holds one shard's rows and faults a process, and 8 bytes for each of at most 2^26 keys at a
    time. A remote shard that is in the cache is not fetched again. Raises InputError for bad settings alone.
    """
    num_processes = num_processes_for(len(shards.shards), num_processes)
    if num_classes is not None and num_classes < 1:
        raise InputError(f"num_classes={num_classes} is not at least 1")
    if cache is None and any(is_remote(shard) for shard in shards.shards):
        cache = default_cache()
    indexed = IndexedShards(shards)
    if folder is not None:
        for name in indexed.missing(folder):
            fault = Fault(Kind.MISSING_SHARD, str(folder / name), None, "the index has this shard, but it is not here")
            yield ShardReport(fault.shard, (fault,))
    work = partial(_examine, settings=shards.scan_settings(num_classes, decode), cache=cache)
    with tempfile.TemporaryFile() as file:
        keys = _Keys(file)
        for shard, (scan, faults) in each_shard(work, shards.shards, num_processes):
            keys.add(shard, scan.columns["key_hash"])
            if (known := indexed.find(shard)) is not None:
                faults = [*faults, *_changes(shard, scan, faults, known)]
            yield ShardReport(shown(shard), tuple(faults), len(scan), scan.num_bytes)
        yield from keys.reports_of_repeated(shards.shards, cache)


def _examine(shard: str, settings: ScanSettings, cache: ShardCache | None) -> tuple[ScannedShard, list[Fault]]:
    if not is_remote(shard):
        return examine_shard(local_path(shard), settings, shard)
    assert cache is not None
    try:
        with cache.hold(shard) as path:
            scan, faults = examine_shard(path, settings, shown(shard))
            return replace(scan, digest=ShardCache.digest(path)), faults
    except InputError as error:
        return ScannedShard.empty(), [Fault(Kind.UNREADABLE_SHARD, shown(shard), None, str(error))]


def _changes(shard: str, scan: ScannedShard, faults: list[Fault], known: IndexedShard) -> list[Fault]:
    """What is not as the index has it; of a shard that is another file as a whole, only that."""
    if any(fault.kind in (Kind.MISSING_SHARD, Kind.UNREADABLE_SHARD) for fault in faults):
        return []
    change = known.change_of_file(shard, scan.digest)
    if change is not None:
        return [Fault(Kind.CHANGED_SHARD, shown(shard), None, change)]
    if any(fault.kind in _WHOLE_SHARD for fault in faults):
        return []
    return list(known.changes_of_samples(shown(shard), scan, {fault.key for fault in faults if fault.key is not None}))


class _Keys:
    """The hashes of all keys, in a file: 300 million of them are 2.4 GB."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._rows: dict[str, tuple[int, int]] = {}
        self._num_rows = 0

    def add(self, shard: str, hashes: np.ndarray) -> None:
        self._file.write(hashes.tobytes())
        self._rows[shard] = self._num_rows, self._num_rows + len(hashes)
        self._num_rows += len(hashes)

    def reports_of_repeated(self, shards: tuple[str, ...], cache: ShardCache | None) -> Iterator[ShardReport]:
        """Reads again the headers of the shards that have a hash which comes twice, and compares the keys themselves."""
        if self._num_rows == 0:
            return
        self._file.flush()
        hashes = np.memmap(self._file, np.uint64, "r")
        repeated = find_repeated(hashes)
        first: dict[bytes, str] = {}
        for shard in shards if len(repeated) else ():
            begin, end = self._rows[shard]
            wanted = set(hashes[begin:end][np.isin(hashes[begin:end], repeated)].tolist())
            faults = []
            for key in _keys_of(shard, wanted, cache):
                if first.setdefault(key, shard) != shard:
                    name = key.decode(errors="backslashreplace")
                    detail = (
                        f"key {name!r} comes twice, first in {shown(first[key])}; every sample must have its own key"
                    )
                    faults.append(Fault(Kind.DUPLICATE_KEY, shown(shard), name, detail))
            if faults:
                yield ShardReport(shown(shard), tuple(faults))


def _keys_of(shard: str, hashes: set[int], cache: ShardCache | None) -> list[bytes]:
    """The keys of a shard that have these hashes, each once."""
    if not hashes:
        return []
    if is_remote(shard):
        assert cache is not None
        with cache.hold(shard) as path:
            return _read_keys(path, hashes)
    return _read_keys(local_path(shard), hashes)


def _read_keys(path: Path, hashes: set[int]) -> list[bytes]:
    keys: dict[bytes, None] = {}
    try:
        with path.open("rb") as file:
            for key, _ in tar_samples(file):
                if key_hash(key) in hashes:
                    keys[key] = None
    except FaultError:
        pass  # said in the shard's own report, with what was read up to here
    return list(keys)
