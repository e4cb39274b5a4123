"""The index of a set of tar shards: where every image lies, its class and its key, in memory-mapped columns.

An index is a folder `<index_dir>/<fingerprint>/` of `.npy` columns and `meta.json`, where the fingerprint hashes the
shards' names, sizes and modification times. So an index is found only by the very shards it was made from; several sets
of shards (all of a folder, the first ten of it) can have theirs side by side; and, since the folder is written beside and
renamed, it is whole or absent.

A sample takes 28 bytes, and 8 more beside the bytes of its key.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from braceexpand import UnbalancedBracesError, braceexpand  # type: ignore[attr-defined]

from vitlight.data.columns import columns_digest, flush, open_columns, read_key, write_columns
from vitlight.data.progress import progress
from vitlight.data.tar import ScannedShard, scan_shard
from vitlight.errors import InputError

__all__ = ["CLASS_NAMES_FILE", "UNFINISHED_FILE", "ShardIndex", "build_index", "load_index", "resolve_shards"]

CLASS_NAMES_FILE = "classes.txt"  # beside the shards or in index_dir: line i names class i
UNFINISHED_FILE = ".unfinished"  # beside shards whose writer has not come to its end

_FORMAT = 1
_SHARDS_PER_PROCESS = 64
_STALE_SECONDS = 24 * 3600


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """n samples in the order of their shards; the columns are memory-mapped and read-only."""

    shards: tuple[Path, ...]
    shard: np.ndarray
    """(n,) uint32: which of `shards`; never falls."""
    offset: np.ndarray
    """(n,) uint64: of the image's first byte inside its shard."""
    size: np.ndarray
    """(n,) uint32: bytes of the image."""
    label: np.ndarray
    """(n,) int32, from 0."""
    key_hash: np.ndarray
    """(n,) uint64: blake2b of the key, 8 bytes, little-endian."""
    key_offset: np.ndarray
    """(n + 1,) uint64: key i is key_bytes[key_offset[i]:key_offset[i + 1]]."""
    key_bytes: np.ndarray
    """uint8: all keys in a row, UTF-8."""
    class_names: tuple[str, ...] | None
    num_classes: int
    """Number of class names, or 1 + the largest label where there are none."""
    digest: str
    """32 hex digits over keys, labels, sizes and offsets: what defines the data, wherever it lies."""

    def __len__(self) -> int:
        return len(self.label)

    def key(self, i: int) -> str:
        """The key of sample i, folders included, as webdataset's `__key__`."""
        begin, end = self.key_offset[i : i + 2].tolist()
        return self.key_bytes[begin:end].tobytes().decode(errors="surrogateescape")

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader's worker maps the same files; the columns themselves, gigabytes at scale, are not sent to it."""
        assert isinstance(self.label, np.memmap) and self.label.filename is not None
        folder = Path(self.label.filename).parent
        return _reopen, (folder, self.shards, self.class_names, self.num_classes, self.digest)


def _reopen(
    folder: Path, shards: tuple[Path, ...], class_names: tuple[str, ...] | None, num_classes: int, digest: str
) -> ShardIndex:
    return ShardIndex(
        shards=shards, class_names=class_names, num_classes=num_classes, digest=digest, **open_columns(folder)
    )


def load_index(source: str | Path, index_dir: Path | None = None, *, num_processes: int | None = None) -> ShardIndex:
    """The index of the shards that `source` names, built first where there is none for these very files.

    `source`: a folder of tars, a brace pattern (`x-{000000..000012}.tar`), a glob, or one tar. `index_dir` is by default
    `index/` beside the first shard. Raises InputError as `build_index` does, and where `source` names no tar.
    """
    shards = resolve_shards(source)
    index_dir = index_dir or shards[0].parent / "index"
    entries = _stat_shards(shards)
    return _open(index_dir / _fingerprint(entries), shards, index_dir) or build_index(
        shards, index_dir, num_processes=num_processes
    )


def build_index(
    shards: Sequence[Path], index_dir: Path, *, check_images: bool = True, num_processes: int | None = None
) -> ShardIndex:
    """Indexes the shards in one pass over their headers and labels, and writes the index under `index_dir`.

    Safe to run twice at once. `num_processes`: by default one for each 64 shards, up to the number of cores; one is this
    process itself, more are spawned. Raises InputError for what `scan_shard` raises it for, a key that comes twice, a
    label with no class name, and no sample at all.
    """
    shards = tuple(Path(shard) for shard in shards)
    entries = _stat_shards(shards)
    folder = index_dir / _fingerprint(entries)
    if num_processes is None:
        num_processes = max(1, min(os.cpu_count() or 1, len(shards) // _SHARDS_PER_PROCESS))
    try:
        index_dir.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".building-", dir=index_dir))
    except OSError as error:
        raise InputError(
            f"{index_dir}: can't write the index here ({error.strerror}); set index_dir to another folder"
        ) from error
    try:
        beside.chmod(0o755)
        with contextlib.closing(_scan_all(shards, check_images, num_processes)) as scans:
            write_columns(beside, scans)
        columns = open_columns(beside)
        _check_keys_differ(columns, shards)
        num_samples = len(columns["label"])
        if num_samples == 0:
            raise InputError(
                f"{shards[0]}: no sample in {'this shard' if len(shards) == 1 else f'any of {len(shards)} shards'}"
            )
        num_labels = 1 + int(columns["label"].max())
        class_names = _read_class_names(shards, index_dir)
        if class_names is not None and num_labels > len(class_names):
            i = int(np.argmax(columns["label"]))
            sample = f"{shards[columns['shard'][i]]}: sample {_key(columns, i)!r}"
            raise InputError(
                f"{sample} has label {num_labels - 1}, but {CLASS_NAMES_FILE} names {len(class_names)} classes"
            )
        meta = {
            "num_samples": num_samples,
            "num_labels": num_labels,
            "digest": columns_digest(columns),
            "shards": entries,
        }
        with (beside / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            flush(file)
        del columns
        if folder.exists() and _open(folder, shards, index_dir) is None:
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another process was first, with the same content
            beside.rename(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    _remove_stale(index_dir, entries)
    index = _open(folder, shards, index_dir)
    if index is None:
        raise InputError(f"{folder}: can't read back the index just written; set index_dir to another folder")
    return index


def resolve_shards(source: str | Path) -> tuple[Path, ...]:
    """The tars that `source` names, as in load_index; those of a folder and of a glob in the order of their names."""
    text = str(source)
    path = Path(text)
    if path.is_dir():
        _check_finished([path])
        found = sorted(path.glob("*.tar"))
        if not found:
            inside = sorted(str(tar.parent) for tar in path.glob("*/*.tar"))
            hint = f"; did you mean {' or '.join(dict.fromkeys(inside))}?" if inside else ""
            raise InputError(f"{path}: no *.tar in this folder{hint}")
    elif "{" in text and not path.exists():
        try:
            found = [Path(each) for each in braceexpand(text)]
        except UnbalancedBracesError as error:
            raise InputError(f"{text}: the braces of this pattern don't match") from error
    elif any(mark in text for mark in "*?[") and not path.exists():
        found = sorted(Path(each) for each in glob.glob(text, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute pattern)
        if not found:
            raise InputError(f"{text}: no file matches this pattern")
    else:
        found = [path]
    _check_finished({shard.parent for shard in found})
    return tuple(found)


def _check_finished(folders: Iterable[Path]) -> None:
    for folder in folders:
        if (folder / UNFINISHED_FILE).exists():
            raise InputError(f"{folder}: the writing of these shards was cut off; write them again")


def _stat_shards(shards: Sequence[Path]) -> list[dict[str, Any]]:
    entries = []
    for shard in shards:
        try:
            stat = shard.stat()
        except OSError as error:
            raise InputError(f"{shard}: can't read this shard: {error.strerror}") from error
        entries.append({"name": shard.name, "num_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
    if not entries:
        raise InputError("no shard was given")
    return entries


def _fingerprint(entries: list[dict[str, Any]]) -> str:
    """The size alone would not do: two tars with other labels can be of equal size."""
    return hashlib.blake2b(json.dumps([_FORMAT, entries]).encode(), digest_size=8).hexdigest()


def _scan_all(shards: tuple[Path, ...], check_images: bool, num_processes: int) -> Generator[ScannedShard]:
    """A scan of every shard, in order. The processes are spawned; at most two scans a process wait in memory."""
    scan = partial(scan_shard, check_images=check_images)
    with progress("Indexing", len(shards), "shards") as advance:
        if num_processes == 1:
            for shard in shards:
                yield scan(shard)
                advance(1)
            return
        with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as pool:
            waiting = [pool.submit(scan, shard) for shard in shards[: 2 * num_processes]]
            try:
                for i in range(len(shards)):
                    yield waiting.pop(0).result()
                    advance(1)
                    if (after := i + 2 * num_processes) < len(shards):
                        waiting.append(pool.submit(scan, shards[after]))
            finally:
                pool.shutdown(cancel_futures=True)


def _open(folder: Path, shards: tuple[Path, ...], index_dir: Path) -> ShardIndex | None:
    """The index in this folder, or None where there is none that is whole."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        columns = open_columns(folder)
    except (OSError, ValueError, EOFError):
        return None
    if len(columns["label"]) != meta["num_samples"]:
        return None
    class_names = _read_class_names(shards, index_dir)
    num_classes = len(class_names) if class_names is not None else meta["num_labels"]
    return ShardIndex(shards=shards, class_names=class_names, num_classes=num_classes, digest=meta["digest"], **columns)


def _read_class_names(shards: tuple[Path, ...], index_dir: Path) -> tuple[str, ...] | None:
    for folder in (index_dir, shards[0].parent):
        with contextlib.suppress(FileNotFoundError):
            return tuple((folder / CLASS_NAMES_FILE).read_text(encoding="utf-8").splitlines())
    return None


def _key(columns: dict[str, np.ndarray], i: int) -> str:
    return read_key(columns, i).decode(errors="backslashreplace")


def _check_keys_differ(columns: dict[str, np.ndarray], shards: tuple[Path, ...]) -> None:
    """Sorts the hashes (8 bytes a sample in memory) and compares the keys only where two hashes are equal."""
    ordered = np.sort(columns["key_hash"])
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(repeated) == 0:
        return
    seen: dict[str, int] = {}
    for i in np.flatnonzero(np.isin(columns["key_hash"], repeated)).tolist():
        key = _key(columns, i)
        if key in seen:
            first, second = shards[columns["shard"][seen[key]]], shards[columns["shard"][i]]
            raise InputError(f"{second}: key {key!r} comes twice, first in {first}; every sample must have its own key")
        seen[key] = i


def _remove_stale(index_dir: Path, entries: list[dict[str, Any]]) -> None:
    """Removes indexes of earlier versions of these shards, and what builders killed a day ago or longer left behind."""
    now = {entry["name"]: entry for entry in entries}
    for meta_path in index_dir.glob("*/meta.json"):
        with contextlib.suppress(OSError, ValueError):
            meta = json.loads(meta_path.read_bytes())
            if any(now.get(entry["name"], entry) != entry for entry in meta["shards"]):
                shutil.rmtree(meta_path.parent, ignore_errors=True)
    for beside in index_dir.glob(".building-*"):
        with contextlib.suppress(OSError):
            if time.time() - beside.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(beside, ignore_errors=True)
