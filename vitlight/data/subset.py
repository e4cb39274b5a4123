"""Which samples are trained on and which are held out: exact counts, nested, chosen by the hash of the key.

A choice is a threshold: a sample is held out where the salted hash of its key is small enough, and it belongs to the subset
where another salted hash is below the threshold of its class. So a choice of 300 million samples is one number a class,
membership is computed shard by shard where it is needed, and nothing depends on ranks, on the run's seed or on the order
of the shards. Thresholds are found by counting: no sort, a few passes over the columns, remembered beside a large index.
"""

import contextlib
import hashlib
import os
import tempfile
import warnings
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vitlight.data.hashing import hash_words
from vitlight.data.thresholds import Labelled, Thresholds, each_chunk, find_thresholds
from vitlight.errors import InputError

__all__ = [
    *("AllRows", "Chosen", "ChosenRows", "Labelled", "Rows", "SubsetRule"),
    *("choose_rows", "class_quotas", "subset_hash"),
]

UInt64 = NDArray[np.uint64]
Int64 = NDArray[np.int64]

# Salts keep the independent uses of a key's hash independent.
_SPLIT, _SUBSET = 1, 2
_REMEMBERED_ROWS = 1 << 22  # a choice among fewer rows takes less than a second
_FORMAT = 1


@dataclass(frozen=True)
class SubsetRule:
    """How many of the samples are held out for `val` (a fraction), and how many of the others are trained on.

    At most one of num_samples, fraction and samples_per_class is given. `long_tail_ratio` r thins the classes out first:
    class number c of K (in an order drawn from the seed) keeps n * r^(-c / (K - 1)) of the n samples of the smallest class,
    as in the long-tailed CIFAR of Cui et al. 2019 (arXiv 1901.05555); a number or fraction then means part of what is left.
    """

    val_fraction: float = 0.0
    num_samples: int | None = None
    fraction: float | None = None
    samples_per_class: int | None = None
    long_tail_ratio: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.val_fraction < 1.0:
            raise InputError(f"data.val_fraction={self.val_fraction} is not in [0, 1)")
        given = [
            f"data.{name}"
            for name, value in (
                ("num_train_samples", self.num_samples),
                ("train_fraction", self.fraction),
                ("num_train_samples_per_class", self.samples_per_class),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise InputError(
                f"{' and '.join(given)} are {'both' if len(given) == 2 else 'all'} given; keep one of them"
            )
        if self.fraction is not None and not 0.0 < self.fraction <= 1.0:
            raise InputError(f"data.train_fraction={self.fraction} is not in (0, 1]")
        if self.samples_per_class is not None and self.samples_per_class < 1:
            raise InputError(f"data.num_train_samples_per_class={self.samples_per_class} is not at least 1")
        if self.long_tail_ratio is not None and not self.long_tail_ratio >= 1.0:
            raise InputError(f"data.long_tail_ratio={self.long_tail_ratio} is not at least 1")

    @property
    def takes_all(self) -> bool:
        return (self.num_samples, self.fraction, self.samples_per_class, self.long_tail_ratio) == (None,) * 4


def subset_hash(seed: int, key_hash: UInt64) -> UInt64:
    """What the subsets of a seed are chosen by: of each class the samples in which it is smallest."""
    return hash_words(_SUBSET, seed, key_hash)


class Rows(Protocol):
    """Chosen rows of an index, shard by shard."""

    counts: Int64
    """(S,): how many rows of each shard."""

    def of_shard(self, shard: int) -> Int64:
        """The chosen rows of one shard, rising."""


class AllRows:
    """Every row of an index, given where its shards begin (S + 1,)."""

    def __init__(self, shard_start: Int64) -> None:
        self._start = np.asarray(shard_start, np.int64)
        self.counts = np.diff(self._start)

    def of_shard(self, shard: int) -> Int64:
        return np.arange(self._start[shard], self._start[shard + 1])


@dataclass(frozen=True)
class _Choice:
    """Held out: below `split`. Of the others the subset is what lies below `subset`, class by class; None takes all."""

    split: Thresholds
    subset: Thresholds | None
    seed: int

    def held_out(self, rows: Int64, key_hash: UInt64) -> NDArray[np.bool_]:
        return self.split.are_above(hash_words(_SPLIT, key_hash), rows)

    def trained_on(self, rows: Int64, key_hash: UInt64, labels: NDArray[np.integer]) -> NDArray[np.bool_]:
        chosen = ~self.held_out(rows, key_hash)
        if self.subset is not None:
            chosen &= self.subset.are_above(subset_hash(self.seed, key_hash), rows, labels)
        return chosen


class ChosenRows:
    """The rows of a choice; those of a shard are computed when they are asked for."""

    def __init__(self, index: Labelled, choice: _Choice, counts: Int64) -> None:
        self._index, self._choice, self.counts = index, choice, counts

    def of_shard(self, shard: int) -> Int64:
        begin, end = self._index.shard_start[shard : shard + 2].tolist()
        rows = np.arange(begin, end)
        chosen = self._choice.trained_on(rows, self._index.key_hash[begin:end], self._index.label[begin:end])
        return rows[chosen]


@dataclass(frozen=True)
class Chosen:
    """What is trained on, and the rows (V,) that are held out, rising."""

    train: Rows
    val_rows: Int64
    class_counts: Int64 | None = None
    """(K,): images of each class that are trained on; None where all are."""


def class_quotas(counts: Int64, num_samples: int, seed: int = 0) -> Int64:
    """How many of `num_samples` fall to each class of `counts` (K,) samples, so that each keeps its share to within one.

    The r-th sample of n in a class has priority (r + 1/2) / n, and the smallest priorities win, so a smaller number's quotas
    never exceed a larger one's. Classes with equal priority come in an order drawn from the seed.
    """
    total = int(counts.sum())
    if not 0 <= num_samples <= total:
        raise InputError(f"a subset of {num_samples} images was asked for, but there are {total} training images")
    scale = 1 << 32  # priorities up to p / scale are counted in integers; counts of up to 2^29 don't overflow

    def quotas(p: int) -> Int64:
        return (2 * p * counts.astype(np.int64) + scale) // (2 * scale)

    low, high = 0, scale
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(quotas(middle).sum()) <= num_samples else (low, middle - 1)
    chosen = quotas(low)
    left = num_samples - int(chosen.sum())
    if left:
        order = hash_words(_SUBSET, seed, np.arange(len(counts), dtype=np.uint64)).tolist()
        open_classes = np.flatnonzero(chosen < counts).tolist()
        open_classes.sort(key=lambda c: (Fraction(2 * int(chosen[c]) + 1, 2 * int(counts[c])), order[c]))
        chosen[open_classes[:left]] += 1
    return chosen


def _tail_quotas(counts: Int64, ratio: float, seed: int) -> Int64:
    present = np.flatnonzero(counts)
    order = present[np.argsort(hash_words(_SUBSET, seed, present.astype(np.uint64)), kind="stable")]
    exponents = np.arange(len(order)) / max(len(order) - 1, 1)
    quotas = np.zeros_like(counts)
    quotas[order] = np.maximum(1, np.floor(int(counts[present].min()) * ratio**-exponents + 1e-9)).astype(np.int64)
    return quotas


def _quotas(rule: SubsetRule, counts: Int64) -> Int64:
    """How many samples of each class are trained on, given how many are left after the split."""
    left = counts if rule.long_tail_ratio is None else _tail_quotas(counts, rule.long_tail_ratio, rule.seed)
    total = int(left.sum())
    if rule.samples_per_class is not None:
        short = np.flatnonzero((left > 0) & (left < rule.samples_per_class))
        if len(short):
            warnings.warn(
                f"data.num_train_samples_per_class={rule.samples_per_class}: {len(short)} classes have fewer training "
                f"images and give all (class {short[0]} has {left[short[0]]})",
                stacklevel=2,
            )
        return np.minimum(left, rule.samples_per_class)
    num, setting = total, "data.val_fraction"
    if rule.num_samples is not None:
        num, setting = rule.num_samples, f"data.num_train_samples={rule.num_samples}"
    elif rule.fraction is not None:
        num, setting = round(rule.fraction * total), f"data.train_fraction={rule.fraction}"
    if not 1 <= num <= total:
        thinned = f", thinned out by data.long_tail_ratio={rule.long_tail_ratio}" if rule.long_tail_ratio else ""
        held_out = f" ({rule.val_fraction:g} of all are held out by data.val_fraction)" if rule.val_fraction else ""
        raise InputError(f"{setting} asks for {num} images, but there are {total} for training{thinned}{held_out}")
    return class_quotas(left, num, rule.seed)


def choose_rows(index: Labelled, rule: SubsetRule, *, memory: Path | None = None) -> Chosen:
    """Splits an index by the rule. `memory`: a folder where the choice among many rows is remembered, if it can be written.

    `val` gets exactly `round(val_fraction * n)` samples. Raises InputError where the rule asks for more than there is.
    """
    n = len(index)
    num_val = round(rule.val_fraction * n)
    if num_val == 0 and rule.takes_all:
        return Chosen(AllRows(index.shard_start), np.empty(0, np.int64))
    path = None
    if memory is not None and n >= _REMEMBERED_ROWS:
        name = hashlib.blake2b(f"{_FORMAT} {sorted(asdict(rule).items())}".encode(), digest_size=8).hexdigest()
        path = memory / f"{name}.npz"
        if (known := _recall(index, rule, path)) is not None:
            return known
    split = Thresholds(np.zeros(1, np.uint64), np.zeros(1, np.int64))  # nothing lies below
    if num_val:
        split = find_thresholds(
            index, np.array([num_val]), lambda rows, hashes, labels: (hash_words(_SPLIT, hashes), None)
        )
    choice = _Choice(split, None, rule.seed)
    num_classes = 1 + max((int(labels.max()) for _, _, labels in each_chunk(index)), default=0)
    counts = np.zeros(num_classes, np.int64)
    for rows, hashes, labels in each_chunk(index):
        counts += np.bincount(labels[~choice.held_out(rows, hashes)], minlength=num_classes)
    quotas = _quotas(rule, counts) if not rule.takes_all else counts
    if not rule.takes_all:

        def left(rows: Int64, hashes: UInt64, labels: NDArray[np.integer]) -> tuple[UInt64, NDArray[np.bool_] | None]:
            return subset_hash(rule.seed, hashes), ~choice.held_out(rows, hashes)

        choice = _Choice(choice.split, find_thresholds(index, quotas, left, by_class=True), rule.seed)
    val_rows, shard_counts = [], np.zeros(len(index.shard_start) - 1, np.int64)
    for rows, hashes, labels in each_chunk(index):
        val_rows.append(rows[choice.held_out(rows, hashes)])
        chosen = rows[choice.trained_on(rows, hashes, labels)]
        if len(chosen):
            shards = np.searchsorted(index.shard_start, chosen, side="right") - 1
            first = int(shards[0])
            here = np.bincount(shards - first)
            shard_counts[first : first + len(here)] += here
    result = Chosen(ChosenRows(index, choice, shard_counts), np.concatenate(val_rows), quotas)
    assert len(result.val_rows) == num_val and int(shard_counts.sum()) == int(quotas.sum())
    if path is not None:
        _remember(result, choice, path)
    return result


def _remember(chosen: Chosen, choice: _Choice, path: Path) -> None:
    subset = choice.subset or Thresholds(np.empty(0, np.uint64), np.empty(0, np.int64))
    with contextlib.suppress(OSError):  # a folder that can't be written to costs time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".choosing-", delete=False) as file:
            np.savez(
                file,
                split_hash=choice.split.hashes,
                split_row=choice.split.rows,
                subset_hash=subset.hashes,
                subset_row=subset.rows,
                counts=chosen.train.counts,
                val_rows=chosen.val_rows,
                class_counts=np.asarray(chosen.class_counts),
            )
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).rename(path)


def _recall(index: Labelled, rule: SubsetRule, path: Path) -> Chosen | None:
    try:
        with np.load(path, allow_pickle=False) as known:
            subset = Thresholds(known["subset_hash"], known["subset_row"]) if len(known["subset_hash"]) else None
            choice = _Choice(Thresholds(known["split_hash"], known["split_row"]), subset, rule.seed)
            rows = ChosenRows(index, choice, known["counts"])
            return Chosen(rows, known["val_rows"], known["class_counts"])
    except (OSError, ValueError, KeyError, EOFError):
        return None
