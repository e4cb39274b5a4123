"""The order of one set of samples: an exact permutation for every epoch, computed wherever it is asked for, with no buffer.

An epoch permutes the shards, lays their samples end to end, and cuts that row into `num_streams` streams of equal length
(to one sample). Each stream permutes its samples inside windows of `window_shards / num_streams` shards. The epoch then
takes one sample from each stream in turn. A node that works on a slice of every batch needs the shards of few streams.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitlight.data.hashing import hash_words
from vitlight.data.subset import Rows

__all__ = ["Draws", "SampleOrder", "Window"]

Int64 = NDArray[np.int64]

_SHARDS, _SAMPLES = 3, 4


@dataclass(frozen=True)
class Draws:
    """rows: (B,) of the index; epochs: (B,) that each draw belongs to."""

    rows: Int64
    epochs: Int64


class Window(NamedTuple):
    """Shards whose samples are shuffled together, and the first and the last draw of the endless stream that uses them."""

    shards: tuple[int, ...]
    first_draw: int
    last_draw: int


@dataclass(frozen=True)
class _Layout:
    """One epoch: its pieces of shards in order, with stream k's in pieces[stream_start[k]:stream_start[k + 1]]."""

    shard: Int64
    low: Int64
    """(P,): number of the piece's first sample among the chosen ones of its shard."""
    end: Int64
    """(P,): samples of the stream up to the end of this piece."""
    stream_start: Int64


class SampleOrder:
    """Draw number d of an endless stream, for every d: epoch d // n, position d % n."""

    def __init__(self, rows: Rows, *, seed: int, window_shards: int, num_streams: int) -> None:
        self.num_samples = int(rows.counts.sum())
        assert self.num_samples and 1 <= num_streams <= window_shards
        self.seed = seed
        self._rows = rows
        self._shards = np.flatnonzero(rows.counts)
        # Few shards fit into one window, and one window is a full shuffle: streams would only take from it.
        self.num_streams = num_streams if len(self._shards) > window_shards else 1
        self._window_pieces = window_shards // self.num_streams
        self._layout = lru_cache(maxsize=2)(self._compute_layout)
        self._window_rows = lru_cache(maxsize=2 * self.num_streams + 2)(self._compute_window_rows)

    @property
    def shards_at_once(self) -> int:
        """How many shards are read from at any time, about."""
        return min(len(self._shards), self._window_pieces * self.num_streams)

    def _stream_sizes(self) -> Int64:
        streams = np.arange(self.num_streams)
        return (self.num_samples - streams + self.num_streams - 1) // self.num_streams

    def _compute_layout(self, epoch: int) -> _Layout:
        keys = hash_words(_SHARDS, self.seed, epoch, self._shards.astype(np.uint64))
        shards = self._shards[np.argsort(keys, kind="stable")]
        shard_ends = np.cumsum(self._rows.counts[shards])
        stream_ends = np.cumsum(self._stream_sizes())
        cuts = np.union1d(shard_ends, stream_ends)
        begins = np.concatenate(([0], cuts[:-1]))
        place = np.searchsorted(shard_ends, begins, side="right")
        stream_start = np.concatenate(([0], np.searchsorted(cuts, stream_ends) + 1))
        of_stream = np.repeat(np.arange(self.num_streams), np.diff(stream_start))
        stream_begins = np.concatenate(([0], stream_ends[:-1]))
        low = begins - np.concatenate(([0], shard_ends[:-1]))[place]
        return _Layout(shards[place], low, cuts - stream_begins[of_stream], stream_start)

    def _piece_size(self, layout: _Layout, stream: int, piece: int) -> int:
        before = int(layout.end[piece - 1]) if piece > layout.stream_start[stream] else 0
        return int(layout.end[piece]) - before

    def _window_bounds(self, layout: _Layout, stream: int, position: int) -> tuple[int, int, int, int]:
        """The window that holds a position of a stream: its first piece, its last + 1, its first position, its last + 1."""
        first, last = layout.stream_start[stream : stream + 2].tolist()
        ends = layout.end[first:last]
        window = int(np.searchsorted(ends, position, side="right")) // self._window_pieces
        low = first + window * self._window_pieces
        high = min(low + self._window_pieces, last)
        return low, high, int(layout.end[low - 1]) if low > first else 0, int(layout.end[high - 1])

    def _compute_window_rows(self, epoch: int, stream: int, low: int, high: int) -> Int64:
        layout = self._layout(epoch)
        parts = []
        for piece in range(low, high):
            begin = int(layout.low[piece])
            parts.append(
                self._rows.of_shard(int(layout.shard[piece]))[begin : begin + self._piece_size(layout, stream, piece)]
            )
        rows = np.concatenate(parts)
        return rows[np.argsort(hash_words(_SAMPLES, self.seed, epoch, rows.astype(np.uint64)), kind="stable")]

    def _stream_rows(self, epoch: int, stream: int, begin: int, end: int) -> list[Int64]:
        """Positions begin <= i < end of one stream of one epoch."""
        layout, parts = self._layout(epoch), []
        while begin < end:
            low, high, first, last = self._window_bounds(layout, stream, begin)
            stop = min(end, last)
            parts.append(self._window_rows(epoch, stream, low, high)[begin - first : stop - first])
            begin = stop
        return parts

    def draws(self, start: int, stop: int, low: int = 0, high: int | None = None) -> Draws:
        """Draws start <= d < stop in the order of a batch, which is stream by stream; of that only rows low <= j < high."""
        high = stop - start if high is None else high
        streams = np.arange(self.num_streams)
        epochs = np.arange(start // self.num_samples, (stop - 1) // self.num_samples + 1 if stop > start else 0)
        begin = np.maximum(start - epochs * self.num_samples, 0)[None, :]  # positions of each epoch: (1, E)
        end = np.minimum(stop - epochs * self.num_samples, self.num_samples)[None, :]
        # Stream k holds the positions k, k + C, k + 2C, ...: (C, E)
        first = (begin - streams[:, None] + self.num_streams - 1) // self.num_streams
        last = (end - streams[:, None] + self.num_streams - 1) // self.num_streams
        ends = np.cumsum((last - first).ravel())
        parts: list[Int64] = []
        epoch_parts: list[Int64] = []
        run = int(np.searchsorted(ends, low, side="right"))
        while low < high:
            stream, e = divmod(run, len(epochs))
            count = int(last[stream, e] - first[stream, e])
            skipped = low - (int(ends[run]) - count)
            taken = min(high - low, count - skipped)
            if taken > 0:
                position = int(first[stream, e]) + skipped
                parts += self._stream_rows(int(epochs[e]), stream, position, position + taken)
                epoch_parts.append(np.full(taken, epochs[e]))
                low += taken
            run += 1
        none = [np.empty(0, np.int64)]
        return Draws(np.concatenate(parts or none), np.concatenate(epoch_parts or none))

    def windows(self, streams: Sequence[int], start: int, stop: int) -> Iterator[Window]:
        """The windows of some streams that draws start <= d < stop use, in the order of their first use."""
        if stop <= start:
            return
        for epoch in range(start // self.num_samples, (stop - 1) // self.num_samples + 1):
            layout = self._layout(epoch)
            found = []
            for stream in streams:
                size = int(self._stream_sizes()[stream])
                position = 0
                while position < size:
                    low, high, begin, end = self._window_bounds(layout, stream, position)
                    base = epoch * self.num_samples + stream
                    first, last = base + begin * self.num_streams, base + (end - 1) * self.num_streams
                    if first < stop and last >= start:
                        found.append(Window(tuple(layout.shard[low:high].tolist()), max(first, start), last))
                    position = end
            yield from sorted(found, key=lambda window: window.first_draw)
