"""Runs what a sweep's directory lacks, on as many runners as one likes, each cell exactly once.

A cell is finished when its result.json says done, diverged or stopped. A runner takes a cell's claim (see `claims`), looks
again whether the cell is finished or with Slurm, and only then starts it; the claim is held until the outcome is on
disk. So a runner that is killed costs nothing: its cell goes on and keeps its claim, or dies and frees it, and whoever
runs the sweep next takes it from the run's own last checkpoint. A cell that fails is not tried again by the runners that
saw it fail; the next `run` tries it. What `sweep stop` and `sweep retry` ask for while it works is heeded (see `requests`).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.sweep.claims import Attempts, Claim, Claims
from vitlight.sweep.executors import Executor, Job, LocalExecutor
from vitlight.sweep.guide import Guide, open_guide
from vitlight.sweep.job_records import JobRecord, job_path, read_job, remove_job
from vitlight.sweep.leases import BEAT_SECONDS
from vitlight.sweep.outcomes import SweepOutcome, exit_reason, is_finished, result_reason
from vitlight.sweep.plan import PlannedCell, Resolve, awaits_trunk, plan_sweep, shorter_first, sweep_directory
from vitlight.sweep.progress import SweepProgress
from vitlight.sweep.requests import Request, Requests
from vitlight.sweep.slurm_queue import SlurmQueue
from vitlight.sweep.space import Sweep
from vitlight.sweep.status import Result, claim_path, log_path, read_result
from vitlight.sweep.stopping import Stop, stop_signals
from vitlight.sweep.tally import Tally, open_directory
from vitlight.training.signals import REQUEUE

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_planned", "run_sweep"]

TICK_SECONDS = 0.05


def run_sweep(
    sweep: Sweep,
    resolve: Resolve | None = None,
    root: Path | None = None,
    jobs: int = 1,
    executor: Executor | None = None,
    poll_seconds: float = 1.0,
    console: Console | None = None,
) -> SweepOutcome:
    """Run every cell that has no result yet, cheap ones first, `jobs` at a time, and wait for others' cells.

    `executor` replaces the local one (and `jobs`); claims of others are tried again every `poll_seconds`.
    SIGINT, SIGTERM, SIGHUP and SIGUSR1 reach the cells as SIGTERM, and the cells are awaited; a second signal kills them.
    InputError: as in `plan_sweep`, before anything is started; jobs < 1; the directory can't be made.
    """
    executor = executor or LocalExecutor(jobs)
    planned = plan_sweep(sweep, resolve, root)
    guide = open_guide(sweep, planned, resolve, root)
    return run_planned(planned, sweep.path, executor, poll_seconds, console, guide=guide)


def run_planned(
    planned: Sequence[PlannedCell],
    sweep_file: Path,
    executor: Executor,
    poll_seconds: float = 1.0,
    console: Console | None = None,
    beat_seconds: float = BEAT_SECONDS,
    guide: Guide | None = None,
    order: Callable[[PlannedCell], Any] = shorter_first,
) -> SweepOutcome:
    """`run_sweep` of cells that are planned already, and of those that the `guide` adds. A host that doesn't beat its
    claims' leases for 12 `beat_seconds` has lost them."""
    finished = open_directory(planned, sweep_file)
    with stop_signals() as stop, SweepProgress(planned, finished, console) as progress, Claims(beat_seconds) as claims:
        requests = Requests(sweep_directory(planned))
        tally = Tally(planned, finished, progress, order)
        return _Runner(tally, executor, progress, stop, claims, requests, guide).run(poll_seconds)


@dataclass
class _Running:
    planned: PlannedCell
    job: Job
    claim: Claim
    slot: int
    attempts: Attempts  # before this one
    content_before: bytes | None  # of result.json
    began: float
    is_lost: bool = False  # to another host
    is_asked: bool = False  # to stop, by a request


class _Runner:
    """One call of `run_sweep`: what waits, what runs, what has ended."""

    def __init__(
        self,
        tally: Tally,
        executor: Executor,
        progress: SweepProgress,
        stop: Stop,
        claims: Claims,
        requests: Requests,
        guide: Guide | None,
    ) -> None:
        self._tally, self._executor, self._progress = tally, executor, progress
        self._stop, self._claims, self._requests, self._queue = stop, claims, requests, SlurmQueue()
        self._asked: Request | None = None  # to stop altogether
        self._guide = guide
        self._waiting = list(tally.unfinished)
        self._running: list[_Running] = []
        self._free_slots = list(range(executor.num_slots))
        self._num_started = 0
        self._stopping = False
        self._said: set[str] = set()

    def run(self, poll_seconds: float) -> SweepOutcome:
        try:
            self._run(poll_seconds)
        except BaseException:
            self._wind_down("stopping after an error")
            raise
        if self._stop.signums:
            self._wind_down(signal.Signals(self._stop.signums[0]).name)
        elif self._asked:
            self._wind_down("stopping as asked")
        signum = self._stop.signums[0] if self._stop.signums else None
        return self._tally.outcome(self._num_started, signum, is_stopped=self._asked is not None)

    def _run(self, poll_seconds: float) -> None:
        next_scan = 0.0
        while (self._waiting or self._running or self._may_get_more()) and not self._stop.signums and not self._asked:
            if self._reap() or time.monotonic() >= next_scan:
                self._heed()
                self._check_claims()
                self._fill_slots()
                self._steer()
                next_scan = time.monotonic() + poll_seconds
                if self._waiting and not self._running and not self._asked:
                    self._say_once(f"waiting for {len(self._waiting)} cells that other runners have claimed", "waiting")
            self._progress.tick()
            time.sleep(TICK_SECONDS)

    def _fill_slots(self) -> None:
        for planned in list(self._waiting):
            if not self._free_slots or self._stop.signums or self._asked:
                return
            result = read_result(planned.run.run_dir)
            if is_finished(result):
                self._waiting.remove(planned)
                self._tally.finish(planned, result, ours=False)
                continue
            if self._awaits_trunk(planned) or self._is_with_slurm(planned, read_job(job_path(planned))):
                continue
            claim = self._claims.take(claim_path(planned))
            if claim is None:
                self._say_silent(planned)
            else:
                self._settle(planned, claim)

    def _may_get_more(self) -> bool:
        return self._guide is not None and self._guide.has_more

    def _steer(self) -> None:
        """Have cells end that fall behind, and take those that a search has come to suggest."""
        if self._guide is None:
            return
        self._guide.look()
        while new := self._guide.more(is_idle=bool(self._free_slots) and not (self._stop.signums or self._asked)):
            for planned in new:
                self._tally.add(planned)
            self._waiting += new
            self._fill_slots()
        for line in self._guide.take_lines():
            self._progress.say(line)

    def _settle(self, planned: PlannedCell, claim: Claim) -> None:
        """Start a cell whose claim was taken, unless somebody has just ended it or handed it to Slurm."""
        result = read_result(planned.run.run_dir)
        record = read_job(job_path(planned))
        if self._is_with_slurm(planned, record):
            claim.release()
            return
        if record is not None:
            remove_job(job_path(planned))
        self._waiting.remove(planned)
        if is_finished(result):
            claim.release()
            self._tally.finish(planned, result, ours=False)
        elif self._tally.has_failed_since(planned):
            claim.release()
            self._tally.fail(planned, self._tally.failure_reason(planned), ours=False)
        else:
            self._start(planned, claim, result)

    def _is_with_slurm(self, planned: PlannedCell, record: JobRecord | None) -> bool:
        """Whether a job has the cell, as far as Slurm says, or may have it where Slurm can't be asked."""
        if record is None:
            return False
        state = self._queue.state(record)
        if state is not None and state.has_ended:
            return False
        job = f"job {record.job} of {record.user} on {record.cluster}"
        self._say_once(f"with Slurm  {planned.cell.label}  {planned.run.run_id}  {job}", planned.run.run_id)
        return True

    def _say_silent(self, planned: PlannedCell) -> None:
        cell = f"{planned.cell.label}  {planned.run.run_id}"
        if (line := self._claims.new_silence(claim_path(planned), cell)) is not None:
            self._progress.say(line)

    def _say_once(self, text: str, key: str) -> None:
        if key not in self._said:
            self._said.add(key)
            self._progress.say(text)

    def _awaits_trunk(self, planned: PlannedCell) -> bool:
        return awaits_trunk(planned, [*self._waiting, *(running.planned for running in self._running)])

    def _heed(self) -> None:
        """Do what was asked of runners since the last look."""
        for request in self._requests.new():
            if request.action == "retry":
                self._waiting += self._tally.reopened(request.run_ids or ())
                self._waiting.sort(key=self._tally.order)
            elif request.run_ids is None:
                self._asked = request
                self._progress.say(f"asked to stop by {request.by}")
            else:
                for planned in [item for item in self._waiting if request.concerns(item.run.run_id)]:
                    self._waiting.remove(planned)
                    self._tally.stop(planned)
                for running in self._running:
                    if request.concerns(running.planned.run.run_id):
                        running.is_asked = True
                        running.job.terminate()

    def _check_claims(self) -> None:
        """End cells that another host has taken over, since it has heard nothing of this one for too long."""
        self._claims.check_keeper()
        for running in self._running:
            if not running.is_lost and running.claim.is_lost():
                running.is_lost = True
                running.job.kill()

    def _start(self, planned: PlannedCell, claim: Claim, result: Result | None) -> None:
        attempts = claim.attempts()
        claim.record(Attempts(attempts.num_failures))
        slot = self._free_slots.pop(0)
        try:
            job = self._executor.start(planned.args, slot, log_path(planned), claim.fd)
        except BaseException:
            claim.release()
            raise
        content = result.content if result else None
        self._running.append(_Running(planned, job, claim, slot, attempts, content, time.monotonic()))
        self._num_started += 1
        self._progress.started(planned)

    def _reap(self) -> bool:
        """Record the outcome of the cells that have ended; whether there were any."""
        ended = [(running, code) for running in self._running if (code := running.job.poll()) is not None]
        if any(code == REQUEUE for _, code in ended):
            self._heed()  # it may have found the stop file before this runner has found the request
        for running, code in ended:
            self._running.remove(running)
            self._free_slots.append(running.slot)
            result = read_result(running.planned.run.run_dir)
            if is_finished(result):
                self._tally.finish(running.planned, result, ours=True, seconds=time.monotonic() - running.began)
            elif running.is_lost:
                self._progress.stopped(running.planned, "taken over by another host")
                self._waiting.append(running.planned)
            elif self._stopping or running.is_asked or self._asked:
                self._progress.stopped(running.planned)
                if running.is_asked:
                    self._tally.stop(running.planned, say=False)
            elif code == REQUEUE:  # somebody else has stopped this cell alone
                self._progress.stopped(running.planned, "to go on")
                self._waiting.insert(0, running.planned)
            else:
                fresh = result if result is None or result.content != running.content_before else None
                reason = result_reason(fresh) or exit_reason(code, log_path(running.planned))
                running.claim.record(Attempts(running.attempts.num_failures + 1, reason))
                self._tally.fail(running.planned, reason, ours=True)
            running.claim.release()
        return bool(ended)

    def _wind_down(self, why: str) -> None:
        """Pass SIGTERM on and await the running cells; a further signal kills them."""
        if self._running:
            self._progress.say(f"{why}: waiting for {len(self._running)} running cells to end; again to kill them")
        for running in self._running:
            running.job.terminate()
        self._stopping, killed = True, False
        while self._running:
            if len(self._stop.signums) > 1 and not killed:
                killed = True
                for running in self._running:
                    running.job.kill()
            self._reap()
            time.sleep(TICK_SECONDS)
