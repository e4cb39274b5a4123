"""What a rank asks its loader for, while the remote shards that it will need are fetched ahead."""

import math
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitlight.data.cache import ShardCache
from vitlight.data.image_loader import PREFETCHED_BATCHES
from vitlight.data.plan import BatchRequest, DataPlan, EvalPlan
from vitlight.data.prefetch import Prefetcher, ShardUse
from vitlight.data.shard_index import ShardIndex
from vitlight.data.sources import is_remote

__all__ = ["World", "evaluation_requests", "training_requests"]

_GIB = 1 << 30


@dataclass(frozen=True)
class World:
    """Which part of every global batch is decoded here. ranks_per_node share a cache."""

    rank: int = 0
    num_ranks: int = 1
    num_micro: int = 1
    ranks_per_node: int = 1


def training_requests(
    plan: DataPlan,
    indexes: Sequence[ShardIndex],
    cache: ShardCache | None,
    world: World,
    *,
    start_step: int,
    num_steps: int,
    num_workers: int,
) -> Iterator[BatchRequest]:
    """The rank's requests; while they are taken, the remote shards that they will need are fetched ahead, in their order.

    Until the first batch is out nothing is fetched ahead but what it waits for: the windows that `start_step` reads.
    """
    requests = plan.micro_batches(start_step, num_steps, world.rank, world.num_ranks, world.num_micro)
    if cache is None or not _any_remote(indexes):
        yield from requests
        return
    _check_room(plan, indexes, cache, world)
    first_shard = np.cumsum([0, *(len(index.shards) for index in indexes)]).tolist()
    uses = (
        ShardUse(first_shard[use.source] + use.shard, use.first_step, use.last_step)
        for use in plan.shard_uses(start_step, num_steps, world.rank, world.num_ranks)
    )
    # So far the requests handed out may be ahead of the one that is being decoded.
    lag = math.ceil(_num_ahead(num_workers) / world.num_micro) + 1
    numbered = ((request.step - lag, request) for request in requests)
    yield from _fetching_ahead(numbered, uses, indexes, cache, world, num_workers)


def evaluation_requests(
    plan: EvalPlan, indexes: Sequence[ShardIndex], cache: ShardCache | None, world: World, *, num_workers: int
) -> Iterator[BatchRequest]:
    """The rank's batches; remote shards are fetched ahead as for training_requests. `world.num_micro` is not looked at."""
    if cache is None or not _any_remote(indexes):
        yield from plan.batches(world.rank, world.num_ranks)
        return
    first_id = np.cumsum([0, *(len(index) for index in indexes)])
    begins = np.concatenate([index.shard_start[:-1] + first for index, first in zip(indexes, first_id, strict=False)])
    _check_room_to_evaluate(np.unique(np.searchsorted(begins, plan.ids, "right") - 1), indexes, cache)

    def uses() -> Iterator[ShardUse]:
        for number, request in enumerate(plan.batches(world.rank, world.num_ranks)):
            ids = request.ids[request.ids >= 0]
            for shard in np.unique(np.searchsorted(begins, ids, "right") - 1).tolist():
                yield ShardUse(shard, number, number)

    lag = _num_ahead(num_workers) + 1
    numbered = ((number - lag, request) for number, request in enumerate(plan.batches(world.rank, world.num_ranks)))
    yield from _fetching_ahead(numbered, uses(), indexes, cache, world, num_workers)


def _any_remote(indexes: Sequence[ShardIndex]) -> bool:
    return any(is_remote(shard) for index in indexes for shard in index.shards)


def _num_ahead(num_workers: int) -> int:
    """So many requests the loader takes before it hands over the first batch."""
    return max(1, num_workers * PREFETCHED_BATCHES)


def _fetching_ahead(
    requests: Iterable[tuple[int, BatchRequest]],
    uses: Iterator[ShardUse],
    indexes: Sequence[ShardIndex],
    cache: ShardCache,
    world: World,
    num_workers: int,
) -> Iterator[BatchRequest]:
    """The requests, which come with the step before which all is done; meanwhile the shards of `uses` are fetched."""
    is_first_out = threading.Event()

    def held_back() -> Iterator[ShardUse]:
        first_step: int | None = None
        for use in uses:
            first_step = use.first_step if first_step is None else first_step
            if use.first_step > first_step:
                is_first_out.wait()
            yield use

    shards = [shard for index in indexes for shard in index.shards]
    digests = [digest for index in indexes for digest in index.shard_digests or [""] * len(index.shards)]
    num_bytes = np.concatenate([index.num_bytes for index in indexes])
    with Prefetcher(cache, shards, num_bytes, digests, held_back(), share=1 / world.ranks_per_node) as prefetcher:
        try:
            for number, (done_before, request) in enumerate(requests):
                if number >= _num_ahead(num_workers):
                    is_first_out.set()
                prefetcher.advance(done_before)
                yield request
        finally:
            is_first_out.set()


def _check_room(plan: DataPlan, indexes: Sequence[ShardIndex], cache: ShardCache, world: World) -> None:
    """Warns where the cache can't hold the remote shards that a node reads at once: each would be fetched many times."""
    if cache.max_bytes is None:
        return
    part = min(1.0, plan.num_repeats * world.ranks_per_node / world.num_ranks)  # of the draws of a batch
    needed = 0.0
    for index, order in zip(indexes, plan.orders, strict=True):
        num_bytes = [int(size) for shard, size in zip(index.shards, index.num_bytes, strict=True) if is_remote(shard)]
        num_streams = math.ceil(part * order.num_streams)
        needed += order.shards_at_once * num_streams / order.num_streams * sum(num_bytes) / len(index.shards)
    if needed > cache.max_bytes:
        warnings.warn(
            f"a node reads {needed / _GIB:.3g} GiB of shards at once, but data.cache_gib={cache.max_bytes / _GIB:.3g}: "
            f"shards will be fetched again and again; raise it, or lower data.window_shards",
            stacklevel=2,
        )


def _check_room_to_evaluate(read: NDArray[np.int64], indexes: Sequence[ShardIndex], cache: ShardCache) -> None:
    """Warns where each evaluation has to fetch its shards, which `read` counts through all indexes, anew."""
    shards = [shard for index in indexes for shard in index.shards]
    num_bytes = np.concatenate([index.num_bytes for index in indexes])
    needed = sum(int(num_bytes[shard]) for shard in read.tolist() if is_remote(shards[shard]))
    if cache.max_bytes is not None and needed > cache.max_bytes:
        warnings.warn(
            f"the images of an evaluation lie in {needed / _GIB:.3g} GiB of remote shards, but data.cache_gib="
            f"{cache.max_bytes / _GIB:.3g}: every evaluation fetches them again; raise it, or lower run.num_evaluations",
            stacklevel=2,
        )
