"""The DataLoader over batch requests, as training and `vitlight data bench` run it."""

import math
import multiprocessing
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from vitlight.data.batches import Batch, ImageBatches
from vitlight.data.cache import ShardCache
from vitlight.data.plan import BatchRequest, DataPlan
from vitlight.data.prefetch import Prefetcher, ShardUse
from vitlight.data.shard_index import ShardIndex
from vitlight.data.sources import is_remote

__all__ = ["Requests", "World", "build_loader", "training_requests"]

_PREFETCHED_BATCHES = 2  # of each worker


class Requests(Sampler[BatchRequest], Sized):
    """A fixed number of batch requests, made anew by each iteration."""

    def __init__(self, length: int, make: Callable[[], Iterable[BatchRequest]]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[BatchRequest]:
        return iter(self._make())


def build_loader(batches: ImageBatches, requests: Requests, num_workers: int) -> DataLoader[Batch]:
    """Batches in the order of the requests, decoded by `num_workers` processes (never forked) or, with 0, by this one."""
    return DataLoader(
        batches,
        batch_size=None,
        sampler=requests,
        num_workers=num_workers,
        multiprocessing_context=_clean_server() if num_workers else None,
        worker_init_fn=_quiet_worker if num_workers else None,
        prefetch_factor=_PREFETCHED_BATCHES if num_workers else None,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a seed for its workers at each start; nothing here uses it, and torch's global generator
        # must not be advanced by evaluations.
        generator=torch.Generator().manual_seed(0),
    )


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
    """The rank's requests; while they are taken, the remote shards that they will need are fetched ahead, in their order."""
    requests = plan.micro_batches(start_step, num_steps, world.rank, world.num_ranks, world.num_micro)
    shards = [shard for index in indexes for shard in index.shards]
    if cache is None or not any(is_remote(shard) for shard in shards):
        yield from requests
        return
    _check_room(plan, indexes, cache, world)
    first_shard = np.cumsum([0, *(len(index.shards) for index in indexes)]).tolist()
    uses = (
        ShardUse(first_shard[use.source] + use.shard, use.first_step, use.last_step)
        for use in plan.shard_uses(start_step, num_steps, world.rank, world.num_ranks)
    )
    # So far the requests handed out may be ahead of the one that is being decoded.
    lag = math.ceil(max(1, num_workers * _PREFETCHED_BATCHES) / world.num_micro) + 1
    digests = [digest for index in indexes for digest in index.shard_digests or [""] * len(index.shards)]
    num_bytes = np.concatenate([index.num_bytes for index in indexes])
    with Prefetcher(cache, shards, num_bytes, digests, uses, share=1 / world.ranks_per_node) as prefetcher:
        for request in requests:
            prefetcher.advance(request.step - lag)
            yield request


def _check_room(plan: DataPlan, indexes: Sequence[ShardIndex], cache: ShardCache, world: World) -> None:
    """Warns where the cache can't hold the shards that a node reads at once: each would be fetched many times."""
    if cache.max_bytes is None:
        return
    needed = 0.0
    for index, order in zip(indexes, plan.orders, strict=True):
        at_once = min(order.shards_at_once, max(1.0, order.shards_at_once * world.ranks_per_node / world.num_ranks))
        needed += at_once * float(np.mean(index.num_bytes))
    if needed > cache.max_bytes:
        warnings.warn(
            f"a node reads {needed / 2**30:.3g} GiB of shards at once, but data.cache_gib={cache.max_bytes / 2**30:.3g}: "
            f"shards will be fetched again and again; raise it, or lower data.window_shards",
            stacklevel=2,
        )


def _clean_server() -> ForkServerContext:
    """Workers fork from a server that has imported what they need and holds no thread, lock or device of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitlight.data.batches"])
    return context


def _quiet_worker(_: int) -> None:
    """One thread a worker: parallelism comes from the number of workers."""
    torch.set_num_threads(1)
