"""The DataLoader over batch requests: worker processes that decode, and hand batches over in slots of shared memory."""

import contextlib
import ctypes
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sized
from itertools import cycle
from multiprocessing.context import ForkServerContext
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from vitlight.data.batches import Batch
from vitlight.data.handover import SentBatch, SlotPool
from vitlight.data.parent import end_with_parent

__all__ = ["PREFETCHED_BATCHES", "BatchMaker", "Request", "Requests", "build_loader", "keep_freed_memory"]

PREFETCHED_BATCHES = 2  # of each worker


class Request(Protocol):
    """What a batch is made from; `ids` has one of something for each of its images."""

    @property
    def ids(self) -> Sized: ...


class BatchMaker(Protocol):
    """Makes batches of square images, uint8 (B, channels, size, size) under `image`, such as `ImageBatches`."""

    size: int
    channels: int

    def __getitem__(self, request: Any, /) -> Batch: ...

    def load(self, request: Any, images: torch.Tensor, /) -> Batch:
        """The batch, with its pixels written to `images` (B, size, size, channels)."""
        ...


_Asked = tuple[Request, int | None]


class Requests(Sized):
    """A fixed number of batch requests, made anew by each iteration."""

    def __init__(self, length: int, make: Callable[[], Iterable[Request]]) -> None:
        self._length, self._make = length, make

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Request]:
        return iter(self._make())


def build_loader(
    batches: BatchMaker, requests: Requests, num_workers: int, batch_size: int = 256
) -> "DataLoader[Batch]":
    """Batches in the order of the requests, decoded by `num_workers` processes (never forked) or, with 0, by this one.

    batch_size: of the largest request; a larger one is served, but takes the slow way from its worker.
    """
    slot_bytes = batch_size * batches.size**2 * batches.channels
    asked = _Work(batches, num_workers, slot_bytes)
    return _Loader(
        asked,
        batch_size=None,
        sampler=_Asking(requests, asked),
        num_workers=num_workers,
        multiprocessing_context=_clean_server() if num_workers else None,
        worker_init_fn=_start_worker if num_workers else None,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        collate_fn=_as_it_is,
        pin_memory=torch.cuda.is_available(),
        # The loader draws a seed for its workers at each start; nothing here uses it, and torch's global generator
        # must not be advanced by evaluations.
        generator=torch.Generator().manual_seed(0),
    )


class _Work(Dataset[Any]):
    """What the workers do: a batch goes into its slot, where it has one."""

    def __init__(self, batches: BatchMaker, num_workers: int, slot_bytes: int) -> None:
        self.batches, self.num_workers, self.slot_bytes = batches, num_workers, slot_bytes
        self.pool: SlotPool | None = None

    def renew_pool(self) -> None:
        """For each iteration, since one that was broken off leaves slots that its workers may still write to."""
        self.pool = SlotPool(self.num_workers, self.slot_bytes) if self.num_workers else None

    def __getitem__(self, asked: _Asked) -> Any:
        request, slot = asked
        size, channels = self.batches.size, self.batches.channels
        shape = (len(request.ids), size, size, channels)
        if slot is None or self.pool is None or len(request.ids) * size**2 * channels > self.slot_bytes:
            return self.batches[request]
        batch = self.batches.load(request, self.pool.write(slot, shape))
        del batch["image"]
        return SentBatch(self.pool, slot, shape, batch)


class _Asking(Sampler[_Asked], Sized):
    """Each request with a free slot of the worker that will get it: the DataLoader asks them in turn."""

    def __init__(self, requests: Requests, work: _Work) -> None:
        self._requests, self._work = requests, work

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[_Asked]:
        pool = self._work.pool
        workers = cycle(range(max(1, self._work.num_workers)))
        for request, worker in zip(self._requests, workers, strict=False):
            yield request, None if pool is None else pool.lease(worker)


class _Loader(DataLoader[Batch]):
    def __iter__(self) -> Any:
        assert isinstance(self.dataset, _Work)
        self.dataset.renew_pool()
        return super().__iter__()


def _as_it_is(batch: Any) -> Any:
    return batch


def _clean_server() -> ForkServerContext:
    """Workers fork from a server that has imported what they need and holds no thread, lock or device of ours."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitlight.data.image_loader"])
    return context


def _start_worker(_: int) -> None:
    """One thread a worker: parallelism comes from the number of workers."""
    end_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()


# Parameters of mallopt(3).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> None:
    """glibc gives blocks of a decoded image's size back to the system at once and has their pages mapped anew for the next
    image, which took a tenth of a worker's time; it is told to keep up to 64 MiB."""
    with contextlib.suppress(AttributeError, OSError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in ((_MMAP_THRESHOLD, 32 << 20), (_TRIM_THRESHOLD, 64 << 20), (_TOP_PAD, 16 << 20)):
            mallopt(parameter, value)
