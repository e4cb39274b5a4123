"""A decoding process of a shared loader: chunks of batches, of whichever stream, go to the slots it is told."""

import contextlib
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, NoReturn

import torch

from vitlight.data.batches import ImageBatches
from vitlight.data.image_loader import keep_freed_memory
from vitlight.data.parent import end_with_parent
from vitlight.data.plan import BatchRequest
from vitlight.data.shared_ring import RingWriter
from vitlight.errors import InputError

__all__ = ["Chunk", "CloseStream", "OpenStream", "work"]


@dataclass(frozen=True)
class OpenStream:
    """Followed by the descriptor of the ring. batches: pickled ImageBatches."""

    stream: int
    batches: bytes
    slot_bytes: int


@dataclass(frozen=True)
class CloseStream:
    stream: int


@dataclass(frozen=True)
class Chunk:
    """Rows low and following of the batch in `slot`."""

    stream: int
    slot: int
    low: int
    request: BatchRequest


def work(orders: Connection) -> None:
    """Until the loader ends. Answers each Chunk by what there is to tell of it beside its pixels, or None."""
    end_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()
    with contextlib.suppress(EOFError, ConnectionError):  # the loader has ended
        _obey(orders)


def _obey(orders: Connection) -> NoReturn:
    streams: dict[int, tuple[ImageBatches, RingWriter]] = {}
    while True:
        order = orders.recv()
        if isinstance(order, OpenStream):
            descriptor = reduction.recv_handle(orders)
            batches: ImageBatches = pickle.loads(order.batches)
            image_shape = (batches.size, batches.size, batches.channels)
            streams[order.stream] = batches, RingWriter(descriptor, order.slot_bytes, image_shape)
            os.close(descriptor)
        elif isinstance(order, CloseStream):
            for source in streams.pop(order.stream)[0].sources:
                source.store.close()
        else:
            orders.send(_decode(order, *streams[order.stream]))


def _decode(chunk: Chunk, batches: ImageBatches, ring: RingWriter) -> Mapping[str, Any] | None:
    """Labels, as numpy arrays. None where an image is damaged, so that a cell meets it as it would alone."""
    try:
        batch = batches.load(chunk.request, ring.rows(chunk.slot, chunk.low, chunk.low + len(chunk.request.ids)))
    except InputError:
        return None
    if batch["skipped"]:
        return None
    return {name: batch[name].numpy() for name in ("label", "more_rows", "more_labels")}
