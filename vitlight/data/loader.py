"""The DataLoader over batch requests, as training and `vitlight data bench` run it."""

import math
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from vitlight.data.cache import ShardCache
from vitlight.data.image_loader import PREFETCHED_BATCHES, Requests, build_loader
from vitlight.data.plan import BatchRequest, DataPlan
from vitlight.data.prefetch import Prefetcher, ShardUse
from vitlight.data.shard_index import ShardIndex
from vitlight.data.sources import is_remote

__all__ = ["Requests", "World", "build_loader", "training_requests"]

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
    shards = [shard for index in indexes for shard in index.shards]
    if cache is None or not any(is_remote(shard) for shard in shards):
        yield from requests
        return
    _check_room(plan, indexes, cache, world)
    first_shard = np.cumsum([0, *(len(index.shards) for index in indexes)]).tolist()
    is_first_out = threading.Event()

    def uses() -> Iterator[ShardUse]:
        for use in plan.shard_uses(start_step, num_steps, world.rank, world.num_ranks):
            if use.first_step > start_step:
                is_first_out.wait()
            yield ShardUse(first_shard[use.source] + use.shard, use.first_step, use.last_step)

    # So far the requests handed out may be ahead of the one that is being decoded.
    num_ahead = max(1, num_workers * PREFETCHED_BATCHES)
    lag = math.ceil(num_ahead / world.num_micro) + 1
    digests = [digest for index in indexes for digest in index.shard_digests or [""] * len(index.shards)]
    num_bytes = np.concatenate([index.num_bytes for index in indexes])
    with Prefetcher(cache, shards, num_bytes, digests, uses(), share=1 / world.ranks_per_node) as prefetcher:
        try:
            for number, request in enumerate(requests):
                if number >= num_ahead:
                    is_first_out.set()
                prefetcher.advance(request.step - lag)
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
