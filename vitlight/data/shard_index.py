"""ShardIndex: where every image of a set of tar shards lies, its labels and its key, in memory-mapped columns.

A sample takes 28 bytes beside those of its key, and 8 for each label after its first. Opening an index reads none of them.
"""

import contextlib
import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitlight.data.columns import open_columns
from vitlight.data.labels import ClassNames
from vitlight.errors import InputError

__all__ = ["META_FILE", "ShardIndex", "open_index", "read_meta"]

META_FILE = "meta.json"


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """n samples in the order of their S shards; the columns are memory-mapped and read-only."""

    shards: tuple[str, ...]
    """Local paths, URLs and `pipe:` commands, as `resolve_shards` gives them."""
    folder: Path
    """Where the index lies."""
    shard_start: np.ndarray
    """(S + 1,) int64: rows shard_start[s]:shard_start[s + 1] lie in shard s."""
    num_bytes: np.ndarray
    """(S,) uint64: of the shards."""
    offset: np.ndarray
    """(n,) uint64: of the image's first byte inside its shard."""
    size: np.ndarray
    """(n,) uint32: bytes of the image."""
    label: np.ndarray
    """(n,) int32, from 0: the only or the first label."""
    key_hash: np.ndarray
    """(n,) uint64: blake2b of the key, 8 bytes, little-endian."""
    key_start: np.ndarray
    """(S + 1,) uint64: where the keys of each shard begin in key_bytes."""
    key_offset: np.ndarray
    """(n,) uint32: where each key begins behind its shard's first."""
    key_bytes: np.ndarray
    """uint8: all keys in a row, UTF-8."""
    extra_row: np.ndarray | None
    """(m,) uint32 or uint64, never falling: the samples of the labels in extra_label; None where every sample has one."""
    extra_label: np.ndarray | None
    """(m,) int32: labels after the first."""
    class_counts: np.ndarray
    """(num_classes,) int64: samples that have each label."""
    class_names: tuple[str, ...] | None
    num_classes: int
    """Number of class names, or 1 + the largest label where there are none."""
    is_multi_label: bool
    """Whether samples may have several labels: the setting, also where none of these has."""
    digest: str
    """32 hex digits over key hashes, labels, sizes and offsets: what defines the data, wherever it lies."""
    shard_digests: tuple[str, ...] | None
    """blake2b of each shard, 32 hex digits, as it was fetched ("" for a local one); None where all are local."""

    def __len__(self) -> int:
        return len(self.label)

    def key(self, i: int) -> str:
        """The key of sample i, folders included, as webdataset's `__key__`."""
        shard = int(self.shard_of(np.array([i]))[0])
        is_last = i + 1 == int(self.shard_start[shard + 1])
        start = int(self.key_start[shard])
        end = int(self.key_start[shard + 1]) if is_last else start + int(self.key_offset[i + 1])
        return self.key_bytes[start + int(self.key_offset[i]) : end].tobytes().decode(errors="surrogateescape")

    def shard_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The shard number of each of rows (B,)."""
        return np.searchsorted(self.shard_start, np.asarray(rows, np.int64), "right") - 1

    def labels_of(self, rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """All labels of each of rows (B,), in the order they were given; each comes once."""
        first = self.label[rows].astype(np.int64)
        if self.extra_row is None or self.extra_label is None:
            return [first[i : i + 1] for i in range(len(first))]
        wanted = np.asarray(rows).astype(self.extra_row.dtype)  # another dtype would make searchsorted copy the column
        begins, ends = (np.searchsorted(self.extra_row, wanted, side).tolist() for side in ("left", "right"))
        return [
            np.concatenate([first[i : i + 1], self.extra_label[begin:end]])
            for i, (begin, end) in enumerate(zip(begins, ends, strict=True))
        ]

    def will_need(self, shards: Sequence[int]) -> None:
        """Has the rows of these shards read from the disk, all at once; by faults, they would come one after another."""
        for column in (self.offset, self.size, self.label, self.key_hash):
            if not isinstance(column, np.memmap):
                continue
            first_byte = column.offset % mmap.ALLOCATIONGRANULARITY
            for begin, end in self.shard_start[np.add.outer(np.asarray(shards), [0, 1])].tolist():
                start = (first_byte + begin * column.itemsize) // mmap.PAGESIZE * mmap.PAGESIZE
                length = first_byte + end * column.itemsize - start
                if length > 0:
                    column._mmap.madvise(mmap.MADV_WILLNEED, start, length)  # type: ignore[attr-defined]

    def release(self) -> None:
        """Gives back the memory of the pages that were read; they are mapped again when they are read again."""
        for column in vars(self).values():
            if isinstance(column, np.memmap):
                column._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined]

    def __reduce__(self) -> tuple[Any, ...]:
        """A loader's worker maps the same files; the columns themselves, gigabytes at scale, are not sent to it."""
        return _open_again, (self.folder, self.shards, self.class_names, self.digest)


def open_index(folder: Path, shards: Sequence[str], classes: ClassNames | None) -> ShardIndex | None:
    """The index in this folder, or None where there is none that is whole or the class names that it looked up differ.

    Raises InputError where it has labels that `classes` doesn't name.
    """
    meta = read_meta(folder)
    if meta is None:
        return None
    looked_up = meta["class_names_digest"]
    if looked_up is not None and (classes is None or classes.digest() != looked_up):
        return None
    index = _open(folder, meta, tuple(shards), None if classes is None else classes.names)
    if index is not None and classes is not None and meta["num_labels"] > len(classes.names):
        raise InputError(
            f"{folder}: label {meta['num_labels'] - 1} comes in these shards, but {classes.file} names "
            f"{len(classes.names)} classes"
        )
    return index


def read_meta(folder: Path) -> dict[str, Any] | None:
    """What the index in this folder says of itself; None where there is none."""
    with contextlib.suppress(OSError, ValueError):
        meta = json.loads((folder / META_FILE).read_bytes())
        return meta if isinstance(meta, dict) else None
    return None


def _open(
    folder: Path, meta: dict[str, Any], shards: tuple[str, ...], class_names: tuple[str, ...] | None
) -> ShardIndex | None:
    try:
        columns = open_columns(folder)
    except (OSError, ValueError, EOFError):
        return None
    if len(columns["label"]) != meta["num_samples"] or len(columns["num_bytes"]) != len(shards):
        return None
    extras = {name: columns.pop(name, None) for name in ("extra_row", "extra_label")}
    num_classes = max(len(class_names or ()), meta["num_labels"])
    counts = columns.pop("class_counts")
    digests = tuple(entry.get("digest", "") for entry in meta["shards"])
    return ShardIndex(
        shards=shards,
        folder=folder,
        class_counts=np.concatenate([counts, np.zeros(num_classes - len(counts), np.int64)]),
        class_names=class_names,
        num_classes=num_classes,
        is_multi_label=meta["is_multi_label"],
        digest=meta["digest"],
        shard_digests=digests if any(digests) else None,
        extra_row=extras["extra_row"],
        extra_label=extras["extra_label"],
        **columns,
    )


def _open_again(folder: Path, shards: tuple[str, ...], class_names: tuple[str, ...] | None, digest: str) -> ShardIndex:
    meta = read_meta(folder)
    index = None if meta is None else _open(folder, meta, shards, class_names)
    if index is None or index.digest != digest:
        raise InputError(f"{folder}: this index was removed or replaced while it was in use; start again")
    return index
