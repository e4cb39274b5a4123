"""The server that loader workers are forked from, as a fork of a process that has imported what they need.

By default `multiprocessing` starts an interpreter for it, which imports torch anew: for longer than a small run trains.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterable
from multiprocessing import forkserver, resource_tracker, util
from pathlib import Path
from typing import NoReturn

__all__ = ["close_all_but", "fork_worker_server"]

# Whether and when a run stops on these is up to its main process. From `vitlight fit` a server inherits those blocked that
# the run listens to; this one is made before the run is read.
_MAIN_PROCESS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def fork_worker_server() -> None:
    """Start it now, for the rest of this process: one that has a single thread, and no device, lock or file of its own that
    workers must not share. It ends with this process."""
    resource_tracker.ensure_running()
    start_interpreter = util.spawnv_passfds
    util.spawnv_passfds = _fork_instead  # type: ignore[assignment]
    try:
        forkserver.ensure_running()
    finally:
        util.spawnv_passfds = start_interpreter


def close_all_but(kept: set[int]) -> None:
    """Close the descriptors that a fork doesn't share with its parent: a run's claim above all."""
    for number in [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]:
        if number not in kept:
            with contextlib.suppress(OSError):  # the one that the folder was read with
                os.close(number)


def _fork_instead(path: bytes, args: list[str], passfds: Iterable[int]) -> int:
    """The process id of a fork that does what the interpreter would do with `-c CODE` as its last arguments."""
    return os.fork() or _serve(args[-1], {0, 1, 2, *passfds})


def _serve(code: str, kept: set[int]) -> NoReturn:
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _MAIN_PROCESS_SIGNALS)
        close_all_but(kept)
        # Held by whoever started this, and so for ever.
        forkserver._forkserver._lock = threading.Lock()  # type: ignore[attr-defined]
        exec(code, {})
        status = 0
    except SystemExit:
        status = 0
    finally:
        os._exit(status)
