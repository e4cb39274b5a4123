"""The loader that the cells of a sweep share on a node: decodes each batch of a data plan once, for all who train on it.

`python -m vitlight.data.shared_server LISTENER OWNER WORKERS BYTES`, started by `vitlight sweep run --share-loader`.
LISTENER: descriptor of the socket that cells connect to; OWNER: of a socket whose other end the runner holds. From it come
lines, each the number of a cell that is about to start. The process ends when the runner has and no cell is attached.

Cells whose batches are the same, by `stream_key`, read one `Stream`; others get one of their own. All streams have one pool
of workers, and together at most BYTES of memory.
"""

import itertools
import signal
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection, wait
from typing import Any

from vitlight.data.shared_link import CODE, accept
from vitlight.data.shared_messages import Attach, Attached, Free, Given, Refused, Want
from vitlight.data.shared_ring import Ring
from vitlight.data.shared_stream import Reader, Stream, Task
from vitlight.data.shared_worker import Chunk, CloseStream, OpenStream, work
from vitlight.data.worker_server import fork_worker_server
from vitlight.messages import say

__all__ = ["serve"]

_TICK_SECONDS = 0.25
_TASKS_AHEAD = 2  # of each worker
_MIN_SLOTS, _MAX_SLOTS = 3, 256
_MAX_CHUNK = 64
_MAX_AHEAD = 16
# A cell that has been started, and has not asked for batches after so long, is not waited for.
_START_SECONDS = 30.0
_GIB = 1 << 30


@dataclass(eq=False)
class _Channel:
    """A stream that is read."""

    number: int
    key: str
    batches: bytes
    stream: Stream
    ring: Ring
    chunk_rows: int
    num_cells: int = 0
    absent: Reader | None = None  # stands for cells that are about to start


@dataclass(eq=False)
class _Cell:
    """One rank of a cell."""

    connection: Connection
    reader: Reader
    channel: _Channel


@dataclass(eq=False)
class _Worker:
    connection: Connection
    opened: set[int] = field(default_factory=set)
    tasks: list[tuple[_Channel, Task]] = field(default_factory=list)


class _Server:
    def __init__(self, listener: socket.socket, owner: socket.socket, num_workers: int, max_bytes: int) -> None:
        self._listener, self._owner, self._max_bytes = listener, owner, max_bytes
        self._has_owner = True
        self._words = b""
        self._starting: dict[str, float] = {}  # cells, and when they were announced
        self._new: set[Connection] = set()
        self._cells: dict[Connection, _Cell] = {}
        self._of_reader: dict[Reader, _Cell] = {}
        self._channels: dict[str, _Channel] = {}
        self._numbers = itertools.count()
        self._workers: dict[Connection, _Worker] = {}
        context = get_context("forkserver")
        for _ in range(num_workers):
            ours, theirs = context.Pipe()
            context.Process(target=work, args=(theirs,), daemon=True).start()
            theirs.close()
            self._workers[ours] = _Worker(ours)

    def run(self) -> None:
        before = time.monotonic()
        while self._has_owner or self._cells or self._new:
            owner = [self._owner] if self._has_owner else []
            for source in wait([*owner, self._listener, *self._new, *self._cells, *self._workers], _TICK_SECONDS):
                self._hear(source)
            now = time.monotonic()
            if now - before >= _TICK_SECONDS:
                self._starting = {cell: at for cell, at in self._starting.items() if now - at < _START_SECONDS}
                self._expect_nobody()
                for channel in self._channels.values():
                    channel.stream.wait(now - before)
                before = now
            for channel in list(self._channels.values()):
                self._hand_out(channel)
            self._give_tasks()
        for connection in self._workers:
            connection.close()  # which ends them

    def _hear(self, source: Any) -> None:
        if source is self._owner:
            content = self._owner.recv(4096)
            self._has_owner = bool(content)
            *lines, self._words = (self._words + content).split(b"\n")
            self._starting |= {line.decode(): time.monotonic() for line in lines}
        elif source is self._listener:
            connection = accept(self._listener)
            if connection is not None:
                self._new.add(connection)
        elif source in self._workers:
            worker = self._workers[source]
            told = source.recv()
            channel, task = worker.tasks.pop(0)
            if self._channels.get(channel.key) is channel:
                channel.stream.done(task, told)
        elif source in self._new or source in self._cells:
            try:
                self._hear_cell(source, source.recv())
            except (EOFError, OSError):
                self._lose(source)

    def _hear_cell(self, source: Connection, message: Any) -> None:
        if isinstance(message, Attach):
            self._new.remove(source)
            answer = self._attach(source, message)
            source.send(answer)
            if isinstance(answer, Attached):
                reduction.send_handle(source, self._cells[source].channel.ring.fd, 0)
            else:
                source.close()
            return
        cell = self._cells[source]
        if isinstance(message, Want):
            cell.channel.stream.want(cell.reader, message.step, message.chunks)
        else:
            assert isinstance(message, Free)
            cell.channel.stream.free(cell.reader, message.step)

    def _attach(self, source: Connection, asked: Attach) -> Attached | Refused:
        if asked.code != CODE:
            return Refused("it runs other code or other libraries than this cell")
        channel = self._channels.get(asked.key)
        if channel is None:
            slots = [each.ring.slot_bytes for each in self._channels.values()] + [asked.batch_rows * asked.row_bytes]
            least = _MIN_SLOTS * sum(slots)
            if least > self._max_bytes:
                return Refused(
                    f"{_MIN_SLOTS} batches of each of {len(slots)} data sets take {least / _GIB:.3g} GiB, but "
                    f"--share-loader-gib is {self._max_bytes / _GIB:.3g}"
                )
            channel = self._channels[asked.key] = self._open(asked)
        ahead = 1 + -(-_TASKS_AHEAD * len(self._workers) * channel.chunk_rows // asked.num_rows)
        reader = Reader(asked.start, asked.stop, max(2, min(_MAX_AHEAD, ahead)), asked.num_rows)
        self._cells[source] = self._of_reader[reader] = _Cell(source, reader, channel)
        channel.num_cells += 1
        channel.stream.join(reader)
        self._starting.pop(asked.cell, None)
        self._expect_nobody()
        self._deal_out()
        return Attached(reader.ahead, channel.chunk_rows, channel.ring.slot_bytes)

    def _open(self, asked: Attach) -> _Channel:
        slot_bytes = asked.batch_rows * asked.row_bytes
        ring = Ring(min(_MAX_SLOTS, self._max_bytes // slot_bytes), slot_bytes)
        stream = Stream(_MIN_SLOTS, ring.give_back)
        chunk_rows = min(_MAX_CHUNK, -(-asked.batch_rows // len(self._workers)))
        channel = _Channel(next(self._numbers), asked.key, asked.batches, stream, ring, chunk_rows)
        if len(self._starting) > (asked.cell in self._starting):
            channel.absent = Reader(asked.start, asked.stop, ahead=1, num_rows=0)
            stream.join(channel.absent)
        return channel

    def _expect_nobody(self) -> None:
        """Where all cells that were announced are there, nobody is waited for."""
        if self._starting:
            return
        for channel in self._channels.values():
            if channel.absent is not None:
                channel.stream.leave(channel.absent)
                channel.absent = None

    def _deal_out(self) -> None:
        """The memory among the streams: the least that each needs, and what is left by the number of their cells."""
        slots = sum(channel.ring.slot_bytes for channel in self._channels.values())
        share = (self._max_bytes - _MIN_SLOTS * slots) / max(1, len(self._cells))
        limits = {
            channel: min(channel.ring.num_slots, _MIN_SLOTS + int(share * channel.num_cells / channel.ring.slot_bytes))
            for channel in self._channels.values()
        }
        for channel, limit in sorted(limits.items(), key=lambda each: each[1] - each[0].stream.limit):
            channel.stream.set_limit(limit)

    def _lose(self, source: Connection) -> None:
        """A cell has ended or was killed."""
        source.close()
        self._new.discard(source)
        cell = self._cells.pop(source, None)
        if cell is None:
            return
        channel = cell.channel
        del self._of_reader[cell.reader]
        channel.stream.leave(cell.reader)
        channel.num_cells -= 1
        if not channel.num_cells:
            self._close(channel)
        self._deal_out()

    def _close(self, channel: _Channel) -> None:
        del self._channels[channel.key]
        channel.ring.close()
        for worker in self._workers.values():
            if channel.number in worker.opened:
                worker.opened.remove(channel.number)
                worker.connection.send(CloseStream(channel.number))
        stream = channel.stream
        say(f"decoded {stream.num_decoded:,} images, handed out {stream.num_handed_out:,}")

    def _hand_out(self, channel: _Channel) -> None:
        ready = channel.stream.ready
        while ready:
            given = ready.popleft()
            cell = self._of_reader.get(given.reader)
            if cell is None:
                continue
            # A rank holds two or three steps at any time, and the others must find room beside them.
            is_scarce = channel.stream.limit < 4 * channel.num_cells + 2
            try:
                cell.connection.send(Given(given.step, given.slot, given.told, is_scarce))
            except OSError:
                self._lose(cell.connection)

    def _give_tasks(self) -> None:
        for channel, task in self._next_tasks():
            worker = min(self._workers.values(), key=lambda each: len(each.tasks))
            if channel.number not in worker.opened:
                worker.opened.add(channel.number)
                worker.connection.send(OpenStream(channel.number, channel.batches, channel.ring.slot_bytes))
                reduction.send_handle(worker.connection, channel.ring.fd, 0)
            worker.tasks.append((channel, task))
            worker.connection.send(Chunk(channel.number, task.slot, task.low, task.request))

    def _next_tasks(self) -> Iterator[tuple[_Channel, Task]]:
        """As many as there are places at the workers, one of each stream in turn."""
        places = sum(_TASKS_AHEAD - len(worker.tasks) for worker in self._workers.values())
        waiting = [channel for channel in self._channels.values() if channel.stream.tasks]
        while places > 0 and waiting:
            channel = waiting.pop(0)
            places -= 1
            yield channel, channel.stream.tasks.popleft()
            if channel.stream.tasks:
                waiting.append(channel)


def serve(listener: socket.socket, owner: socket.socket, num_workers: int, max_bytes: int) -> None:
    """Serve cells until the owner's other end is closed and no cell is attached. EOFError, OSError: a worker was lost."""
    _Server(listener, owner, num_workers, max_bytes).run()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # the runner decides when it ends
    listener, owner, num_workers, max_bytes = (int(word) for word in sys.argv[1:])
    fork_worker_server()
    with socket.socket(fileno=listener) as channel, socket.socket(fileno=owner) as to_owner:
        try:
            serve(channel, to_owner, num_workers, max_bytes)
        except (EOFError, OSError) as error:
            say(f"a decoding process was lost ({type(error).__name__}); cells load for themselves")
            sys.exit(1)


if __name__ == "__main__":
    main()
