"""Bytes of a sample: positioned reads from shards, with nothing buffered and nothing shared between processes."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitlight.data.cache import ShardCache
from vitlight.data.sources import is_remote, local_path
from vitlight.errors import InputError

__all__ = ["CachedStore", "LocalStore", "Store", "open_store"]


class Store(Protocol):
    """Reads ranges of shards by their number. May be pickled to workers."""

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of shard number `shard`. Raises InputError where they can't be had."""
        ...

    def close(self) -> None: ...


class LocalStore:
    """Reads ranges of local files; keeps at most `max_open` of them open."""

    def __init__(self, paths: Sequence[Path | str], max_open: int = 256) -> None:
        self._paths = tuple(paths)
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
            self._open[shard] = os.open(local_path(str(self._paths[shard])), os.O_RDONLY | os.O_CLOEXEC)
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


class CachedStore:
    """Reads remote shards through a cache, fetching those that are not there, and local ones where they lie.

    num_bytes, digests: of each shard as it was indexed, where they are known; a remote shard that differs is refused.
    """

    def __init__(
        self,
        shards: Sequence[str],
        num_bytes: Sequence[int] | NDArray[np.uint64] | None,
        digests: Sequence[str] | None,
        cache: ShardCache,
    ) -> None:
        self._shards, self._num_bytes, self._digests, self._cache = tuple(shards), num_bytes, digests, cache
        self._local = LocalStore(self._shards)

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """`size` bytes at `offset` of shard number `shard`. Raises InputError as LocalStore and ShardCache do."""
        name = self._shards[shard]
        if not is_remote(name):
            return self._local.read(shard, offset, size)
        num_bytes = None if self._num_bytes is None else int(self._num_bytes[shard])
        digest = None if self._digests is None else self._digests[shard] or None
        return self._cache.read(name, offset, size, num_bytes, digest)

    def close(self) -> None:
        self._local.close()


def open_store(
    shards: Sequence[str],
    num_bytes: Sequence[int] | NDArray[np.uint64] | None = None,
    digests: Sequence[str] | None = None,
    cache: ShardCache | None = None,
) -> Store:
    """The store for these shards: local, or through `cache` where any of them is remote.

    digests: 32 hex digits of blake2b, or an empty string where a shard's is not known, as a local one's. Raises InputError
    where a remote shard meets no cache, or is larger than the cache's bound.
    """
    remote = [i for i, shard in enumerate(shards) if is_remote(shard)]
    if not remote:
        return LocalStore(shards)
    if cache is None:
        raise InputError(
            f"{len(remote)} of {len(shards)} shards are remote; set data.cache_dir to a folder to keep them in"
        )
    if num_bytes is not None and cache.max_bytes is not None:
        largest = max(int(num_bytes[i]) for i in remote)
        if largest > cache.max_bytes:
            raise InputError(
                f"the largest remote shard has {largest} bytes, but the cache is bounded to {cache.max_bytes}; "
                "raise data.cache_gib"
            )
    return CachedStore(shards, num_bytes, digests, cache)
