"""Scans of shards, kept as they come, so that an index whose building was killed goes on where it stopped.

A log is a file of records that only grows: a line of JSON, then the columns of one scan, one after another. Every builder
writes a file of its own and reads those of earlier ones, so two that build at once can't spoil each other's.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vitlight.data.columns import SCAN_DTYPES, ScannedShard, flush

__all__ = ["SCAN_LOG_PREFIX", "ScanLog"]

SCAN_LOG_PREFIX = "scans-"

_FLUSH_SECONDS = 30.0
_MAX_LINE_BYTES = 4096


class ScanLog:
    """Scans by the name that the builder gives each shard (one that changes with the shard).

    What was written before a process was killed is kept; after a power failure, all but the last half minute. A record that
    is torn, and all behind it, counts as absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, tuple[Path, int]] = {}
        self._num_samples: dict[str, int] = {}
        for path in sorted(folder.glob(f"{SCAN_LOG_PREFIX}*")):
            with path.open("rb") as file:
                place = 0
                while (record := _read_record(file)) is not None:
                    self._add_place(*record, path, place)
                    place = file.tell()
        descriptor, name = tempfile.mkstemp(prefix=SCAN_LOG_PREFIX, dir=folder)
        self._file = os.fdopen(descriptor, "wb")
        self._path = Path(name)
        self._flushed = time.monotonic()

    def _add_place(self, name: str, scan: ScannedShard, path: Path, place: int) -> None:
        self._places[name] = path, place
        self._num_samples[name] = len(scan)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def num_samples(self, names: list[str]) -> int:
        return sum(self._num_samples[name] for name in names)

    def add(self, name: str, scan: ScannedShard) -> None:
        place = self._file.tell()
        payload = b"".join(np.ascontiguousarray(scan.columns[column], dtype).tobytes() for column, dtype in _columns())
        line = {
            "name": name,
            "num_bytes": scan.num_bytes,
            "digest": scan.digest,
            "has_class_names": scan.has_class_names,
            "lengths": [len(scan.columns[column]) for column, _ in _columns()],
            "check": _check(payload),
        }
        self._file.write(json.dumps(line).encode() + b"\n" + payload)
        self._file.flush()
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            flush(self._file)
            self._flushed = time.monotonic()
        self._add_place(name, scan, self._path, place)

    def scans(self, names: list[str]) -> Iterator[ScannedShard]:
        """The scans of these names, which the log holds, in this order."""
        files: dict[Path, BinaryIO] = {}
        try:
            for name in names:
                path, place = self._places[name]
                if path not in files:
                    files[path] = path.open("rb")
                files[path].seek(place)
                record = _read_record(files[path])
                assert record is not None and record[0] == name, f"{path}: changed while it was read"
                yield record[1]
        finally:
            for file in files.values():
                file.close()

    def close(self) -> None:
        self._file.close()


def _columns() -> list[tuple[str, np.dtype]]:
    return [(name, np.dtype(dtype).newbyteorder("<")) for name, dtype in SCAN_DTYPES.items()]


def _check(payload: bytes) -> str:
    return hashlib.blake2b(payload, digest_size=8).hexdigest()


def _read_record(file: BinaryIO) -> tuple[str, ScannedShard] | None:
    """The record at the file's position, which moves behind it; None at the end and where it is torn."""
    try:
        line = json.loads(file.readline(_MAX_LINE_BYTES))
        lengths = dict(zip(SCAN_DTYPES, line["lengths"], strict=True))
        num_bytes = sum(lengths[name] * dtype.itemsize for name, dtype in _columns())
    except (ValueError, TypeError, KeyError):
        return None
    payload = file.read(num_bytes)
    if len(payload) < num_bytes or _check(payload) != line["check"]:
        return None
    columns, begin = {}, 0
    for name, dtype in _columns():
        columns[name] = np.frombuffer(payload, dtype, lengths[name], begin)
        begin += lengths[name] * dtype.itemsize
    return line["name"], ScannedShard(columns, line["num_bytes"], line["digest"], line["has_class_names"])
