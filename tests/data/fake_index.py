"""Plain columns in the place of an index: what the plan and the choice of samples are made from."""

from dataclasses import dataclass

import numpy as np

from vitlight.data.hashing import hash_words


@dataclass
class Columns:
    shard_start: np.ndarray
    label: np.ndarray
    key_hash: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


def columns(sizes, labels=None, salt=77) -> Columns:
    """An index of shards of these sizes; by default ten classes in turn."""
    start = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    n = int(start[-1])
    labels = np.arange(n) % 10 if labels is None else np.asarray(labels)
    return Columns(start, labels.astype(np.int32), hash_words(salt, np.arange(n, dtype=np.uint64)))
