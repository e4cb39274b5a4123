"""One loader for the cells that run on a machine at the same time: started beside them, and named to each of them.

The loader is `vitlight.data.shared_server`, a process of its own that ends with the last cell it serves. Cells that train on
the same batches get them from it decoded once; what it can't give a cell, the cell decodes itself. Linux alone.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.sweep.executors import Executor, Job
from vitlight.sweep.plan import shorter_first, sweep_directory

if TYPE_CHECKING:
    from vitlight.sweep.plan import PlannedCell

__all__ = ["DEFAULT_GIB", "SharingExecutor", "check_loader_arguments", "same_data_together", "share_loader"]

DEFAULT_GIB = 4.0  # or a quarter of the machine's memory, where that is less
_GIB = 1 << 30
# What a cell does with its batches once it has them, and what it reads beside them.
_NOT_OF_TRAINING_IMAGES = (
    *("test", "evaluation_sets", "mixing", "mean", "std", "num_classes", "eval_crop", "eval_batch_size", "num_workers"),
    *("index_dir", "cache_dir", "cache_gib", "shared_loader"),
)


def check_loader_arguments(args: argparse.Namespace) -> None:
    """InputError: what a shared loader is to be like, where none is asked for."""
    for name in ("share_loader_workers", "share_loader_gib"):
        if getattr(args, name) is not None and not args.share_loader:
            raise InputError(f"--{name.replace('_', '-')}={getattr(args, name):g} needs --share-loader")


@contextlib.contextmanager
def share_loader(
    args: argparse.Namespace, planned: Sequence[PlannedCell], executor: Executor
) -> Iterator[tuple[Executor, Callable[[PlannedCell], Any]]]:
    """What starts cells, and in which order, as the arguments of `sweep run` say."""
    if not args.share_loader:
        yield executor, shorter_first
        return
    log = sweep_directory(planned) / "logs" / "shared-loader.log"
    with SharingExecutor(executor, log, args.share_loader_workers, args.share_loader_gib) as sharing:
        for line in sharing.lines():
            say(line)
        yield sharing, same_data_together(planned)


class SharingExecutor:
    """Starts cells as another executor does, and gives them the address of a loader that they share.

    num_workers: decoding processes; None: one for each core. gib: of memory for decoded batches; None: DEFAULT_GIB. log: of
    the loader. Use it as a context: the loader begins with it, and when it ends goes on until no cell is attached any more.
    InputError: there are no such sockets here, or less memory than gib.
    """

    def __init__(self, executor: Executor, log: Path, num_workers: int | None = None, gib: float | None = None) -> None:
        if sys.platform != "linux":
            raise InputError(f"--share-loader needs Linux, and this is {sys.platform}; leave it out")
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / _GIB
        gib = min(DEFAULT_GIB, memory / 4) if gib is None else gib
        if not 0 < gib <= memory:
            raise InputError(
                f"--share-loader-gib={gib:g} is not above 0 and at most {memory:.3g}, this machine's memory"
            )
        self._executor, self._log = executor, log
        self._num_workers, self._num_bytes = num_workers or len(os.sched_getaffinity(0)), int(gib * _GIB)
        self._numbers = itertools.count()
        self._is_lost = False

    @property
    def num_slots(self) -> int:
        return self._executor.num_slots

    @property
    def pid(self) -> int:
        """Of the loader."""
        return self._loader.pid

    def lines(self) -> list[str]:
        """What there is to say before cells start."""
        gib = self._num_bytes / _GIB
        said = [f"one loader for all cells: {self._num_workers} decoding processes, at most {gib:.3g} GiB of batches"]
        if self.num_slots == 1:
            said.append("warning: one cell at a time has nobody to share the loader with; give --jobs")
        return said

    def __enter__(self) -> SharingExecutor:
        from vitlight.data.shared_process import LoaderProcess

        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._loader = LoaderProcess(self._log, self._num_workers, self._num_bytes)
        except OSError as error:
            raise InputError(f"{self._log} can't be written ({error.strerror}); change --root") from None
        return self

    def __exit__(self, *_: object) -> None:
        self._loader.close()

    def start(self, args: Sequence[str], slot: int, log_path: Path, claim_fd: int) -> Job:
        cell = str(next(self._numbers))
        if self._loader.expect(cell):
            args = [*args, f"--data.shared_loader={self._loader.address}/{cell}"]
        elif not self._is_lost:
            self._is_lost = True
            say(f"vitlight: the shared loader has ended, see {self._log}; cells load for themselves")
        return self._executor.start(args, slot, log_path, claim_fd)


def same_data_together(planned: Sequence[PlannedCell]) -> Callable[[PlannedCell], tuple[Any, ...]]:
    """The order in which cells start that share a loader: those on the same batches one after another, groups and cells from
    the cheapest on."""
    cheapest: dict[str, tuple[int, int, int]] = {}
    for item in planned:
        name = _training_images(item)
        cheapest[name] = min(cheapest.get(name, shorter_first(item)), shorter_first(item))

    def order(item: PlannedCell) -> tuple[Any, ...]:
        own = shorter_first(item)
        return (*cheapest.get(_training_images(item), own), *own)

    return order


def _training_images(planned: PlannedCell) -> str:
    """What of the settings decides the batches."""
    settings = planned.run.settings
    if settings is None:
        return planned.run.run_id
    data = {name: value for name, value in vars(settings.data).items() if name not in _NOT_OF_TRAINING_IMAGES}
    return repr((planned.run.seed, sorted(data.items())))
