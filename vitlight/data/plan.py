"""Which sample comes when: pure functions of plain integers, with no buffer, no process and no hidden state.

A training run draws from one endless stream of samples: epoch 0 in its order, then epoch 1 in another order, and so on.
The stream is cut into global batches of fixed size; a batch may reach over the end of an epoch, so every optimizer step
has exactly `global_batch_size` samples and `samples_seen = step * global_batch_size` to the last digit. Everything a
loader must remember is the number of the next step; ranks, accumulation and workers only decide who decodes what.

`order.py` says in what order one set of samples is drawn; here several sets are mixed by weight, draws are repeated where
that is asked for, and the stream is cut into batches and into the slices of ranks.
"""

import hashlib
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vitlight.data.hashing import hash_words, uniforms
from vitlight.data.order import SampleOrder
from vitlight.data.subset import Rows
from vitlight.errors import InputError

__all__ = [
    "BatchRequest",
    "DataPlan",
    "EvalPlan",
    "PlanSource",
    "PlannedShard",
    "count_steps",
    "hash_words",
    "uniforms",
]

Int64 = NDArray[np.int64]


def count_steps(samples: float, global_batch_size: int) -> int:
    """Optimizer steps of a run over so many samples: rounded to nearest, at least 1."""
    return max(1, round(samples / global_batch_size))


@dataclass(frozen=True)
class BatchRequest:
    """What one rank decodes for one micro-batch.

    ids: (B,) samples, -1 where an evaluation batch is padded; with several sources those of source s follow those of the
    sources before it. epochs: (B,) that each draw belongs to, counted for its source. repeats: (B,) number of the draw
    among the repeated draws of one image. step: the optimizer step, 0 in evaluation.
    """

    ids: Int64
    epochs: Int64
    repeats: Int64
    step: int = 0


@dataclass(frozen=True)
class PlannedShard:
    """A shard (of `source`) and the steps from the first to the last that read it."""

    source: int
    shard: int
    first_step: int
    last_step: int


@dataclass(frozen=True)
class PlanSource:
    """rows: what is trained on; num_rows: the length of the index they belong to; weight: its part of every batch;
    digest: what defines `rows`."""

    rows: Rows
    num_rows: int
    weight: float = 1.0
    digest: str = ""


class DataPlan:
    """The training stream of one chosen set of samples, or of several mixed by weight.

    window_shards: samples are shuffled inside windows of so many shards. num_streams: a batch takes from so many places of
    an epoch at once, so that a node needs few of the shards; the order depends on it, but not on the number of nodes.
    num_repeats: every drawn image is used so many times in its batch, differently augmented (Hoffer et al. 2020, arXiv
    1901.09335); the draws of an image lie as far apart in the batch as they can, so they fall to different ranks.
    """

    def __init__(
        self,
        sources: PlanSource | Sequence[PlanSource],
        *,
        seed: int,
        global_batch_size: int,
        window_shards: int = 64,
        num_streams: int = 64,
        num_repeats: int = 1,
    ) -> None:
        self.sources = (sources,) if isinstance(sources, PlanSource) else tuple(sources)
        for name, value in (
            ("global_batch_size", global_batch_size),
            ("window_shards", window_shards),
            ("num_streams", num_streams),
            ("num_repeats", num_repeats),
        ):
            if value < 1:
                raise InputError(f"data.{name}={value} is not at least 1")
        if global_batch_size % num_repeats:
            raise InputError(
                f"data.global_batch_size={global_batch_size} is not a multiple of data.num_repeats={num_repeats}"
            )
        if any(int(source.rows.counts.sum()) == 0 for source in self.sources):
            raise InputError("the training subset is empty; raise data.num_train_samples or data.train_fraction")
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.num_repeats = num_repeats
        self._draws_per_step = global_batch_size // num_repeats
        self.orders = tuple(
            SampleOrder(
                source.rows,
                # Equal samples of two sources must not be drawn in the same order.
                seed=seed if s == 0 else int(hash_words(seed, s)[0]),
                window_shards=window_shards,
                num_streams=min(num_streams, window_shards),
            )
            for s, source in enumerate(self.sources)
        )
        self._first_id = np.cumsum([0, *(source.num_rows for source in self.sources)])
        weights = [Fraction(str(source.weight)) for source in self.sources]
        listed = f"weights of data.train ({', '.join(f'{source.weight:g}' for source in self.sources)})"
        if min(weights) <= 0:
            raise InputError(f"{listed}: each must be above 0")
        self._parts = [weight / sum(weights) for weight in weights]
        self._largest = max(range(len(weights)), key=lambda s: weights[s])
        if self._parts[self._largest] * self._draws_per_step < len(weights) - 1:
            raise InputError(f"{listed}: data.global_batch_size={global_batch_size} is too small for so many sources")
        described = [
            (source.digest, source.num_rows, int(source.rows.counts.sum()), str(weight))
            for source, weight in zip(self.sources, self._parts, strict=True)
        ]
        settings = (seed, global_batch_size, window_shards, num_streams, num_repeats)
        self.digest = hashlib.blake2b(repr((described, settings)).encode(), digest_size=8).hexdigest()

    @property
    def num_samples(self) -> int:
        """Distinct images; so many samples seen are an epoch."""
        return sum(order.num_samples for order in self.orders)

    def unique_samples_seen(self, samples_seen: int) -> int:
        """How many different images are among the first `samples_seen`, which are whole steps: every epoch of a source is a
        permutation of it."""
        steps, rest = divmod(samples_seen, self.global_batch_size)
        assert rest == 0, f"{samples_seen} samples are no whole number of steps"
        return sum(min(count, order.num_samples) for count, order in zip(self._drawn(steps), self.orders, strict=True))

    def samples_of_sources(self, num_steps: int) -> list[int]:
        """How many of the samples of the first `num_steps` steps come from each source."""
        return [draws * self.num_repeats for draws in self._drawn(num_steps)]

    def _drawn(self, steps: int) -> list[int]:
        """Draws from each source in the first `steps` steps: its part rounded down; the largest takes what is left."""
        total = steps * self._draws_per_step
        counts = [int(total * part) for part in self._parts]
        counts[self._largest] += total - sum(counts)
        return counts

    def batch(self, step: int, low: int = 0, high: int | None = None) -> BatchRequest:
        """Rows low <= j < high of the global batch of one step."""
        high = self.global_batch_size if high is None else high
        size = self._draws_per_step
        ids, epochs, repeats = [], [], []
        for repeat in range(low // size, max(-(-high // size), low // size + 1)):
            begin, end = max(low - repeat * size, 0), min(high - repeat * size, size)
            part_ids, part_epochs = self._draws(step, begin, end)
            ids.append(part_ids)
            epochs.append(part_epochs)
            repeats.append(np.full(len(part_ids), repeat))
        return BatchRequest(np.concatenate(ids), np.concatenate(epochs), np.concatenate(repeats), step)

    def _draws(self, step: int, low: int, high: int) -> tuple[Int64, Int64]:
        """Draws low <= j < high of one step: (ids, epochs). Sources lie spread evenly over the batch."""
        starts, stops = self._drawn(step), self._drawn(step + 1)
        if len(self.orders) == 1:
            draws = self.orders[0].draws(starts[0], stops[0], low, high)
            return draws.rows, draws.epochs
        counts = [stop - start for start, stop in zip(starts, stops, strict=True)]
        places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
        source_of = np.repeat(np.arange(len(counts)), counts)[np.argsort(places, kind="stable")]
        ids, epochs = np.empty(high - low, np.int64), np.empty(high - low, np.int64)
        for s, order in enumerate(self.orders):
            before = int((source_of[:low] == s).sum())
            here = source_of[low:high] == s
            draws = order.draws(starts[s], stops[s], before, before + int(here.sum()))
            ids[here], epochs[here] = draws.rows + self._first_id[s], draws.epochs
        return ids, epochs

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
            start = rank * num_micro * size
            for micro in range(num_micro):
                yield self.batch(step, start + micro * size, start + (micro + 1) * size)

    def shard_uses(self, start_step: int, num_steps: int, rank: int = 0, num_ranks: int = 1) -> Iterator[PlannedShard]:
        """The shards that `rank` reads in the steps start_step <= s < num_steps, in the order of their first use.

        A batch that reaches over the end of an epoch may need a sample of a neighbouring rank's shard besides.
        """
        size, draws = self.micro_batch_size(num_ranks, 1), self._draws_per_step
        low, high = rank * size, (rank + 1) * size
        tiles = [
            (max(low - t * draws, 0), min(high - t * draws, draws)) for t in range(low // draws, -(-high // draws))
        ]
        uses = [self._uses_of(s, tiles, start_step, num_steps) for s in range(len(self.orders))]
        yield from heapq.merge(*uses, key=lambda use: use.first_step)

    def _uses_of(self, s: int, tiles: list[tuple[int, int]], start_step: int, num_steps: int) -> Iterator[PlannedShard]:
        order = self.orders[s]
        streams = sorted(
            {
                stream
                for low, high in tiles
                for stream in range(
                    low * order.num_streams // self._draws_per_step,
                    -(-high * order.num_streams // self._draws_per_step),
                )
            }
        )
        start, stop = self._drawn(start_step)[s], self._drawn(num_steps)[s]
        for window in order.windows(streams, start, stop):
            first, last = (self._step_of(s, draw) for draw in (window.first_draw, window.last_draw))
            for shard in window.shards:
                yield PlannedShard(s, shard, first, last)

    def _step_of(self, s: int, draw: int) -> int:
        """The step in which a draw of source s falls."""
        step = int(draw / (self._parts[s] * self._draws_per_step))
        while self._drawn(step)[s] > draw:
            step -= 1
        while self._drawn(step + 1)[s] <= draw:
            step += 1
        return step


class EvalPlan:
    """Every image of an evaluation set exactly once, in the same number of batches on every rank."""

    def __init__(self, ids: Int64, batch_size: int) -> None:
        if batch_size < 1:
            raise InputError(f"data.eval_batch_size={batch_size} is not at least 1")
        self.ids = np.asarray(ids, np.int64)
        self.batch_size = batch_size

    def num_batches(self, num_ranks: int) -> int:
        return -(-len(self.ids) // (self.batch_size * num_ranks))

    def batches(self, rank: int = 0, num_ranks: int = 1) -> Iterator[BatchRequest]:
        """The rank's batches; rows past the end are -1 and must be given weight 0."""
        zeros = np.zeros(self.batch_size, np.int64)
        for batch in range(self.num_batches(num_ranks)):
            start = (batch * num_ranks + rank) * self.batch_size
            ids = np.full(self.batch_size, -1, np.int64)
            rows = self.ids[start : start + self.batch_size]
            ids[: len(rows)] = rows
            yield BatchRequest(ids, zeros, zeros)
