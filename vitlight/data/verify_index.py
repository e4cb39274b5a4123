"""Holds shards against what an index remembers of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from vitlight.data.columns import ScannedShard
from vitlight.data.faults import Fault, Kind
from vitlight.data.shard_index import META_FILE, ShardIndex, open_index, read_meta
from vitlight.data.shard_set import ShardSet, describe_shard, shard_place
from vitlight.data.sources import is_remote, local_path

__all__ = ["IndexedShard", "IndexedShards"]


@dataclass(frozen=True)
class IndexedShard:
    """What the newest index that knows a shard remembers of it."""

    entry: dict[str, Any]
    index: ShardIndex | None
    """None where it was made with other settings: then its rows can't be compared."""
    number: int
    """Of the shard in the index."""

    def change_of_file(self, shard: str, digest: str | None) -> str | None:
        """What is not as it was, in words; None where nothing is. `digest` is that of a remote shard."""
        if is_remote(shard):
            was = self.entry.get("digest")
            changed = was is not None and digest is not None and was != digest
            return f"digest {digest}, but the index has {was}; index it again" if changed else None
        now = describe_shard(shard)
        if now["num_bytes"] != self.entry["num_bytes"]:
            return f"{now['num_bytes']} bytes, but the index has {self.entry['num_bytes']}; index it again"
        if now["mtime_ns"] != self.entry["mtime_ns"]:
            times = (_utc(now["mtime_ns"]), _utc(self.entry["mtime_ns"]))
            return f"modified {times[0]}, but the index has {times[1]}; index it again"
        return None

    def changes_of_samples(self, shard: str, scan: ScannedShard, faulty: set[str]) -> Iterator[Fault]:
        """Samples that are new, gone, elsewhere or labelled otherwise; nothing is said of the `faulty` keys."""
        if self.index is None or _is_same(self.index, self.number, scan):
            return
        was = _index_samples(self.index, self.number)
        for key, row in _scan_samples(scan).items():
            if key not in was:
                yield Fault(Kind.CHANGED_SAMPLE, shard, key, "the index doesn't have this sample; index it again")
            elif row != was[key]:
                names = ("offset", "size", "labels")
                differ = ", ".join(
                    f"{name} {new}, but the index has {old}"
                    for name, new, old in zip(names, row, was[key], strict=True)
                    if new != old
                )
                yield Fault(Kind.CHANGED_SAMPLE, shard, key, f"{differ}; index it again")
            was.pop(key, None)
        for key in was:
            if key not in faulty:
                yield Fault(Kind.CHANGED_SAMPLE, shard, key, "the index has this sample, the shard does not")


class IndexedShards:
    """All shards that an index of the set's `index_dirs` knows; of several indexes the newest is believed.

    An index beside the shards, which moves with them, knows them by name; one elsewhere by their place.
    """

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._newest: list[tuple[Path, dict[str, Any]]] = []
        self._found: dict[tuple[Path, str], tuple[Path, dict[str, Any], int]] = {}
        self._indexes: dict[Path, ShardIndex | None] = {}
        for index_dir in shards.index_dirs:
            paths = sorted(index_dir.glob(f"*/{META_FILE}"), key=lambda path: path.stat().st_mtime_ns)
            metas = [(path.parent, meta) for path in paths if (meta := read_meta(path.parent)) is not None]
            for folder, meta in metas:
                for number, entry in enumerate(meta["shards"]):
                    self._found[index_dir, entry["place"]] = folder, meta, number
                    self._found[index_dir, entry["name"]] = folder, meta, number
            self._newest += [(index_dir, meta) for _, meta in metas[-1:]]

    def find(self, shard: str) -> IndexedShard | None:
        for index_dir in self._shards.index_dirs:
            name = local_path(shard).name if _is_beside(index_dir, shard) else shard_place(shard)
            if (index_dir, name) in self._found:
                folder, meta, number = self._found[index_dir, name]
                return IndexedShard(meta["shards"][number], self._index(folder, meta), number)
        return None

    def _index(self, folder: Path, meta: dict[str, Any]) -> ShardIndex | None:
        if folder not in self._indexes:
            is_alike = meta["settings"] == self._shards.settings_digest
            names = [entry["name"] for entry in meta["shards"]]
            self._indexes[folder] = open_index(folder, names, self._shards.classes) if is_alike else None
        return self._indexes[folder]

    def missing(self, folder: Path) -> list[str]:
        """Names of the shards that the newest index has in this folder, and that are not in the set."""
        here = {local_path(shard).name for shard in self._shards.shards}
        for index_dir, meta in self._newest:
            entries = {entry["name"]: entry["place"] for entry in meta["shards"]}
            names = {
                name
                for name, place in entries.items()
                if index_dir == folder / "index" or place == shard_place(str(folder / name))
            }
            if names & here:
                return sorted(names - here)
        return []


def _is_beside(index_dir: Path, shard: str) -> bool:
    return not is_remote(shard) and index_dir == local_path(shard).parent / "index"


def _is_same(index: ShardIndex, number: int, scan: ScannedShard) -> bool:
    if index.extra_row is not None or len(scan.columns["extra_row"]):
        return False
    begin, end = index.shard_start[number : number + 2].tolist()
    names = ("offset", "size", "label", "key_hash")
    return all(np.array_equal(getattr(index, name)[begin:end], scan.columns[name]) for name in names)


def _index_samples(index: ShardIndex, number: int) -> dict[str, tuple[int, int, list[int]]]:
    """(offset, size, labels) by key."""
    rows = np.arange(*index.shard_start[number : number + 2].tolist())
    columns = (index.offset[rows].tolist(), index.size[rows].tolist(), index.labels_of(rows))
    return {
        _shown_key(index.key(row).encode(errors="surrogateescape")): (offset, size, labels.tolist())
        for row, offset, size, labels in zip(rows.tolist(), *columns, strict=True)
    }


def _scan_samples(scan: ScannedShard) -> dict[str, tuple[int, int, list[int]]]:
    columns = (scan.columns["offset"].tolist(), scan.columns["size"].tolist(), scan.labels())
    return {
        _shown_key(key): (offset, size, list(labels))
        for key, offset, size, labels in zip(scan.keys, *columns, strict=True)
    }


def _shown_key(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _utc(nanoseconds: int) -> str:
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC).isoformat(" ", "seconds")
