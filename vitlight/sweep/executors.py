"""Where cells run. An executor starts one cell and hands back a job to watch; which cell, and when, is the runner's.

`LocalExecutor` runs them as processes of this machine, `warm.WarmExecutor` as forks of a preloaded one. Another kind (a
cluster's queue) implements `Executor`: the runner holds the cell's claim while the job is alive, and `claim_fd` lets the job
outlive the runner with its claim.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from vitlight.sweep.devices import Sharing, equal_shares

__all__ = ["Executor", "Job", "LocalExecutor", "open_log"]

VITLIGHT = (sys.executable, "-m", "vitlight")


class Job(Protocol):
    """A started cell."""

    def poll(self) -> int | None:
        """None while it runs, then its exit code; -N where signal N ended it."""

    def terminate(self) -> None:
        """Ask it to write a checkpoint and end."""

    def kill(self) -> None:
        """End it at once."""


class Executor(Protocol):
    """Starts cells, at most `num_slots` at a time."""

    @property
    def num_slots(self) -> int: ...

    def start(self, args: Sequence[str], slot: int, log_path: Path, claim_fd: int) -> Job:
        """Start `vitlight ARGS` on slot 0..num_slots-1, its output appended to the log, `claim_fd` inherited by it."""


class LocalExecutor:
    """Cells as processes of this machine, each in its own process group: a terminal's Ctrl-C doesn't reach them."""

    def __init__(self, jobs: int | Sharing = 1, command: Sequence[str] = VITLIGHT) -> None:
        """jobs: cells at a time, each with an equal share of this machine, or what its share is. `command` stands for
        `vitlight`. InputError: jobs < 1."""
        self.sharing = jobs if isinstance(jobs, Sharing) else equal_shares(jobs)
        self.command = tuple(command)

    @property
    def num_slots(self) -> int:
        return self.sharing.jobs

    def start(self, args: Sequence[str], slot: int, log_path: Path, claim_fd: int) -> Job:
        with open_log(log_path, args) as log:
            return LocalJob(
                subprocess.Popen(
                    [*self.command, *args],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self.sharing.environment(slot)},
                    pass_fds=(claim_fd,),
                    process_group=0,
                )
            )


def open_log(path: Path, args: Sequence[str]) -> IO[str]:
    """The log of a cell, to be appended to; the command stands above what it will say."""
    log = path.open("a", encoding="utf-8")
    log.write(f"$ vitlight {shlex.join(args)}\n")
    log.flush()
    return log


class LocalJob:
    """A child process that leads its own process group."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> int | None:
        return self._process.poll()

    def terminate(self) -> None:
        self._process.terminate()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
