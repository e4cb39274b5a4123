"""Work on every shard, in this process or in several that are spawned; whatever comes first is handed over first."""

import itertools
import os
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from vitlight.data.parent import end_with_parent
from vitlight.errors import InputError

__all__ = ["each_shard", "num_processes_for"]

Result = TypeVar("Result")

_SHARDS_PER_PROCESS = 64
_work: Callable[[str], Any] | None = None  # in a spawned process: sent once, not with each shard


def num_processes_for(num_shards: int, num_processes: int | None) -> int:
    """As given, or one for each 64 shards, up to the number of cores."""
    if num_processes is not None and num_processes < 1:
        raise InputError(f"num_processes={num_processes} is not at least 1")
    return num_processes or max(1, min(os.cpu_count() or 1, num_shards // _SHARDS_PER_PROCESS))


def each_shard(
    work: Callable[[str], Result], shards: Sequence[str], num_processes: int
) -> Generator[tuple[str, Result]]:
    """(shard, work(shard)) of every shard: in order by one process, as they come by more, where `work` is pickled.

    Two shards a process are under way or wait to be taken. What `work` raises is raised here, and ends the work. Raises
    InputError where the system kills a process.
    """
    if num_processes == 1:
        yield from ((shard, work(shard)) for shard in shards)
        return
    rest = iter(shards)
    waiting: dict[Future[Result], str] = {}
    with ProcessPoolExecutor(num_processes, get_context("spawn"), initializer=_begin, initargs=(work,)) as pool:
        try:
            while True:
                for shard in itertools.islice(rest, 2 * num_processes - len(waiting)):
                    waiting[pool.submit(_run, shard)] = shard
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool as error:
            raise InputError(
                f"num_processes={num_processes}: one of them was killed, perhaps for want of memory; use fewer, it goes on "
                "where it stopped"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[str], Any]) -> None:
    global _work
    end_with_parent()
    _work = work


def _run(shard: str) -> Any:
    assert _work is not None
    return _work(shard)
