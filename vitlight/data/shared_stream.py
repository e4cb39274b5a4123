"""What a shared loader decodes, keeps and hands out of one stream of batches, to cells each at its own place in it.

Bookkeeping alone, without processes, sockets or memory. A step's global batch lies in a slot; it is decoded in chunks, as
cells ask for it, and kept for every cell that has yet to come to it and is near enough to find it. When all slots hold
something that a slower cell has yet to see, the faster ones wait for it: while decoding is what limits, all are as fast as
that, and together they are fastest. But waiting has a bound (`_PATIENCE_SECONDS`): a cell that holds up the others for half
of their time or longer is left behind, and what it asks for is decoded for it alone until it has caught up.
"""

import heapq
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vitlight.data.plan import BatchRequest

__all__ = ["Reader", "Ready", "Stream", "Task"]

# Seconds that the others wait for a cell. They run out while it is waited for, and come back as fast while it is not.
# Longer than the evaluations of small cells take, which each begins when it gets there.
_PATIENCE_SECONDS = 30.0
# A cell that waits for room which only others' training can make decodes by itself after so long.
_NO_ROOM_SECONDS = 2.0


@dataclass(eq=False)
class Reader:
    """One rank of a cell. It takes the steps start <= s < stop in turn, num_rows of each batch, and asks for `ahead` of them
    at a time."""

    start: int
    stop: int
    ahead: int
    num_rows: int
    asked: int = field(init=False)
    """One past the last step it has asked for."""
    waiting: dict[int, tuple[int, Mapping[int, BatchRequest]]] = field(default_factory=dict)
    """Steps asked for that it doesn't have: number of the question, and the chunks of each by their first row."""
    leased: set[int] = field(default_factory=set)
    patience: float = _PATIENCE_SECONDS
    is_left: bool = False
    no_room: float = 0.0

    def __post_init__(self) -> None:
        self.asked = self.start

    @property
    def position(self) -> int:
        """The first step that it has not been given."""
        return min(self.waiting, default=self.asked)

    @property
    def is_starving(self) -> bool:
        """Whether it has taken all that it was given, and waits."""
        return bool(self.waiting) and self.asked >= min(self.position + self.ahead, self.stop)


@dataclass(frozen=True)
class Task:
    """Rows low and following of a step, to be decoded to `slot`."""

    step: int
    slot: int
    low: int
    request: BatchRequest


@dataclass(frozen=True)
class Ready:
    """A step for a reader: its slot, and what was told of each chunk; slot None: the reader has to decode it by itself."""

    reader: Reader
    step: int
    slot: int | None
    told: Mapping[int, Any]


@dataclass(eq=False)
class _Item:
    slot: int
    told: dict[int, Any] = field(default_factory=dict)  # None for a chunk that could not be decoded
    queued: set[int] = field(default_factory=set)
    num_leases: int = 0


class Stream:
    """The batches of one data plan under one augmentation, in at most `limit` slots at a time.

    give_back: called with a slot that is not needed any more since the limit was lowered. `tasks` is for workers, in this
    order; `ready` for whoever tells the readers.
    """

    def __init__(self, limit: int, give_back: Callable[[int], None]) -> None:
        self.limit = 0
        self.readers: list[Reader] = []
        self.tasks: deque[Task] = deque()
        self.ready: deque[Ready] = deque()
        self.num_decoded = 0  # images
        self.num_handed_out = 0
        self._items: dict[int, _Item] = {}
        self._free: list[int] = []  # a heap: low slots first, whose memory has been used before
        self._give_back = give_back
        self._num_questions = 0
        self.set_limit(limit)

    def set_limit(self, limit: int) -> None:
        """What is in slots beyond a lower limit is dropped, unless it is being written or read: that goes afterwards."""
        taken = {item.slot for item in self._items.values()}
        self._free += [slot for slot in range(self.limit, limit) if slot not in taken]
        self.limit = limit
        for slot in [slot for slot in self._free if slot >= limit]:
            self._free.remove(slot)
            self._give_back(slot)
        heapq.heapify(self._free)
        for step in [step for step, item in self._items.items() if item.slot >= limit and self._is_idle(step, item)]:
            self._drop(step)
        self._serve()

    def join(self, reader: Reader) -> None:
        self.readers.append(reader)

    def leave(self, reader: Reader) -> None:
        self.readers.remove(reader)
        reader.waiting.clear()
        for step in list(reader.leased):
            self._unlease(reader, step)
        self._serve()

    def want(self, reader: Reader, step: int, chunks: Mapping[int, BatchRequest]) -> None:
        """The reader asks for the next step: these chunks of it, by their first rows."""
        assert step == reader.asked
        reader.asked = step + 1
        reader.waiting[step] = (self._num_questions, chunks)
        self._num_questions += 1
        self._serve()

    def free(self, reader: Reader, step: int) -> None:
        """The reader holds nothing of the step any more."""
        self._unlease(reader, step)
        self._serve()

    def done(self, task: Task, told: Any) -> None:
        """What a worker says of a chunk; None: it could not be decoded."""
        item = self._items[task.step]
        item.queued.remove(task.low)
        item.told[task.low] = told
        self.num_decoded += len(task.request.ids)
        self._serve()

    def wait(self, seconds: float) -> None:
        """So long has passed. Readers that hold up others use up their patience."""
        starving = [each for each in self.readers if each.is_starving and each.position not in self._items]
        is_decoding = any(item.queued for item in self._items.values())
        holders = {reader: self._holder(reader) for reader in starving}
        for reader in self.readers:
            if reader in holders.values():
                reader.patience -= seconds
                reader.is_left = reader.patience <= 0
            else:
                reader.patience = min(_PATIENCE_SECONDS, reader.patience + seconds)
            is_stuck = reader in holders and not is_decoding and holders[reader] is None
            reader.no_room = reader.no_room + seconds if is_stuck else 0.0
            if reader.no_room > _NO_ROOM_SECONDS:
                self._refuse(reader, reader.position)
        self._serve()

    def _holder(self, waiting: Reader) -> Reader | None:
        """For whom most of the slots are kept, while another waits for one."""
        idle = [step for step, item in self._items.items() if self._is_idle(step, item)]
        kept = {
            reader: sum(self._is_needed_by(reader, step) for step in idle)
            for reader in self.readers
            if reader is not waiting
        }
        most = max(kept.values(), default=0)
        return next((reader for reader, count in kept.items() if count == most), None) if most else None

    def _serve(self) -> None:
        """Find a slot for each step that is waited for, in the order of the questions; queue what it lacks; hand out."""
        self._take_back()
        for reader, step, chunks in list(self._questions()):
            item = self._items.get(step)
            if item is None:
                slot = self._slot_for(step)
                if slot is None:
                    continue
                item = self._items[step] = _Item(slot)
            for low, request in chunks.items():
                if low not in item.told and low not in item.queued:
                    item.queued.add(low)
                    self.tasks.append(Task(step, item.slot, low, request))
            if all(low in item.told for low in chunks):
                if any(item.told[low] is None for low in chunks):
                    self._refuse(reader, step)
                else:
                    self._lease(reader, step, item, chunks)

    def _questions(self) -> Iterator[tuple[Reader, int, Mapping[int, BatchRequest]]]:
        asked = [
            (number, reader, step, chunks)
            for reader in self.readers
            for step, (number, chunks) in reader.waiting.items()
        ]
        for _, reader, step, chunks in sorted(asked, key=lambda each: each[0]):
            yield reader, step, chunks

    def _take_back(self) -> None:
        """Readers that were left behind and are near another again, or before all."""
        for reader in self.readers:
            if reader.is_left:
                others = [each.position - reader.position for each in self.readers if each is not reader]
                if min((distance for distance in others if distance >= 0), default=0) <= self.limit // 4:
                    reader.is_left, reader.patience = False, _PATIENCE_SECONDS

    def _lease(self, reader: Reader, step: int, item: _Item, chunks: Mapping[int, BatchRequest]) -> None:
        del reader.waiting[step]
        reader.leased.add(step)
        item.num_leases += 1
        self.num_handed_out += reader.num_rows
        self.ready.append(Ready(reader, step, item.slot, {low: item.told[low] for low in chunks}))

    def _refuse(self, reader: Reader, step: int) -> None:
        del reader.waiting[step]
        reader.no_room = 0.0
        self.ready.append(Ready(reader, step, None, {}))

    def _unlease(self, reader: Reader, step: int) -> None:
        reader.leased.remove(step)
        item = self._items[step]
        item.num_leases -= 1
        if item.slot >= self.limit and self._is_idle(step, item):
            self._drop(step)

    def _slot_for(self, step: int) -> int | None:
        if not self._free:
            victim = self._victim(step)
            if victim is None:
                return None
            self._drop(victim)
        return heapq.heappop(self._free) if self._free else None

    def _victim(self, step: int) -> int | None:
        """What to drop for a step: the oldest that no reader needs; else, of what lies behind the step in the plan and is
        needed later than it, the last."""
        last = None
        for kept, item in self._items.items():
            if item.slot < self.limit and self._is_idle(kept, item):
                if not self._is_needed(kept):
                    return kept
                if kept > step and (last is None or kept > last):
                    last = kept
        return last

    def _is_idle(self, step: int, item: _Item) -> bool:
        return not (item.num_leases or item.queued or any(step in reader.waiting for reader in self.readers))

    def _is_needed(self, step: int) -> bool:
        return any(self._is_needed_by(reader, step) for reader in self.readers)

    def _is_needed_by(self, reader: Reader, step: int) -> bool:
        end = min(reader.position + self.limit, reader.stop)
        return not reader.is_left and reader.position <= step < end

    def _drop(self, step: int) -> None:
        slot = self._items.pop(step).slot
        if slot < self.limit:
            heapq.heappush(self._free, slot)
        else:
            self._give_back(slot)
