"""Bytes of a sample: positioned reads from local shards, with nothing buffered and nothing shared between processes."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vitlight.errors import InputError

__all__ = ["LocalStore"]


class LocalStore:
    """Reads ranges of local files by number; keeps at most `max_open` of them open. May be pickled to workers."""

    def __init__(self, paths: Sequence[Path], max_open: int = 256) -> None:
        self._paths = tuple(Path(path) for path in paths)
        self._max_open = max_open
        self._open: OrderedDict[int, int] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"_paths": self._paths, "_max_open": self._max_open, "_open": OrderedDict()}

    def _descriptor(self, shard: int) -> int:
        if shard in self._open:
            self._open.move_to_end(shard)
            return self._open[shard]
        if len(self._open) >= self._max_open:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest)
        try:
            self._open[shard] = os.open(self._paths[shard], os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(f"shard {self._paths[shard]} can't be read: {error.strerror}") from error
        return self._open[shard]

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of shard number `shard`. Raises InputError where the file is missing or shorter."""
        parts = []
        while size > 0:
            part = os.pread(self._descriptor(shard), size, offset)
            if not part:
                raise InputError(f"shard {self._paths[shard]} ends before byte {offset + size}; index it again")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
