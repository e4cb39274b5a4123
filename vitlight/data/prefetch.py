"""Fetches the remote shards that a rank will need, ahead in the order of its plan, and lets go of those behind it."""

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitlight.data.cache import ShardCache
from vitlight.data.fetch import Cancelled
from vitlight.data.sources import is_remote

__all__ = ["Prefetcher", "ShardUse"]

_JOIN_SECONDS = 2.0


@dataclass(frozen=True)
class ShardUse:
    """Steps at which a rank reads a shard, first and last included. A shard may be used again later."""

    shard: int
    first_step: int
    last_step: int


class Prefetcher:
    """A few threads in a rank's main process that pin the shards of `uses`, in order, in the node's cache.

    uses: in the order of first_step, taken from one by one; it may be endless. num_bytes, digests: as for open_store.
    share: of the cache's bound that this rank may pin, 1 / (ranks on this node). It pins at most
    share x (bound - largest remote shard), yet always one shard, and looks at most `max_uses` ahead (a pinned shard takes
    a descriptor); room for the largest shard is left for whatever a worker needs that was not fetched ahead. Local shards
    are passed over. Use it as a context, or call start and stop.
    """

    def __init__(
        self,
        cache: ShardCache,
        shards: Sequence[str],
        num_bytes: Sequence[int] | NDArray[np.uint64],
        digests: Sequence[str] | None,
        uses: Iterable[ShardUse],
        *,
        num_threads: int = 4,
        max_uses: int = 256,
        share: float = 1.0,
    ) -> None:
        self._cache, self._shards, self._num_bytes, self._digests = cache, shards, num_bytes, digests
        self._uses: Iterator[ShardUse] = iter(uses)
        self._max_uses = max_uses
        self._leave_bytes = max((int(num_bytes[i]) for i, each in enumerate(shards) if is_remote(each)), default=0)
        self._max_pinned = None if cache.max_bytes is None else share * (cache.max_bytes - self._leave_bytes)
        self._last_steps: dict[int, list[int]] = {}  # of the uses to come, of every shard pinned or being fetched
        self._pinned: set[int] = set()
        self._step = -1
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._changed = threading.Condition()
        self._in_order = threading.Lock()
        # Daemons: a process that ends must not wait for a stalled connection.
        self._threads = [
            threading.Thread(target=self._run, name=f"prefetch-{i}", daemon=True) for i in range(num_threads)
        ]

    def __enter__(self) -> "Prefetcher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def advance(self, step: int) -> None:
        """Says that all steps before `step` are done. Never waits; raises what went wrong in the background."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._step = max(step, self._step)
            for shard in list(self._last_steps):
                self._forget_past(shard)
            self._changed.notify_all()

    def stop(self) -> None:
        """Ends the threads and unpins all. One that sits in a stalled connection is left to its timeout."""
        self._stop.set()
        with self._changed:
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_JOIN_SECONDS / len(self._threads))
        with self._changed:
            for shard in list(self._pinned):
                self._let_go(shard)

    def _forget_past(self, shard: int) -> None:
        steps = self._last_steps[shard] = [step for step in self._last_steps[shard] if step >= self._step]
        if not steps and shard in self._pinned:
            self._let_go(shard)

    def _let_go(self, shard: int) -> None:
        self._cache.unpin(self._shards[shard])
        self._pinned.discard(shard)
        del self._last_steps[shard]

    def _run(self) -> None:
        try:
            while (shard := self._next()) is not None:
                digest = None if self._digests is None else self._digests[shard] or None
                name, num_bytes = self._shards[shard], int(self._num_bytes[shard])
                self._cache.pin(name, num_bytes, digest, leave_bytes=self._leave_bytes, cancel=self._stop)
                with self._changed:
                    self._pinned.add(shard)
                    if self._stop.is_set():
                        self._let_go(shard)
                    else:
                        self._forget_past(shard)
                    self._changed.notify_all()
        except Cancelled:
            return
        except BaseException as error:
            with self._changed:
                self._error = self._error or error
                self._stop.set()
                self._changed.notify_all()

    def _next(self) -> int | None:
        """The next shard to fetch, once it is within the limits; None when there is no more."""
        with self._in_order:
            while not self._stop.is_set() and (use := next(self._uses, None)) is not None:
                if not is_remote(self._shards[use.shard]):
                    continue
                with self._changed:  # not while the plan is asked: `advance` would wait for it
                    while use.last_step >= self._step and not self._stop.is_set() and not self._has_room(use.shard):
                        self._changed.wait()
                    if use.last_step < self._step or self._stop.is_set():
                        continue
                    if use.shard in self._last_steps:
                        self._last_steps[use.shard].append(use.last_step)
                        continue
                    self._last_steps[use.shard] = [use.last_step]
                    return use.shard
            return None

    def _has_room(self, shard: int) -> bool:
        if sum(map(len, self._last_steps.values())) >= self._max_uses:
            return False
        if not self._last_steps or shard in self._last_steps or self._max_pinned is None:
            return True
        taken = sum(int(self._num_bytes[each]) for each in self._last_steps)
        return taken + int(self._num_bytes[shard]) <= self._max_pinned
