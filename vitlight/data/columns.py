"""The columns of an index on disk: one memory-mapped .npy file each, written shard by shard."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from vitlight.data.tar import SAMPLE_DTYPES, ScannedShard

__all__ = ["SAMPLE_COLUMNS", "columns_digest", "flush", "key_hash", "open_columns", "read_key", "write_columns"]

Columns = dict[str, np.ndarray]

SAMPLE_COLUMNS = ("shard", *SAMPLE_DTYPES, "key_hash")  # one row for each sample; these define the data
_DTYPES = {"shard": np.uint32, **SAMPLE_DTYPES, "key_hash": np.uint64, "key_offset": np.uint64, "key_bytes": np.uint8}
_CHUNK_ROWS = 1 << 20


def write_columns(folder: Path, scans: Iterator[ScannedShard]) -> None:
    """Appends the rows of each shard's scan to the columns in `folder`; memory holds one shard's rows at a time."""
    with contextlib.ExitStack() as stack:
        columns = {
            name: stack.enter_context(_Column(folder / f"{name}.npy", np.dtype(t))) for name, t in _DTYPES.items()
        }
        key_end = 0
        columns["key_offset"].append(np.zeros(1))
        for i, scan in enumerate(scans):
            for name, values in scan.columns.items():
                columns[name].append(values)
            columns["shard"].append(np.full(len(scan.keys), i))
            columns["key_hash"].append(np.array([key_hash(key) for key in scan.keys], dtype=np.uint64))
            ends = key_end + np.cumsum([len(key) for key in scan.keys], dtype=np.uint64)
            columns["key_offset"].append(ends)
            columns["key_bytes"].append(np.frombuffer(b"".join(scan.keys), np.uint8))
            key_end = int(ends[-1]) if len(ends) else key_end


def open_columns(folder: Path) -> Columns:
    """The columns in `folder`, memory-mapped and read-only. Raises OSError, EOFError or ValueError where one is torn."""
    columns = {}
    for name in _DTYPES:
        path = folder / f"{name}.npy"
        try:
            columns[name] = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError:  # a column of length 0 can be read, but not mapped
            columns[name] = np.load(path, allow_pickle=False)
    num_samples = len(columns["label"])
    lengths = {name: len(columns[name]) for name in SAMPLE_COLUMNS}
    if set(lengths.values()) != {num_samples} or len(columns["key_offset"]) != num_samples + 1:
        raise ValueError(f"{folder}: columns differ in length: {lengths}")
    return columns


def read_key(columns: Columns, i: int) -> bytes:
    begin, end = columns["key_offset"][i : i + 2].tolist()
    return columns["key_bytes"][begin:end].tobytes()


def key_hash(key: bytes) -> int:
    """blake2b of the key, 8 bytes, little-endian: what subsets, the validation split and augmentation are drawn by."""
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")


def columns_digest(columns: Columns) -> str:
    """32 hex digits over the rows of SAMPLE_COLUMNS."""
    digest = hashlib.blake2b(digest_size=16)
    for name in SAMPLE_COLUMNS:
        column = columns[name]
        digest.update(f"{name} {column.dtype.str} {len(column)};".encode())
        for begin in range(0, len(column), _CHUNK_ROWS):
            digest.update(column[begin : begin + _CHUNK_ROWS].tobytes())
    return digest.hexdigest()


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

    def append(self, values: np.ndarray) -> None:
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
