"""A cell's side of a shared loader: its batches as they come from there, and from a loader of its own where they don't."""

import contextlib
import copy
import itertools
import os
import pickle
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import reduction
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from vitlight.data.batches import Batch, ImageBatches
from vitlight.data.image_loader import Requests, build_loader
from vitlight.data.loader import World
from vitlight.data.plan import BatchRequest, DataPlan
from vitlight.data.shared_link import CODE, connect, stream_key
from vitlight.data.shared_messages import Attach, Free, Given, Refused, Want
from vitlight.data.shared_ring import RingReader
from vitlight.errors import InputError

__all__ = ["SharedLoader"]

# A loader that says nothing for so long is given up. It waits for slow storage, and half a minute for slower cells.
_SILENCE_SECONDS = 300.0
_MAX_HELD = 3  # steps; of further ones, whoever keeps so many batches gets copies


class _Lost(Exception):
    """Why the shared loader can't be used any more."""


class SharedLoader:
    """The batches that `build_loader` gives for the same requests, from the shared loader at `address`.

    address: `NAME` or `NAME/CELL`, as `vitlight sweep run` hands it on. requests: those of a rank of `world`, step by step.
    Where the loader can't be used, or is lost, one warning says why, and num_workers processes of the cell itself decode
    the rest. InputError: the world is more than one machine.
    """

    def __init__(
        self,
        address: str,
        plan: DataPlan,
        batches: ImageBatches,
        requests: Requests,
        world: World,
        num_workers: int,
    ) -> None:
        num_nodes = world.num_ranks // world.ranks_per_node
        if num_nodes > 1:
            raise InputError(
                f"data.shared_loader={address} serves one machine, but a run has {num_nodes}; set it to null"
            )
        self._name, _, self._cell = address.partition("/")
        self._plan, self._batches, self._requests = plan, batches, requests
        self._num_workers = num_workers
        self._batch_size = plan.micro_batch_size(world.num_ranks, world.num_micro)
        rows_of_rank = self._batch_size * world.num_micro
        self._rows = (world.rank * rows_of_rank, (world.rank + 1) * rows_of_rank)

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Batch]:
        requests = cast(Iterator[BatchRequest], iter(self._requests))
        steps = (list(group) for _, group in itertools.groupby(requests, lambda request: request.step))
        asked: deque[list[BatchRequest]] = deque(itertools.islice(steps, 1))
        if not asked:
            return
        num_given = 0
        try:
            with contextlib.closing(self._attach(asked[0][0].step)) as link:
                link.ask(asked[0])
                while asked:
                    while len(asked) < link.ahead and (step := next(steps, None)) is not None:
                        asked.append(step)
                        link.ask(step)
                    given = link.take(asked[0][0].step)
                    micro_batches = asked.popleft()
                    for batch in link.batches(given, micro_batches):
                        num_given += 1
                        yield _pinned(batch)
                        del batch
                return
        except _Lost as lost:
            reason = str(lost)
        warnings.warn(f"data.shared_loader={self._name}: {reason}; this run loads its images itself", stacklevel=2)
        left = Requests(len(self) - num_given, lambda: itertools.chain(*asked, itertools.chain.from_iterable(steps)))
        yield from build_loader(self._batches, left, self._num_workers, self._batch_size)

    def _attach(self, start: int) -> "_Link":
        low, high = self._rows
        num_steps = len(self) * self._batch_size // (high - low)
        try:
            return _Link(self._name, self._cell, self._plan, self._batches, self._rows, (start, start + num_steps))
        except (OSError, EOFError) as error:
            raise _Lost(f"no loader answers there ({error})") from None


class _Link:
    """A connection to the loader, over which a rank asks for the steps start <= s < stop and gets them in turn."""

    def __init__(
        self,
        name: str,
        cell: str,
        plan: DataPlan,
        batches: ImageBatches,
        rows: tuple[int, int],
        steps: tuple[int, int],
    ) -> None:
        self._plan, self._batches, self._rows = plan, batches, rows
        self._given: dict[int, Given] = {}
        self._held: set[int] = set()
        self._freed: deque[int] = deque()
        unmixed = copy.copy(batches)
        unmixed.mixing = None
        image_shape = (batches.size, batches.size, batches.channels)
        self._connection = connect(name)
        attach = Attach(
            cell,
            CODE,
            stream_key(batches, plan),
            pickle.dumps(unmixed),
            *steps,
            num_rows=rows[1] - rows[0],
            batch_rows=plan.global_batch_size,
            row_bytes=int(np.prod(image_shape)),
        )
        try:
            self._send(attach)
            answer = self._receive()
            if isinstance(answer, Refused):
                raise _Lost(answer.reason)
            self.ahead, self._chunk_rows = answer.ahead, answer.chunk_rows
            descriptor = reduction.recv_handle(self._connection)
            self._ring = RingReader(descriptor, answer.slot_bytes, image_shape)
            os.close(descriptor)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        self._connection.close()

    def _send(self, message: object) -> None:
        try:
            self._connection.send(message)
        except OSError:
            raise _Lost("it has ended") from None

    def _receive(self) -> Any:
        try:
            if not self._connection.poll(_SILENCE_SECONDS):
                raise _Lost(f"it has said nothing for {_SILENCE_SECONDS:.0f} s")
            return self._connection.recv()
        except (EOFError, OSError):
            raise _Lost("it has ended") from None

    def ask(self, micro_batches: Sequence[BatchRequest]) -> None:
        """For the chunks that the rank's micro-batches of the next step lie in."""
        low, high = self._rows
        step = micro_batches[0].step
        whole = _joined(micro_batches)
        chunks = {}
        for first, last in self._chunks(low, high):
            if low <= first and last <= high:
                chunks[first] = _part(whole, first - low, last - low)
            else:  # it is another rank's as well
                chunks[first] = self._plan.batch(step, first, last)
        self._send(Want(step, chunks))

    def take(self, step: int) -> Given:
        """What the loader says of the step, as soon as it does."""
        self._tell_freed()
        while step not in self._given:
            given: Given = self._receive()
            self._given[given.step] = given
        return self._given.pop(step)

    def batches(self, given: Given, micro_batches: Sequence[BatchRequest]) -> Iterator[Batch]:
        """The rank's micro-batches of a step, as ImageBatches would have made them."""
        if given.slot is None:
            yield from (self._batches[request] for request in micro_batches)
            return
        images = self._images(given)
        first = self._rows[0]
        for request in micro_batches:
            size = len(request.ids)
            image = images[first - self._rows[0] :][:size].permute(0, 3, 1, 2)
            labels = self._labels(given, first, first + size)
            batch: Batch = {"image": image, **labels, "weight": torch.ones(size), "skipped": []}
            del image
            if self._batches.mixing is not None:
                batch["mixing"] = self._mixing(request)
            first += size
            if first == self._rows[1]:
                del images
            yield batch
            del batch

    def _images(self, given: Given) -> Tensor:
        """Pixels (B, S, S, C) of the rank's rows: the slot itself, or a copy."""
        assert given.slot is not None
        self._held.add(given.step)
        images = self._ring.rows(given.slot, *self._rows, partial(self._freed.append, given.step))
        if given.is_scarce or len(self._held) > _MAX_HELD:
            images = images.clone()
            self._tell_freed()
        return images

    def _tell_freed(self) -> None:
        while self._freed:
            step = self._freed.popleft()
            self._held.remove(step)
            with contextlib.suppress(_Lost):  # the next take meets it
                self._send(Free(step))

    def _labels(self, given: Given, low: int, high: int) -> dict[str, Tensor]:
        """Of rows low <= j < high of the global batch."""
        chunks = [(first, given.told[first]) for first, _ in self._chunks(low, high)]
        begin = low - chunks[0][0]
        labels = np.concatenate([told["label"] for _, told in chunks])[begin : begin + high - low]
        more_rows = np.concatenate([told["more_rows"] + first - low for first, told in chunks])
        more_labels = np.concatenate([told["more_labels"] for _, told in chunks])
        here = (more_rows >= 0) & (more_rows < high - low)
        found = {"label": labels, "more_rows": more_rows[here], "more_labels": more_labels[here]}
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _mixing(self, request: BatchRequest) -> Tensor:
        mixing, batches = self._batches.mixing, self._batches
        assert mixing is not None
        key_hash = batches.locate(request.ids)[2]
        return torch.from_numpy(mixing.draws(batches.seed, request.step, request.epochs, key_hash, request.repeats))

    def _chunks(self, low: int, high: int) -> Iterator[tuple[int, int]]:
        """First row and last + 1 of the chunks that rows low <= j < high of a global batch lie in."""
        size = self._chunk_rows
        for first in range(low // size * size, high, size):
            yield first, min(first + size, self._plan.global_batch_size)


def _joined(requests: Sequence[BatchRequest]) -> BatchRequest:
    if len(requests) == 1:
        return requests[0]
    ids, epochs, repeats = (
        np.concatenate([getattr(each, name) for each in requests]) for name in ("ids", "epochs", "repeats")
    )
    return BatchRequest(ids, epochs, repeats, requests[0].step)


def _part(request: BatchRequest, low: int, high: int) -> BatchRequest:
    return BatchRequest(request.ids[low:high], request.epochs[low:high], request.repeats[low:high], request.step)


def _pinned(batch: Batch) -> Batch:
    """For a quick way to the device, where there is one."""
    if not torch.cuda.is_available():
        return batch
    return {name: value.pin_memory() if isinstance(value, Tensor) else value for name, value in batch.items()}
