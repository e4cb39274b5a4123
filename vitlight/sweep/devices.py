"""How cells that run at the same time share this machine: its GPUs where they train on GPUs, else its cores."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError

if TYPE_CHECKING:
    from vitlight.sweep.plan import PlannedCell

__all__ = ["Sharing", "devices_of", "equal_shares", "share_machine", "visible_gpus"]


@dataclass(frozen=True)
class Sharing:
    """`jobs` cells at a time on `gpus`, `gpus_per_cell` each, or on `num_cores` cores where there is no GPU.

    `threads`: of each cell's process (OMP_NUM_THREADS); None leaves it to torch, or to what the environment says.
    """

    jobs: int
    gpus: tuple[str, ...] = ()
    gpus_per_cell: int = 0
    num_cores: int = 1
    threads: int | None = None
    num_workers: int = 0  # the most loader processes that a cell starts

    def environment(self, slot: int) -> dict[str, str]:
        """Environment variables that give slot 0..jobs-1 its share. Neighbours among the GPUs go to one cell; where the
        jobs need more than there are, they are dealt out again from the first one."""
        environment = {"PYTHONUNBUFFERED": "1"}
        if self.gpus:
            first = slot * self.gpus_per_cell
            own = [self.gpus[(first + number) % len(self.gpus)] for number in range(self.gpus_per_cell)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        return environment

    def lines(self) -> list[str]:
        """What there is to say before cells start: how many at a time and on what, and what doesn't fit together."""
        cells = "1 cell" if self.jobs == 1 else f"{self.jobs} cells"
        if self.gpus:
            each = "" if self.jobs == 1 and self.gpus_per_cell == len(self.gpus) else f", {self.gpus_per_cell} each"
            said = [f"{cells} at a time on {_count(len(self.gpus), 'GPU')}{each}"]
            used = self.jobs * self.gpus_per_cell
            if used < len(self.gpus):
                said[0] += f"; {len(self.gpus) - used} left over"
            elif used > len(self.gpus):
                said[0] += "; cells share GPUs"
        else:
            said = [f"{cells} at a time on {_count(self.num_cores, 'core')}"]
            if self.threads is not None:
                said[0] += f", {_count(self.threads, 'thread')} each"
        workers = self.jobs * self.num_workers
        if workers > self.num_cores:
            fit = self.num_cores // self.jobs
            said.append(
                f"warning: data.num_workers={self.num_workers} makes {workers} loader processes on "
                f"{_count(self.num_cores, 'core')}; {fit} {'is' if fit < 2 else 'are'} as many as fit"
            )
        return said


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def equal_shares(jobs: int) -> Sharing:
    """The machine dealt out to `jobs` cells, of which nothing is known; a single one has all of it. InputError: jobs < 1."""
    gpus = visible_gpus() if jobs > 1 else ()
    return _share(jobs, gpus, max(1, len(gpus) // max(1, jobs)))


def share_machine(
    planned: Sequence[PlannedCell], jobs: int | None = None, devices_per_cell: int | None = None
) -> Sharing:
    """The machine shared by the cells of a sweep.

    devices_per_cell: GPUs, or cores where no cell trains on a GPU. Without it, what `trainer.devices` of the cells says;
    where that is `auto`, an equal share of the GPUs for each of the `jobs`, or one. jobs: by default as many as find GPUs of
    their own, or cores where devices_per_cell says how many; else one.

    InputError: less than 1 of either, more devices for a cell than there are, a cell that asks for more than it gets.
    """
    for value, name in ((jobs, "jobs"), (devices_per_cell, "devices-per-cell")):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it must be 1 or more: change --{name}")
    settings = [item.run.settings for item in planned if item.run.settings is not None]
    num_workers = max((int(one.data.num_workers) for one in settings), default=0)
    on_cpu = bool(settings) and all(one.trainer.accelerator == "cpu" for one in settings)
    gpus = () if on_cpu else visible_gpus()
    if not gpus:
        num_cores = len(os.sched_getaffinity(0))
        if devices_per_cell is not None and devices_per_cell > num_cores:
            raise InputError(f"devices-per-cell is {devices_per_cell}, but there are {num_cores} cores and no GPU")
        if jobs is None:
            jobs = 1 if devices_per_cell is None else num_cores // devices_per_cell
        return _share(jobs, (), 0, devices_per_cell, num_workers)
    asked = {
        item.cell.label: devices_of(item.run.settings.trainer) for item in planned if item.run.settings is not None
    }
    known = [number for number in asked.values() if number is not None]
    each = devices_per_cell
    if each is None:
        each = max(known) if known else 1 if jobs is None else max(1, len(gpus) // jobs)
    if each > len(gpus):
        whose = "devices-per-cell" if devices_per_cell is not None else "trainer.devices"
        raise InputError(f"{whose} is {each}, but {_count(len(gpus), 'GPU')} can be seen here")
    for label, number in asked.items():
        if number is not None and number != each:
            raise InputError(
                f"cell {label} has trainer.devices={number}, but each cell gets {_count(each, 'GPU')}; give "
                f"--devices-per-cell {number} where all cells have it, or leave trainer.devices out"
            )
    return _share(jobs if jobs is not None else len(gpus) // each, gpus, each, None, num_workers)


def _share(
    jobs: int, gpus: tuple[str, ...], gpus_per_cell: int, cores_per_cell: int | None = None, num_workers: int = 0
) -> Sharing:
    if jobs < 1:
        raise InputError(f"jobs is {jobs}; it must be 1 or more: change --jobs")
    num_cores, threads = len(os.sched_getaffinity(0)), cores_per_cell
    if threads is None and jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        threads = max(1, num_cores // jobs)
    return Sharing(jobs, gpus, gpus_per_cell if gpus else 0, num_cores, threads, num_workers)


def devices_of(trainer: Any) -> int | None:
    """How many devices of a node the Trainer's settings name; None for as many as there are, and on the CPU."""
    devices, accelerator = trainer.devices, trainer.accelerator
    if accelerator == "cpu" or devices in ("auto", -1, "-1", None):
        return None
    if isinstance(devices, str):
        names = [name for name in devices.split(",") if name.strip()]
        return int(names[0]) if len(names) == 1 and "," not in devices else len(names)
    return len(devices) if isinstance(devices, list | tuple) else int(devices)


def visible_gpus() -> tuple[str, ...]:
    """The CUDA devices that this process may use: CUDA_VISIBLE_DEVICES where it is set, else every one there is."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        # As in CUDA, an invalid entry hides itself and all that follow.
        devices = (device.strip() for device in listed.split(","))
        return tuple(itertools.takewhile(lambda device: device not in ("", "-1"), devices))
    import torch

    return tuple(str(index) for index in range(torch.cuda.device_count()))
