"""Runs what a sweep's directory lacks, on as many runners as one likes, each cell exactly once.

A cell is finished when its result.json says done or diverged. A runner takes a cell's claim (see `claims`), looks
again whether the cell is finished, and only then starts it; the claim is held until the outcome is on disk. So a
runner that is killed costs nothing: its cell goes on and keeps its claim, or dies and frees it, and whoever runs the
sweep next takes it from the run's own last checkpoint. A cell that fails is not tried again by the runners that saw it
fail; the next `run` tries it.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vitlight.errors import InputError
from vitlight.sweep.claims import Attempts, Claim
from vitlight.sweep.executors import Executor, Job, LocalExecutor
from vitlight.sweep.outcomes import Failure, FailureMark, SweepOutcome, exit_reason, is_finished, result_reason
from vitlight.sweep.plan import PlannedCell, Resolve, plan_sweep, shorter_first, sweep_directory
from vitlight.sweep.progress import SweepProgress, duration_text
from vitlight.sweep.space import Sweep
from vitlight.sweep.status import FINISHED, Result, claim_path, log_path, read_result
from vitlight.training.signals import REQUEUE

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_planned", "run_sweep"]

TICK_SECONDS = 0.05
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


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
    return run_planned(plan_sweep(sweep, resolve, root), sweep.path, executor, poll_seconds, console)


def run_planned(
    planned: Sequence[PlannedCell],
    sweep_file: Path,
    executor: Executor,
    poll_seconds: float = 1.0,
    console: Console | None = None,
) -> SweepOutcome:
    """`run_sweep` of cells that are planned already."""
    directory = sweep_directory(planned)
    try:
        for name in ("claims", "logs"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        _keep_copy(sweep_file, directory / "sweep.yaml")
    except OSError as error:
        raise InputError(f"{directory} can't be written ({error.strerror}); change --root") from None
    # A result is final, so it counts without the claim.
    results = {item.run.run_id: read_result(item.run.run_dir) for item in planned}
    finished = {run_id: result.status for run_id, result in results.items() if is_finished(result)}
    with _stop_signals() as stop, SweepProgress(planned, finished, console) as progress:
        return _Runner(planned, finished, executor, progress, stop).run(poll_seconds)


@dataclass
class _Stop:
    """Signals that have arrived."""

    signums: list[int] = field(default_factory=list)


@dataclass
class _Running:
    planned: PlannedCell
    job: Job
    claim: Claim
    slot: int
    attempts: Attempts  # before this one
    content_before: bytes | None  # of result.json
    began: float


class _Runner:
    """One call of `run_sweep`: what waits, what runs, what has ended."""

    def __init__(
        self,
        planned: Sequence[PlannedCell],
        finished: Mapping[str, str],
        executor: Executor,
        progress: SweepProgress,
        stop: _Stop,
    ) -> None:
        self._executor, self._progress, self._stop = executor, progress, stop
        unfinished = [item for item in planned if item.run.run_id not in finished]
        self._waiting = sorted(unfinished, key=shorter_first)
        self._marks = {item.run.run_id: FailureMark.of(item) for item in unfinished}
        self._running: list[_Running] = []
        self._free_slots = list(range(executor.num_slots))
        self._ended = {status: list(finished.values()).count(status) for status in FINISHED}
        self._failures: list[Failure] = []
        self._num_started = 0
        self._stopping = False

    def run(self, poll_seconds: float) -> SweepOutcome:
        try:
            self._run(poll_seconds)
        except BaseException:
            self._wind_down("stopping after an error")
            raise
        if self._stop.signums:
            self._wind_down(signal.Signals(self._stop.signums[0]).name)
        return SweepOutcome(
            num_done=self._ended["done"],
            num_diverged=self._ended["diverged"],
            num_started=self._num_started,
            failures=tuple(self._failures),
            signum=self._stop.signums[0] if self._stop.signums else None,
        )

    def _run(self, poll_seconds: float) -> None:
        next_scan = 0.0
        said_waiting = False
        while (self._waiting or self._running) and not self._stop.signums:
            if self._reap() or time.monotonic() >= next_scan:
                self._fill_slots()
                next_scan = time.monotonic() + poll_seconds
                if self._waiting and not self._running and not said_waiting:
                    said_waiting = True
                    self._progress.say(f"waiting for {len(self._waiting)} cells that other runners have claimed")
            self._progress.tick()
            time.sleep(TICK_SECONDS)

    def _fill_slots(self) -> None:
        for planned in list(self._waiting):
            if not self._free_slots or self._stop.signums:
                return
            if self._awaits_trunk(planned):
                continue
            claim = Claim.take(claim_path(planned))
            if claim is None:
                continue
            self._waiting.remove(planned)
            result = read_result(planned.run.run_dir)
            if is_finished(result):
                claim.release()
                self._finish(planned, result, ours=False)
            elif FailureMark.of(planned).is_newer_than(self._marks[planned.run.run_id]):
                reason = claim.attempts().reason or result_reason(result) or "failed"
                claim.release()
                self._fail(planned, reason, ours=False)
            else:
                self._start(planned, claim, result)

    def _awaits_trunk(self, planned: PlannedCell) -> bool:
        """Whether a shorter cell of its trunk, running or waiting, has yet to leave the state that this one begins from."""
        trunk = planned.run.trunk
        if trunk is None:
            return False
        others = [item.run.trunk for item in [*self._waiting, *(running.planned for running in self._running)]]
        steps = {other.last_step for other in others if other is not None and other.folder == trunk.folder}
        return any(step < trunk.last_step and not trunk.has(step) for step in steps)

    def _start(self, planned: PlannedCell, claim: Claim, result: Result | None) -> None:
        attempts = claim.attempts()
        claim.record(Attempts(attempts.num_failures))
        slot = self._free_slots.pop(0)
        job = self._executor.start(planned.args, slot, log_path(planned), claim.fd)
        content = result.content if result else None
        self._running.append(_Running(planned, job, claim, slot, attempts, content, time.monotonic()))
        self._num_started += 1
        self._progress.started(planned)

    def _reap(self) -> bool:
        """Record the outcome of the cells that have ended; whether there were any."""
        ended = [(running, code) for running in self._running if (code := running.job.poll()) is not None]
        for running, code in ended:
            self._running.remove(running)
            self._free_slots.append(running.slot)
            result = read_result(running.planned.run.run_dir)
            if is_finished(result):
                self._finish(running.planned, result, ours=True, seconds=time.monotonic() - running.began)
            elif self._stopping:
                self._progress.say(f"stopped  {running.planned.cell.label}  {running.planned.run.run_id}")
            elif code == REQUEUE:  # somebody else has stopped this cell alone
                self._progress.say(f"stopped, to go on  {running.planned.cell.label}  {running.planned.run.run_id}")
                self._waiting.insert(0, running.planned)
            else:
                fresh = result if result is None or result.content != running.content_before else None
                reason = result_reason(fresh) or exit_reason(code, log_path(running.planned))
                running.claim.record(Attempts(running.attempts.num_failures + 1, reason))
                self._fail(running.planned, reason, ours=True)
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

    def _finish(self, planned: PlannedCell, result: Result, ours: bool, seconds: float | None = None) -> None:
        self._ended[result.status] += 1
        top1 = result.values.get("top1")
        details = [f"top1 {top1:.4f}"] if isinstance(top1, float) else []
        details += [str(result_reason(result))] if result.status == "diverged" and result_reason(result) else []
        details += [duration_text(seconds)] if seconds is not None else []
        self._progress.ended(planned, result.status, "  ".join(details), ours)

    def _fail(self, planned: PlannedCell, reason: str, ours: bool) -> None:
        failure = Failure(planned, reason, log_path(planned))
        self._failures.append(failure)
        self._progress.ended(planned, "failed", f"{reason}  {failure.log}", ours)


def _keep_copy(source: Path, copy: Path) -> None:
    """The sweep file beside its runs, for the record; written beside and renamed, as runners may start together."""
    content = source.read_bytes()
    if copy.exists() and copy.read_bytes() == content:
        return
    part = copy.with_name(f".{copy.name}.{platform.node()}.{os.getpid()}")
    part.write_bytes(content)
    part.replace(copy)


@contextmanager
def _stop_signals() -> Iterator[_Stop]:
    """Collect STOP_SIGNALS instead of dying of them; those that the caller ignores stay ignored."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    for signum, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(signum, lambda number, _frame: stop.signums.append(number))
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
