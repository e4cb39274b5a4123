"""The columns of an index: of one tar in memory, and of all on disk in a memory-mapped .npy file each."""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

__all__ = [
    "SCAN_DTYPES",
    "ScannedShard",
    "columns_digest",
    "find_repeated",
    "flush",
    "key_hash",
    "open_columns",
    "write_columns",
]

Columns = dict[str, np.ndarray]

SCAN_DTYPES: dict[str, type[np.generic]] = {
    "offset": np.uint64,
    "size": np.uint32,
    "label": np.int32,
    "key_hash": np.uint64,
    "key_offset": np.uint32,
    "key_bytes": np.uint8,
    "extra_row": np.uint32,
    "extra_label": np.int32,
}
_SAMPLE_COLUMNS = ("offset", "size", "label", "key_hash", "key_offset")  # one row for each sample
_SHARD_DTYPES = {"shard_start": np.int64, "key_start": np.uint64, "num_bytes": np.uint64}
_EXTRA_COLUMNS = ("extra_row", "extra_label")
_CHUNK_ROWS = 1 << 20
_BUCKET_ROWS = 1 << 26


@dataclass(frozen=True)
class ScannedShard:
    """The n samples of one tar, in its order, as the columns of SCAN_DTYPES.

    offset, size, label (the only or first one), key_hash and key_offset have a row for each sample; key i begins at
    key_offset[i] of key_bytes, where all keys stand in a row. The further labels of multi-label samples are rows of
    extra_row (number of the sample in this tar; never falls) and extra_label.
    """

    columns: dict[str, np.ndarray]
    num_bytes: int
    digest: str | None = None
    """blake2b of the whole tar, 32 hex digits, where it was fetched."""
    has_class_names: bool = False
    """Whether labels were given as names."""

    @classmethod
    def empty(cls) -> "ScannedShard":
        return cls({name: np.zeros(0, dtype) for name, dtype in SCAN_DTYPES.items()}, 0)

    def __len__(self) -> int:
        return len(self.columns["label"])

    @property
    def keys(self) -> list[bytes]:
        data = self.columns["key_bytes"].tobytes()
        begins = self.columns["key_offset"].tolist()
        return [data[begin:end] for begin, end in zip(begins, [*begins[1:], len(data)], strict=True)] if begins else []

    def labels(self) -> list[tuple[int, ...]]:
        """All labels of each sample."""
        found: list[tuple[int, ...]] = [(label,) for label in self.columns["label"].tolist()]
        for row, label in zip(self.columns["extra_row"].tolist(), self.columns["extra_label"].tolist(), strict=True):
            found[row] += (label,)
        return found


def key_hash(key: bytes) -> int:
    """blake2b of the key, 8 bytes, little-endian: what subsets, the validation split and augmentation are drawn by."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def write_columns(folder: Path, scans: Iterable[ScannedShard], num_samples: int) -> None:
    """Writes the columns of S shards' scans, n = `num_samples` in all, into `folder`; memory holds one scan at a time.

    To the columns of a scan, with a row for each sample, come `shard_start` (S + 1,), `key_start` (S + 1,): where each
    shard's samples and keys begin, `num_bytes` (S,) of the tars, and `class_counts`: samples of each label, from 0 to the
    largest. `extra_row` counts from the first sample of all, and it and `extra_label` are left out where they are empty.
    """
    row_dtype = np.uint32 if num_samples <= 1 << 32 else np.uint64
    dtypes = {**SCAN_DTYPES, **_SHARD_DTYPES, "extra_row": row_dtype, "class_counts": np.int64}
    class_counts = np.zeros(0, np.int64)
    rows = key_bytes = 0
    with contextlib.ExitStack() as stack:
        columns = {
            name: stack.enter_context(_Column(folder / f"{name}.npy", np.dtype(dtype)))
            for name, dtype in dtypes.items()
        }
        columns["shard_start"].append([0])
        columns["key_start"].append([0])
        for scan in scans:
            for name, values in scan.columns.items():
                columns[name].append(values + np.uint64(rows) if name == "extra_row" else values)
            class_counts = _add_counts(class_counts, scan)
            rows += len(scan)
            key_bytes += len(scan.columns["key_bytes"])
            columns["shard_start"].append([rows])
            columns["key_start"].append([key_bytes])
            columns["num_bytes"].append([scan.num_bytes])
        assert rows == num_samples, f"{rows} samples, not {num_samples}"
        columns["class_counts"].append(class_counts)
    if columns["extra_row"].length == 0:
        for name in _EXTRA_COLUMNS:
            (folder / f"{name}.npy").unlink()


def _add_counts(counts: np.ndarray, scan: ScannedShard) -> np.ndarray:
    labels = np.concatenate([scan.columns["label"], scan.columns["extra_label"]])
    added = np.bincount(labels, minlength=len(counts))
    added[: len(counts)] += counts
    return added


def open_columns(folder: Path) -> Columns:
    """The columns in `folder`, memory-mapped and read-only. Raises OSError, EOFError or ValueError where one is torn."""
    names = [*SCAN_DTYPES, *_SHARD_DTYPES, "class_counts"]
    if not (folder / "extra_row.npy").exists():
        names = [name for name in names if name not in _EXTRA_COLUMNS]
    columns = {}
    for name in names:
        path = folder / f"{name}.npy"
        try:
            columns[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # a column of length 0 can be read, but not mapped
            columns[name] = np.load(path, allow_pickle=False)
    lengths = {name: len(columns[name]) for name in _SAMPLE_COLUMNS}
    if set(lengths.values()) != {int(columns["shard_start"][-1])}:
        raise ValueError(f"{folder}: columns differ in length: {lengths}")
    if (
        len(columns["shard_start"]) != len(columns["key_start"])
        or len(columns["key_bytes"]) != columns["key_start"][-1]
    ):
        raise ValueError(f"{folder}: the columns of the shards don't fit together")
    return columns


def columns_digest(columns: Columns) -> str:
    """32 hex digits over each sample's shard number, offset, size, labels and key hash."""
    digest = hashlib.blake2b(digest_size=16)
    start = columns["shard_start"]
    num_samples = int(start[-1])
    digest.update(f"shard {np.dtype(np.uint32).str} {num_samples};".encode())
    for begin in range(0, num_samples, _CHUNK_ROWS):
        rows = np.arange(begin, min(begin + _CHUNK_ROWS, num_samples))
        digest.update((np.searchsorted(start, rows, "right") - 1).astype(np.uint32).tobytes())
    for name in ("offset", "size", "label", "key_hash", *(name for name in _EXTRA_COLUMNS if name in columns)):
        column = columns[name]
        digest.update(f"{name} {column.dtype.str} {len(column)};".encode())
        for chunk in _chunks(column):
            digest.update(chunk.tobytes())
    return digest.hexdigest()


def find_repeated(hashes: np.ndarray) -> np.ndarray:
    """The values that come more than once, ascending; holds at most half a GiB of them in memory at a time."""
    num_bits = max(0, len(hashes) // _BUCKET_ROWS).bit_length()
    found = []
    for bucket in range(1 << num_bits):
        parts = (
            chunk if num_bits == 0 else chunk[chunk >> np.uint64(64 - num_bits) == bucket] for chunk in _chunks(hashes)
        )
        values = np.concatenate([np.zeros(0, np.uint64), *parts])
        values.sort()
        found.append(np.unique(values[1:][values[1:] == values[:-1]]))
    return np.concatenate(found)


def _chunks(column: np.ndarray) -> Iterator[np.ndarray]:
    return (column[begin : begin + _CHUNK_ROWS] for begin in range(0, len(column), _CHUNK_ROWS))


def flush(file: Any) -> None:
    """Brings what was written to an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


class _Column:
    """A one-dimensional .npy file that grows: numpy leaves room in the header for the length, filled in at the end."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.file: BinaryIO = path.open("wb")
        self.dtype = dtype.newbyteorder("<")
        self.length = 0

    def __enter__(self) -> "_Column":
        self._write_header()
        self.begin = self.file.tell()
        return self

    def append(self, values: Any) -> None:
        self.length += len(values)
        self.file.write(np.ascontiguousarray(values, self.dtype).data)

    def __exit__(self, *_: object) -> None:
        self.file.seek(0)
        self._write_header()
        assert self.file.tell() == self.begin, "the .npy header grew"
        flush(self.file)
        self.file.close()

    def _write_header(self) -> None:
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)
