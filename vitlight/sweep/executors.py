"""Where cells run. An executor starts one cell and hands back a job to watch; which cell, and when, is the runner's.

`LocalExecutor` runs them as processes of this machine. Another kind (a cluster's queue) implements `Executor`: the
runner holds the cell's claim while the job is alive, and `claim_fd` lets the job outlive the runner with its claim.
"""

import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vitlight.errors import InputError

__all__ = ["Executor", "Job", "LocalExecutor", "slot_environment"]

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

    def __init__(self, jobs: int = 1, command: Sequence[str] = VITLIGHT) -> None:
        """`command` stands for `vitlight`. InputError: jobs < 1."""
        if jobs < 1:
            raise InputError(f"jobs is {jobs}; it must be 1 or more: change --jobs")
        self.num_slots = jobs
        self.command = tuple(command)
        gpus = visible_gpus() if jobs > 1 else ()
        self._environments = [slot_environment(slot, jobs, gpus) for slot in range(jobs)]

    def start(self, args: Sequence[str], slot: int, log_path: Path, claim_fd: int) -> Job:
        with log_path.open("a", encoding="utf-8") as log:
            log.write(f"$ vitlight {shlex.join(args)}\n")
            log.flush()
            return LocalJob(
                subprocess.Popen(
                    [*self.command, *args],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **self._environments[slot]},
                    pass_fds=(claim_fd,),
                    process_group=0,
                )
            )


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


def visible_gpus() -> tuple[str, ...]:
    """The CUDA devices that this process may use: CUDA_VISIBLE_DEVICES where it is set, else every one there is."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        # As in CUDA, an invalid entry hides itself and all that follow.
        devices = (device.strip() for device in listed.split(","))
        return tuple(itertools.takewhile(lambda device: device not in ("", "-1"), devices))
    import torch

    return tuple(str(index) for index in range(torch.cuda.device_count()))


def slot_environment(slot: int, jobs: int, gpus: Sequence[str]) -> dict[str, str]:
    """Environment variables that give slot 0..jobs-1 its share of the machine.

    GPUs are dealt out in turn; more jobs than GPUs share them. Without a GPU each job gets its share of the cores,
    unless OMP_NUM_THREADS is set already.
    """
    environment = {"PYTHONUNBUFFERED": "1"}
    if jobs > 1 and gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot % len(gpus) :: jobs])
    elif jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        environment["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    return environment
