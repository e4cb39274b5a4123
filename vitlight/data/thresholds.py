"""Which hashes lie below which number: exact thresholds for so many samples of each class."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Labelled", "Thresholds", "each_chunk", "find_thresholds"]

UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

_CHUNK_ROWS = 1 << 20


class Labelled(Protocol):
    """The columns that a choice is made by: those of a ShardIndex."""

    @property
    def shard_start(self) -> NDArray[np.int64]: ...
    @property
    def label(self) -> NDArray[np.int32]: ...
    @property
    def key_hash(self) -> NDArray[np.uint64]: ...
    def __len__(self) -> int: ...


# A threshold is (hash, row): samples come before it by their hash, and by their row where two hashes are equal.
@dataclass(frozen=True)
class Thresholds:
    """A sample of class c is below where (hash, row) < (hashes[c], rows[c]); one entry serves all classes."""

    hashes: UInt64
    rows: Int64

    def are_above(self, hashes: UInt64, rows: Int64, labels: NDArray[np.integer] | None = None) -> NDArray[np.bool_]:
        limit = self.hashes[0] if labels is None else self.hashes[labels]
        limit_row = self.rows[0] if labels is None else self.rows[labels]
        equal = hashes == limit
        above: NDArray[np.bool_] = hashes < limit
        if equal.any():
            above |= equal & (rows < limit_row)
        return above


def each_chunk(index: Labelled) -> Iterator[tuple[Int64, UInt64, NDArray[np.int32]]]:
    """(rows, key hashes, labels) of a million rows at a time."""
    for begin in range(0, len(index), _CHUNK_ROWS):
        end = min(begin + _CHUNK_ROWS, len(index))
        yield np.arange(begin, end), np.asarray(index.key_hash[begin:end]), np.asarray(index.label[begin:end])


_Hasher = Callable[[Int64, UInt64, NDArray[np.int32]], tuple[UInt64, NDArray[np.bool_] | None]]


def find_thresholds(index: Labelled, quotas: Int64, hasher: _Hasher, by_class: bool = False) -> Thresholds:
    """Thresholds below which lie exactly `quotas` (K,) samples of each class.

    Two passes: the first counts the hashes by their leading bits, which says in what bin each threshold lies and how many
    samples lie in the bins before it; the second sorts the samples of those bins alone.
    """
    num_classes = len(quotas)
    bits = 8 if by_class else 16
    shift = np.uint64(64 - bits)

    def candidates() -> Iterator[tuple[Int64, UInt64, Int64, Int64]]:
        for rows, key_hash, labels in each_chunk(index):
            hashes, taking_part = hasher(rows, key_hash, labels)
            classes = labels.astype(np.int64) if by_class else np.zeros(len(rows), np.int64)
            if taking_part is not None:
                rows, hashes, classes = rows[taking_part], hashes[taking_part], classes[taking_part]
            yield rows, hashes, classes, (hashes >> shift).astype(np.int64)

    histogram = np.zeros((num_classes, 1 << bits), np.int64)
    for _, _, classes, bins in candidates():
        histogram += np.bincount((classes << bits) + bins, minlength=histogram.size).reshape(histogram.shape)
    ends = np.cumsum(histogram, axis=1)
    everything = quotas >= ends[:, -1]
    bin_of = np.argmax(ends > quotas[:, None], axis=1)  # the bin of the first sample above the threshold
    before = np.where(bin_of > 0, ends[np.arange(num_classes), np.maximum(bin_of - 1, 0)], 0)
    kept: list[tuple[Int64, UInt64, Int64]] = []
    for rows, hashes, classes, bins in candidates():
        here = (bins == bin_of[classes]) & ~everything[classes]
        kept.append((rows[here], hashes[here], classes[here]))
    rows, hashes, classes = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order = np.lexsort((rows, hashes, classes))
    limits = Thresholds(np.full(num_classes, np.iinfo(np.uint64).max), np.full(num_classes, np.iinfo(np.int64).max))
    open_classes = np.flatnonzero(~everything)
    at = order[np.searchsorted(classes[order], open_classes) + (quotas - before)[open_classes]]
    limits.hashes[open_classes], limits.rows[open_classes] = hashes[at], rows[at]
    return limits
