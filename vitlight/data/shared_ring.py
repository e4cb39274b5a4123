"""The memory that a shared loader's batches lie in: slots of one file in memory, which goes with its last descriptor.

A slot holds the images of one global batch. Workers of the loader write to it, cells map it read-only, so that a cell that
writes to its batch harms itself alone.
"""

import mmap
import os
import warnings
import weakref
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["Ring", "RingReader", "RingWriter"]


class Ring:
    """num_slots x slot_bytes, of which memory is used where something was written. `fd` is sent to workers and cells."""

    def __init__(self, num_slots: int, slot_bytes: int) -> None:
        self.num_slots = num_slots
        self.slot_bytes = -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE  # so that a slot can be given back alone
        self.fd = os.memfd_create("vitlight-shared-loader", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, num_slots * self.slot_bytes)
        self._map = mmap.mmap(self.fd, num_slots * self.slot_bytes)

    def give_back(self, slot: int) -> None:
        """The slot's memory, to the system."""
        self._map.madvise(mmap.MADV_REMOVE, slot * self.slot_bytes, self.slot_bytes)

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)


class RingWriter:
    """In a worker: the ring of this descriptor, which stays the caller's."""

    def __init__(self, fd: int, slot_bytes: int, image_shape: tuple[int, int, int]) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size)
        self._slot_bytes, self._image_shape = slot_bytes, image_shape

    def rows(self, slot: int, low: int, high: int) -> Tensor:
        """Rows low <= j < high of a slot, uint8 (high - low, S, S, C), to be written to."""
        return torch.from_numpy(_rows(self._map, slot * self._slot_bytes, self._image_shape, low, high))


class RingReader:
    """In a cell: the ring of this descriptor, which stays the caller's."""

    def __init__(self, fd: int, slot_bytes: int, image_shape: tuple[int, int, int]) -> None:
        self._map = mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)
        self._slot_bytes, self._image_shape = slot_bytes, image_shape
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says once that it can't see to it that nobody writes
            torch.from_numpy(np.frombuffer(self._map, np.uint8, 1))

    def rows(self, slot: int, low: int, high: int, freed: Callable[[], None]) -> Tensor:
        """Rows low <= j < high of a slot, (high - low, S, S, C). `freed` is called when no tensor over them is left."""
        array = _rows(self._map, slot * self._slot_bytes, self._image_shape, low, high)
        weakref.finalize(array, freed).atexit = False
        return torch.from_numpy(array)


def _rows(memory: mmap.mmap, offset: int, image_shape: tuple[int, int, int], low: int, high: int) -> np.ndarray:
    size = int(np.prod(image_shape))
    array = np.frombuffer(memory, np.uint8, (high - low) * size, offset + low * size)
    return array.reshape(high - low, *image_shape)
