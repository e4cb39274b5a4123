"""Cells stopped and cleared from outside, while runners may be at work on them.

Whatever is changed of a cell is changed by the holder of its claim; whatever is asked of a cell that somebody else holds is
left where its runner and the run itself look for it: a request (see `requests`), and a file in the run's directory (see
`training.stop_file`), since a run may have outlived its runner or belong to a Slurm job.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from vitlight.messages import say
from vitlight.sweep.claims import Attempts, Claims
from vitlight.sweep.job_records import JobRecord, job_path, read_job, remove_job
from vitlight.sweep.outcomes import is_finished
from vitlight.sweep.plan import PlannedCell, sweep_directory
from vitlight.sweep.requests import write_request
from vitlight.sweep.slurm_queue import SlurmQueue
from vitlight.sweep.status import cell_state, claim_path, read_result
from vitlight.training.end_requests import end_request_path
from vitlight.training.locks import take_lock
from vitlight.training.stop_file import StopFile

__all__ = ["Stopping", "ask_to_stop", "clear", "wait_until_ended"]

LOOK_SECONDS = 1.0
# What `clear` has set aside: result.1.json, checkpoints.1
_ASIDE = re.compile(r"\.(\d+)(\.\w+)?$")


@dataclass
class Stopping:
    """What became of a request to stop: cells that run and were asked, cells whose jobs waited and were cancelled, and cells
    whose jobs nothing could be learnt of from here."""

    running: list[PlannedCell] = field(default_factory=list)
    cancelled: list[PlannedCell] = field(default_factory=list)
    unreachable: list[tuple[PlannedCell, JobRecord]] = field(default_factory=list)


def ask_to_stop(planned: Sequence[PlannedCell], cells: Sequence[PlannedCell] | None, queue: SlurmQueue) -> Stopping:
    """Ask the runs of these cells to save and end, and runners to take none of them up again; `cells` None: the whole sweep,
    its runners included. Jobs of Slurm that wait are cancelled. InputError: the directory can't be written."""
    write_request(sweep_directory(planned), "stop", None if cells is None else [item.run.run_id for item in cells])
    stopping = Stopping()
    with Claims() as claims:
        for item in planned if cells is None else cells:
            record = read_job(job_path(item))
            if cell_state(item)[0] == "running":
                _leave_stop_file(item)
                stopping.running.append(item)
            elif record is not None:
                _cancel(item, record, claims, queue, stopping)
    return stopping


def wait_until_ended(
    planned: Sequence[PlannedCell],
    stopping: Stopping,
    say_ended: Callable[[PlannedCell, str | None], None],
    whole: bool,
    queue: SlurmQueue,
) -> None:
    """Until none of the asked cells runs; `say_ended` is called with each as it ends, and with the name of its host where
    that is given up for dead.

    A run that began just then has removed the file as one meant for an earlier attempt: it is asked again. A cell that was
    just being handed to Slurm is taken back.
    """
    waiting = list(stopping.running)
    with Claims() as claims:
        while waiting:
            time.sleep(LOOK_SECONDS)
            for item in list(waiting):
                dead_host = claims.free_if_silent(claim_path(item))
                if cell_state(item)[0] != "running":
                    waiting.remove(item)
                    if (record := read_job(job_path(item))) is not None:
                        _cancel(item, record, claims, queue, stopping)
                    say_ended(item, dead_host)
                    continue
                cell = f"{item.cell.label}  {item.run.run_id}"
                if (line := claims.new_silence(claim_path(item), cell)) is not None:
                    say(line)
                if item.run.run_dir.exists() and not StopFile(item.run.run_dir).path.exists():
                    write_request(sweep_directory(planned), "stop", None if whole else [item.run.run_id])
                    _leave_stop_file(item)


def clear(planned: PlannedCell, claims: Claims, from_scratch: bool) -> bool:
    """Make a cell that failed, diverged, was ended early or never got to its end one that waits: its failure is forgotten,
    and its result is set aside as result.N.json, N = 1, 2, ..., with the request to end it early; `from_scratch`: all else
    of the run is set aside under that number, too.

    False where somebody has it, or it is done.
    """
    claim = claims.take(claim_path(planned))
    if claim is None:
        return False
    run_dir = planned.run.run_dir
    lock = take_lock(run_dir / ".lock") if run_dir.is_dir() else None
    try:
        result = read_result(run_dir)
        is_done = is_finished(result) and result.status == "done"
        if (run_dir.is_dir() and lock is None) or job_path(planned).exists() or is_done:
            return False
        if run_dir.is_dir():
            StopFile(run_dir).withdraw()
            _set_aside(run_dir, from_scratch)
        claim.record(Attempts(claim.attempts().num_failures))
        return True
    finally:
        if lock is not None:
            os.close(lock.fd)
        claim.release()


def _set_aside(run_dir: Path, everything: bool) -> None:
    """The result goes last: until then the cell is as it was, and a second try sets the rest aside."""
    entries = [path for path in run_dir.iterdir() if not path.name.startswith(".")]
    numbers = [int(found[1]) for path in entries if (found := _ASIDE.search(path.name))]
    number = max(numbers, default=0) + 1
    result = run_dir / "result.json"
    rest = [path for path in entries if path != result and not _ASIDE.search(path.name)]
    if not everything:
        rest = [path for path in rest if path == end_request_path(run_dir)]
    for path in (*rest, *([result] if result in entries else [])):
        path.rename(path.with_name(f"{path.stem}.{number}{path.suffix}"))


def _leave_stop_file(planned: PlannedCell) -> None:
    with suppress(FileNotFoundError):  # it has no directory yet: its runner, or the next look, finds the request
        StopFile(planned.run.run_dir).request()


def _cancel(item: PlannedCell, record: JobRecord, claims: Claims, queue: SlurmQueue, stopping: Stopping) -> None:
    """End a job that has not begun with its cell; one that begins meanwhile is asked to stop as others are."""
    claim = claims.take(claim_path(item))
    if claim is None:
        _leave_stop_file(item)
        stopping.running.append(item)
        return
    try:
        if read_job(job_path(item)) != record:
            return
        state = queue.state(record)
        if state is None:
            stopping.unreachable.append((item, record))
            return
        if not state.has_ended and state.job is not None:
            queue.cancel(state.job)
        remove_job(job_path(item))
        stopping.cancelled.append(item)
    finally:
        claim.release()
