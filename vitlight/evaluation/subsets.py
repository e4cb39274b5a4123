"""Which images a few-shot classifier is fitted to: of each class the k whose keys' hashes are smallest.

A smaller k's images are among a larger one's, and no choice depends on ranks, on the order of the shards or on what a run
was trained on. They are those of `data.num_train_samples_per_class=k` with `data.subset_seed` the seed.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitlight.data.subset import subset_hash
from vitlight.data.thresholds import Labelled, each_chunk
from vitlight.errors import InputError

__all__ = ["choose_shots", "name_class", "training_ids"]

Int64 = NDArray[np.int64]
_LAST = np.iinfo(np.uint64).max


def training_ids(indexes: Sequence[Labelled], held_out: Int64) -> Int64:
    """All images of the indexes, numbered through, but for those of `held_out` (V,), which rises."""
    return np.delete(np.arange(sum(len(index) for index in indexes)), held_out)


def choose_shots(
    indexes: Sequence[Labelled],
    held_out: Int64,
    num_shots: int,
    seed: int,
    num_classes: int,
    class_names: Sequence[str] | None = None,
) -> Int64:
    """(num_classes, num_shots) images, the first k of each row for k shots.

    They are numbered through all indexes, and none is of `held_out` (V,), which rises. Raises InputError naming the first
    class that has fewer.
    """
    ids, hashes, labels = np.empty(0, np.int64), np.empty(0, np.uint64), np.empty(0, np.int64)
    bound = np.full(num_classes, _LAST)  # hashes beyond this are out: their class has enough smaller ones
    first = 0
    for index in indexes:
        for rows, key_hash, classes in each_chunk(index):
            here, order = rows + first, subset_hash(seed, key_hash)
            may = order <= bound[classes]
            may[held_out[slice(*np.searchsorted(held_out, [here[0], here[-1] + 1]))] - here[0]] = False
            ids, hashes = np.concatenate([ids, here[may]]), np.concatenate([hashes, order[may]])
            labels = np.concatenate([labels, classes[may].astype(np.int64)])
            by_class = np.lexsort((ids, hashes, labels))  # of equal hashes the image that comes first
            ids, hashes, labels = ids[by_class], hashes[by_class], labels[by_class]
            starts = np.searchsorted(labels, np.arange(num_classes))
            kept = np.arange(len(labels)) - starts[labels] < num_shots
            ids, hashes, labels = ids[kept], hashes[kept], labels[kept]
            ends = np.cumsum(np.bincount(labels, minlength=num_classes))
            full = np.diff(ends, prepend=0) == num_shots
            bound[full] = hashes[ends[full] - 1]
        first += len(index)
    counts = np.bincount(labels, minlength=num_classes)
    if len(short := np.flatnonzero(counts < num_shots)):
        which = name_class(int(short[0]), class_names)
        more = f", and {len(short) - 1} more have too few" if len(short) > 1 else ""
        raise InputError(
            f"{num_shots} shots: {which} has {counts[short[0]]} training images{more}; ask for fewer shots"
        )
    return ids.reshape(num_classes, num_shots)


def name_class(number: int, class_names: Sequence[str] | None) -> str:
    """For people: `class 3 ("cat")`."""
    return f"class {number}" + (
        f" ({class_names[number]!r})" if class_names is not None and number < len(class_names) else ""
    )
