"""How a loader's workers hand batches over: in memory mapped on both sides, reused when nobody holds it any more.

Left to itself a DataLoader copies each batch into new shared memory, and the pages of that memory are what costs: 0.10 to
0.13 ms for an image of 224 x 224, a sixth of decoding it. Here each worker has a few slots in one file in memory, and the
image tensor of a batch, on the side of the training process, is the slot itself. A slot is free when the last tensor over it
is gone, so whoever keeps a batch keeps its content; where none is free, a batch goes the usual way.
"""

import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from multiprocessing import reduction
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["SentBatch", "SlotPool"]

_SLOTS_PER_WORKER = 5  # two asked for ahead, one each being decoded, pinned and trained on


class SlotPool:
    """num_workers x 5 slots of `slot_bytes`. Made in the training process, and pickled to workers when they start."""

    def __init__(self, num_workers: int, slot_bytes: int) -> None:
        self._slot_bytes = slot_bytes
        self._num_slots = num_workers * _SLOTS_PER_WORKER
        self._free = [deque(range(w, self._num_slots, num_workers)) for w in range(num_workers)]
        self._lock = threading.Lock()
        self._fd = _memory_file()
        os.ftruncate(self._fd, max(1, self._num_slots * slot_bytes))
        self._map = mmap.mmap(self._fd, max(1, self._num_slots * slot_bytes))
        weakref.finalize(self, os.close, self._fd)
        self._id = id(self)
        _POOLS[self._id] = self

    def __getstate__(self) -> dict[str, Any]:
        return {
            "fd": reduction.DupFd(self._fd),
            "id": self._id,
            "slot_bytes": self._slot_bytes,
            "num_slots": self._num_slots,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._id, self._slot_bytes, self._num_slots = state["id"], state["slot_bytes"], state["num_slots"]
        fd = state["fd"].detach()
        self._map = mmap.mmap(fd, max(1, self._num_slots * self._slot_bytes))
        os.close(fd)

    def lease(self, worker: int) -> int | None:
        """A free slot, one of this worker's so that no worker maps them all, or None."""
        with self._lock:
            free = self._free[worker]
            return free.popleft() if free else None

    def write(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """In a worker: the slot as uint8 of this shape, with what was last in it."""
        return torch.from_numpy(self._array(slot, shape))

    def read(self, slot: int, shape: tuple[int, ...]) -> Tensor:
        """In the training process: what was written. The slot is free again when no tensor over it is left."""
        array = self._array(slot, shape)
        weakref.finalize(array, self._release, slot).atexit = False
        return torch.from_numpy(array)

    def _array(self, slot: int, shape: tuple[int, ...]) -> np.ndarray:
        size = int(np.prod(shape))
        assert size <= self._slot_bytes
        return np.frombuffer(self._map, np.uint8, size, slot * self._slot_bytes).reshape(shape)

    def _release(self, slot: int) -> None:
        with self._lock:
            self._free[slot % len(self._free)].append(slot)


class SentBatch:
    """A batch on its way: its images lie in a slot, the rest is small and travels with the message."""

    def __init__(self, pool: SlotPool, slot: int, shape: tuple[int, ...], rest: dict[str, Any]) -> None:
        self._sent = (pool._id, slot, shape, {name: _plain(value) for name, value in rest.items()})

    def __reduce__(self) -> tuple[Any, ...]:
        return _receive, self._sent


def _receive(pool_id: int, slot: int, shape: tuple[int, ...], rest: dict[str, Any]) -> dict[str, Any]:
    """Unpickles a SentBatch: {image: (B, C, H, W), ...}, as the worker would have returned it by itself."""
    images = _POOLS[pool_id].read(slot, shape)
    more = {name: torch.from_numpy(each) if isinstance(each, np.ndarray) else each for name, each in rest.items()}
    return {"image": images.permute(0, 3, 1, 2), **more}


def _plain(value: Any) -> Any:
    return value.numpy() if isinstance(value, Tensor) else value


def _memory_file() -> int:
    """A file in memory that goes with its last descriptor; where the system has none, in the folder of temporary files."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("vitlight-batches")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_POOLS: "weakref.WeakValueDictionary[int, SlotPool]" = weakref.WeakValueDictionary()
