"""Builds and finds the index of a set of tar shards.

An index is a folder `<index_dir>/<fingerprint>/` of `.npy` columns and `meta.json`. The fingerprint hashes the shards'
names, sizes and modification times (of remote ones the URLs) and the settings that say what a sample's image and labels
are. So an index is found only by the very shards it was made from; several sets of shards (all of a folder, the first ten
of it) can have theirs side by side; and, since the folder is written beside and renamed, it is whole or absent.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vitlight.data.cache import ShardCache
from vitlight.data.columns import ScannedShard, columns_digest, find_repeated, flush, open_columns, write_columns
from vitlight.data.labels import LabelSource
from vitlight.data.progress import progress
from vitlight.data.scan import ScanSettings, scan_shard
from vitlight.data.scan_log import SCAN_LOG_PREFIX, ScanLog
from vitlight.data.scan_pool import each_shard, num_processes_for
from vitlight.data.shard_index import META_FILE, ShardIndex, read_meta
from vitlight.data.shard_set import CLASS_NAMES_FILE, ShardSet, shard_place
from vitlight.data.sources import UNFINISHED_FILE, default_cache_dir, is_remote, local_path, resolve_shards, shown
from vitlight.errors import InputError

__all__ = [
    "CLASS_NAMES_FILE",
    "UNFINISHED_FILE",
    "ShardIndex",
    "build_index",
    "default_cache",
    "load_index",
    "resolve_shards",
]

DEFAULT_CACHE_GIB = 64.0

_BUILDING = ".building-"
_STALE_SECONDS = 7 * 24 * 3600


def load_index(
    source: str | Path | Sequence[str | Path],
    index_dir: Path | None = None,
    *,
    labels: LabelSource = LabelSource(),  # noqa: B008  frozen
    image_part: str | None = None,
    cache: ShardCache | None = None,
    num_processes: int | None = None,
) -> ShardIndex:
    """The index of the shards that `source` names, built first where there is none for these very files.

    `source` is what `resolve_shards` takes; `index_dir`, `labels` and `image_part` are those of `ShardSet`; the others those
    of `build_index`. Raises InputError as these do.
    """
    shards = ShardSet(resolve_shards(source), index_dir, labels, image_part)
    for folder in shards.index_dirs:
        if (index := shards.open_index(folder)) is not None:
            return index
    return _build(shards, cache, num_processes)


def build_index(
    shards: Sequence[str | Path],
    index_dir: Path,
    *,
    labels: LabelSource = LabelSource(),  # noqa: B008  frozen
    image_part: str | None = None,
    cache: ShardCache | None = None,
    num_processes: int | None = None,
) -> ShardIndex:
    """Indexes the shards in one pass over their headers and labels, and writes the index under `index_dir`.

    A building that was killed, or that found a fault, goes on with what it had scanned; of two at once one waits for the
    other. `cache`: where remote shards are fetched to, each once (by default `default_cache()`). `num_processes`: by
    default one for each 64 shards, up to the number of cores; one is this process itself, more are spawned. Raises
    InputError for anything that is wrong with a shard or sample (see `vitlight.data.faults`), a key that comes twice, and
    no sample at all.
    """
    if not shards:
        raise InputError("no shard was given")
    return _build(ShardSet(tuple(map(str, shards)), index_dir, labels, image_part), cache, num_processes)


def default_cache() -> ShardCache:
    """At most 64 GiB of remote shards, in the folder of caches."""
    return ShardCache(default_cache_dir() / "shards", int(DEFAULT_CACHE_GIB * 2**30))


def _build(shards: ShardSet, cache: ShardCache | None, num_processes: int | None) -> ShardIndex:
    num_processes = num_processes_for(len(shards.shards), num_processes)
    if cache is None and any(is_remote(shard) for shard in shards.shards):
        cache = default_cache()
    settings = shards.scan_settings()
    _ = shards.entries  # a missing shard is found before any is scanned
    with _building(shards) as area:
        index_dir = area.parent
        if (index := shards.open_index(index_dir)) is not None:  # by another process, while this one waited
            if not any(area.glob(f"{SCAN_LOG_PREFIX}*")):
                shutil.rmtree(area, ignore_errors=True)
            return index
        beside = area / "columns"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        log = ScanLog(area)
        try:
            names = [_scan_name(*pair) for pair in zip(shards.shards, shards.entries, strict=True)]
            _scan_all(dict(zip(shards.shards, names, strict=True)), settings, cache, num_processes, log)
            meta = _write(beside, shards, log, names)
            with (beside / META_FILE).open("w", encoding="utf-8") as file:
                json.dump(meta, file)
                flush(file)
            folder = index_dir / shards.fingerprint
            shutil.rmtree(folder, ignore_errors=True)
            beside.rename(folder)
        except OSError as error:
            raise InputError(_no_place(index_dir, error)) from error
        finally:
            log.close()
            shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(area, ignore_errors=True)
    _remove_stale(index_dir, meta["shards"])
    index = shards.open_index(index_dir)
    if index is None:
        raise InputError(f"{index_dir}: can't read back the index just written here; set index_dir to another folder")
    return index


@contextlib.contextmanager
def _building(shards: ShardSet) -> Iterator[Path]:
    """The folder of what is scanned so far with these settings, in the first of `index_dirs` that can be written and locked.

    One process has it at a time.
    """
    area, refused = None, None
    named = shards.settings_digest + ("" if shards.classes is None else f"-{shards.classes.digest()}")
    for index_dir in shards.index_dirs:
        try:
            area = index_dir / f"{_BUILDING}{named}"
            lock = _lock(area)
            break
        except OSError as error:
            refused = refused or InputError(_no_place(index_dir, error))
    else:
        assert refused is not None
        raise refused
    try:
        yield area
    finally:
        os.close(lock)


def _no_place(index_dir: Path, error: OSError) -> str:
    return f"{index_dir}: can't write the index here ({error.strerror}); set index_dir to another folder"


def _lock(area: Path) -> int:
    """Makes the folder and locks it; the lock lasts until the descriptor is closed or the process dies."""
    while True:
        area.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(area / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # the one who had it was done, and removed the folder
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), (area / "lock").stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _scan_name(shard: str, entry: dict[str, Any]) -> str:
    """Two folders may hold shards of equal name, size and time."""
    return hashlib.blake2b(json.dumps([shard_place(shard), entry]).encode(), digest_size=16).hexdigest()


def _scan_all(
    names: dict[str, str], settings: ScanSettings, cache: ShardCache | None, num_processes: int, log: ScanLog
) -> None:
    missing = [shard for shard, name in names.items() if name not in log]
    scans = each_shard(partial(_scan, settings=settings, cache=cache), missing, min(num_processes, len(missing) or 1))
    with progress("Indexing", len(missing), "shards") as advance, contextlib.closing(scans):
        for shard, scan in scans:
            log.add(names[shard], scan)
            advance(1)


def _scan(shard: str, settings: ScanSettings, cache: ShardCache | None) -> ScannedShard:
    if not is_remote(shard):
        return scan_shard(local_path(shard), settings, shard)
    assert cache is not None
    with cache.hold(shard) as path:
        return replace(scan_shard(path, settings, shown(shard)), digest=ShardCache.digest(path))


def _write(folder: Path, shards: ShardSet, log: ScanLog, names: list[str]) -> dict[str, Any]:
    """Writes the columns; what `meta.json` says of them."""
    num_samples = log.num_samples(names)
    if num_samples == 0:
        which = "this shard" if len(names) == 1 else f"any of {len(names)} shards"
        raise InputError(f"{shown(shards.shards[0])}: no sample in {which}")
    entries = [
        {**entry, "place": shard_place(shard)} for shard, entry in zip(shards.shards, shards.entries, strict=True)
    ]
    looked_up = False

    def scans() -> Iterator[ScannedShard]:
        nonlocal looked_up
        for entry, scan in zip(entries, log.scans(names), strict=True):
            if scan.digest is not None:
                entry["digest"] = scan.digest
            looked_up |= scan.has_class_names
            yield scan

    write_columns(folder, scans(), num_samples)
    columns = open_columns(folder)
    _check_keys_differ(columns, shards.shards)
    return {
        "num_samples": num_samples,
        "num_labels": len(columns["class_counts"]),
        "is_multi_label": shards.labels.multi,
        "class_names_digest": shards.classes.digest() if looked_up and shards.classes is not None else None,
        "digest": columns_digest(columns),
        "settings": shards.settings_digest,
        "shards": entries,
    }


def _check_keys_differ(columns: dict[str, np.ndarray], shards: tuple[str, ...]) -> None:
    """Compares the keys where two hashes are equal; two keys of equal hash may both stay."""
    repeated = find_repeated(columns["key_hash"])
    if len(repeated) == 0:
        return
    seen: dict[bytes, int] = {}
    for row in np.flatnonzero(np.isin(columns["key_hash"], repeated)).tolist():
        shard = int(np.searchsorted(columns["shard_start"], row, "right")) - 1
        keys = columns["key_bytes"][int(columns["key_start"][shard]) : int(columns["key_start"][shard + 1])]
        begin = int(columns["key_offset"][row])
        is_last = row + 1 == int(columns["shard_start"][shard + 1])
        key = keys[begin : None if is_last else int(columns["key_offset"][row + 1])].tobytes()
        if key in seen:
            raise InputError(
                f"{shown(shards[shard])}: key {key.decode(errors='backslashreplace')!r} comes twice, first in "
                f"{shown(shards[seen[key]])}; every sample must have its own key"
            )
        seen[key] = shard


def _remove_stale(index_dir: Path, entries: list[dict[str, Any]]) -> None:
    """Removes indexes of earlier versions of these shards, and what builders killed a week ago or longer left behind."""
    now = {entry["place"]: entry for entry in entries}
    for meta_path in index_dir.glob(f"*/{META_FILE}"):
        meta = read_meta(meta_path.parent)
        if meta is not None and any(now.get(entry.get("place"), entry) != entry for entry in meta["shards"]):
            shutil.rmtree(meta_path.parent, ignore_errors=True)
    for beside in index_dir.glob(f"{_BUILDING}*"):
        with contextlib.suppress(OSError, ValueError):
            if time.time() - max(path.stat().st_mtime for path in (beside, *beside.iterdir())) > _STALE_SECONDS:
                shutil.rmtree(beside, ignore_errors=True)
