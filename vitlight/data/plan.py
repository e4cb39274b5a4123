"""Which sample comes when: pure functions of plain integers, with no buffer, no process and no hidden state.

A training run draws from one endless stream of samples: epoch 0 in its order, then epoch 1 in another order, and so on.
The stream is cut into global batches of fixed size; a batch may reach over the end of an epoch, so every optimizer step
has exactly `global_batch_size` samples and `samples_seen = step * global_batch_size` to the last digit. Everything a
loader must remember is the number of the next step; ranks, accumulation and workers only decide who decodes what.

The order inside an epoch permutes the shards, groups them in windows, and permutes the samples within each window. All
random numbers are hashes of (seed, epoch, what is drawn), so any part of any epoch is computed without its predecessors.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitlight.errors import InputError

__all__ = ["BatchRequest", "DataPlan", "EvalPlan", "choose_subset", "hash_words", "split_by_key_hash", "uniforms"]

UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def _finalise(words: UInt64) -> UInt64:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014): a bijection of 64-bit words in which every bit counts."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def hash_words(*words: int | UInt64) -> UInt64:
    """A uniform 64-bit hash of the words, which broadcast like arrays; integers count modulo 2**64."""
    arrays = [np.atleast_1d(np.asarray(word & _MASK if isinstance(word, int) else word, np.uint64)) for word in words]
    state = np.full(np.broadcast_shapes(*(array.shape for array in arrays)), _GOLDEN, np.uint64)
    for array in arrays:
        state = _finalise((state ^ array) + np.uint64(_GOLDEN))
    return state


def uniforms(count: int, *words: int | UInt64) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) for each hash of the words: shape (..., count)."""
    keys = hash_words(*words)
    draws = hash_words(keys[..., None], np.arange(count, dtype=np.uint64))
    return (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53


# Salts keep the independent uses of a key's hash independent.
_SPLIT, _SUBSET, _SHARDS, _SAMPLES = 1, 2, 3, 4


def split_by_key_hash(key_hash: UInt64, val_fraction: float) -> tuple[Int64, Int64]:
    """Ids of the training and of the validation part: disjoint, complete, `round(val_fraction * n)` in the latter.

    Validation gets the samples whose salted key hash is smallest, so it does not depend on the order of the shards,
    on the run's seed or on how the classes are laid out, and a larger fraction contains a smaller one.
    """
    if not 0.0 <= val_fraction < 1.0:
        raise InputError(f"data.val_fraction={val_fraction} is not in [0, 1)")
    num_val = round(val_fraction * len(key_hash))
    order = np.argsort(hash_words(_SPLIT, key_hash), kind="stable")
    return np.sort(order[num_val:]), np.sort(order[:num_val])


def choose_subset(labels: NDArray[np.integer], key_hash: UInt64, num_samples: int, seed: int = 0) -> Int64:
    """Ids of `num_samples` samples in which every class keeps its share to within one sample; nested: a smaller choice
    lies inside a larger one.

    Within a class the samples are ranked by salted key hash; the sample of rank r among n has priority (r + 1/2) / n,
    and the smallest priorities win, so each prefix holds the same part of every class.
    """
    total = len(labels)
    if not 1 <= num_samples <= total:
        raise InputError(f"a subset of {num_samples} images was asked for, but there are {total} training images")
    if num_samples == total:
        return np.arange(total, dtype=np.int64)
    hashes = hash_words(_SUBSET, seed, key_hash)
    order = np.lexsort((hashes, labels))
    sorted_labels = np.asarray(labels)[order]
    starts = np.flatnonzero(np.r_[True, sorted_labels[1:] != sorted_labels[:-1]])
    counts = np.diff(np.r_[starts, total])
    rank_in_class = np.arange(total) - np.repeat(starts, counts)
    priority = np.empty(total)
    priority[order] = (rank_in_class + 0.5) / np.repeat(counts, counts)
    # Ties (classes of equal size) are broken class by class in an order drawn from the seed, not by label number.
    class_order = hash_words(_SUBSET, seed, np.asarray(labels).astype(np.uint64))
    chosen = np.lexsort((hashes, class_order, priority))[:num_samples]
    return np.sort(chosen)


@dataclass(frozen=True)
class BatchRequest:
    """What one rank decodes for one micro-batch.

    ids: (B,) index rows, -1 where an evaluation batch is padded; epochs: (B,) the epoch that each draw belongs to.
    """

    ids: Int64
    epochs: Int64


class DataPlan:
    """The training stream of a chosen subset.

    ids (n,): the index rows that are trained on, in shard order; shards (n,): the shard of each.
    """

    def __init__(
        self,
        ids: Int64,
        shards: NDArray[np.integer],
        *,
        seed: int,
        global_batch_size: int,
        window_shards: int = 64,
        index_digest: str = "",
    ) -> None:
        if len(ids) == 0:
            raise InputError("the training subset is empty; raise data.num_train_samples or data.train_fraction")
        if global_batch_size < 1:
            raise InputError(f"data.global_batch_size={global_batch_size} is not at least 1")
        if window_shards < 1:
            raise InputError(f"data.window_shards={window_shards} is not at least 1")
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.window_shards = window_shards
        self._ids = np.asarray(ids, np.int64)
        self._shard_names, starts = np.unique(shards, return_index=True)
        assert np.all(np.diff(np.asarray(shards).astype(np.int64)) >= 0), "ids must come in shard order"
        self._shard_bounds = np.append(starts, len(ids)).astype(np.int64)
        summary = hashlib.blake2b(self._ids.tobytes(), digest_size=8)
        summary.update(f"{index_digest} {seed} {global_batch_size} {window_shards}".encode())
        self.digest = summary.hexdigest()
        self._window_starts = lru_cache(maxsize=2)(self._compute_window_starts)
        self._window_ids = lru_cache(maxsize=4)(self._compute_window_ids)

    @property
    def num_samples(self) -> int:
        return len(self._ids)

    def unique_samples_seen(self, samples_seen: int) -> int:
        """How many different images are among the first `samples_seen`: every epoch is a permutation."""
        return min(samples_seen, self.num_samples)

    def _shard_order(self, epoch: int) -> Int64:
        return np.argsort(hash_words(_SHARDS, self.seed, epoch, self._shard_names.astype(np.uint64)), kind="stable")

    def _compute_window_starts(self, epoch: int) -> tuple[Int64, Int64]:
        """The shard order of an epoch, and the position in the epoch where each window begins, closed by n."""
        order = self._shard_order(epoch)
        ends = np.cumsum(np.diff(self._shard_bounds)[order])
        return order, np.r_[0, ends[self.window_shards - 1 : -1 : self.window_shards], ends[-1]].astype(np.int64)

    def _compute_window_ids(self, epoch: int, window: int) -> Int64:
        order, _ = self._window_starts(epoch)
        shards = order[window * self.window_shards : (window + 1) * self.window_shards]
        ids = np.concatenate([self._ids[self._shard_bounds[s] : self._shard_bounds[s + 1]] for s in shards])
        return ids[np.argsort(hash_words(_SAMPLES, self.seed, epoch, ids.astype(np.uint64)), kind="stable")]

    def epoch_ids(self, epoch: int, start: int, stop: int) -> Int64:
        """Index rows at positions start <= p < stop of one epoch's permutation."""
        _, bounds = self._window_starts(epoch)
        first = int(np.searchsorted(bounds, start, side="right")) - 1
        parts = []
        while start < stop:
            end = min(stop, int(bounds[first + 1]))
            parts.append(self._window_ids(epoch, first)[start - bounds[first] : end - bounds[first]])
            start, first = end, first + 1
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def stream(self, start: int, stop: int) -> BatchRequest:
        """Positions start <= p < stop of the endless stream, epoch after epoch."""
        ids, epochs = [], []
        while start < stop:
            epoch, position = divmod(start, self.num_samples)
            count = min(stop - start, self.num_samples - position)
            ids.append(self.epoch_ids(epoch, position, position + count))
            epochs.append(np.full(count, epoch, np.int64))
            start += count
        return BatchRequest(np.concatenate(ids), np.concatenate(epochs))

    def micro_batch_size(self, num_ranks: int, num_micro: int) -> int:
        """Samples of one forward pass on one rank. Raises InputError where they don't divide the global batch."""
        parts = num_ranks * num_micro
        size = self.global_batch_size
        if size % parts:
            below = size // parts * parts
            raise InputError(
                f"data.global_batch_size={size} is not a multiple of {parts} ({num_ranks} ranks x {num_micro} "
                f"accumulated batches); use {' or '.join(str(s) for s in (below, below + parts) if s)}, or change "
                f"trainer.devices, trainer.num_nodes or trainer.accumulate_grad_batches"
            )
        return size // parts

    def micro_batches(
        self, start_step: int, num_steps: int, rank: int = 0, num_ranks: int = 1, num_micro: int = 1
    ) -> Iterator[BatchRequest]:
        """What `rank` decodes for the steps start_step <= s < num_steps, micro-batch by micro-batch."""
        size = self.micro_batch_size(num_ranks, num_micro)
        for step in range(start_step, num_steps):
            start = step * self.global_batch_size + rank * num_micro * size
            for micro in range(num_micro):
                yield self.stream(start + micro * size, start + (micro + 1) * size)


class EvalPlan:
    """Every image of an evaluation set exactly once, in the same number of batches on every rank."""

    def __init__(self, ids: Int64, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"data.eval_batch_size={batch_size} is not at least 1")
        self._ids = np.asarray(ids, np.int64)
        self.batch_size = batch_size

    def num_batches(self, num_ranks: int) -> int:
        return -(-len(self._ids) // (self.batch_size * num_ranks))

    def batches(self, rank: int = 0, num_ranks: int = 1) -> Iterator[BatchRequest]:
        """The rank's batches; rows past the end are -1 and must be given weight 0."""
        for batch in range(self.num_batches(num_ranks)):
            start = (batch * num_ranks + rank) * self.batch_size
            ids = np.full(self.batch_size, -1, np.int64)
            rows = self._ids[start : start + self.batch_size]
            ids[: len(rows)] = rows
            yield BatchRequest(ids, np.zeros(self.batch_size, np.int64))
