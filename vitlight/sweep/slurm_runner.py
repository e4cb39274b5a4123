"""Runs a sweep as Slurm jobs: submits the cells that nobody has, follows the jobs, and submits again what the cluster lost.

The jobs take the cells' claims themselves; this runner only keeps the books, so that it may be killed, or detached, and
another one goes on from the records (see `job_records`). Runners of other kinds may work on the same directory.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitlight.sweep.claims import Attempts, Claim, Claims
from vitlight.sweep.guide import Guide
from vitlight.sweep.job_records import JobRecord, job_path, read_job, remove_job, write_job
from vitlight.sweep.outcomes import SweepOutcome, is_finished
from vitlight.sweep.plan import PlannedCell, awaits_trunk, number_ranges, sweep_directory
from vitlight.sweep.progress import SweepProgress
from vitlight.sweep.requests import Requests
from vitlight.sweep.slurm_queue import JobState, SlurmQueue
from vitlight.sweep.slurm_submit import SlurmSubmitter
from vitlight.sweep.status import claim_path, read_result
from vitlight.sweep.stopping import Stop, stop_signals
from vitlight.sweep.tally import Tally, open_directory

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["run_on_slurm"]

MAX_SUBMISSIONS = 20  # of one cell by one runner
MAX_KILLED = 3  # of these, after a job that was killed
TICK_SECONDS = 0.2


def run_on_slurm(
    planned: Sequence[PlannedCell],
    sweep_file: Path,
    submitter: SlurmSubmitter,
    queue: SlurmQueue,
    detach: bool = False,
    poll_seconds: float = 5.0,
    console: Console | None = None,
    guide: Guide | None = None,
) -> SweepOutcome:
    """Submit every cell that has no result and is with nobody, and wait for the end of all; `detach`: don't wait, and leave
    those that begin where others end to the next call.

    The signals that stop `run_sweep` stop the waiting alone: the jobs go on, and the next call adopts them.
    InputError: as in `run_planned`; Slurm can't be reached, or sbatch refuses.
    """
    finished = open_directory(planned, sweep_file)
    with stop_signals() as stop, SweepProgress(planned, finished, console) as progress, Claims() as claims:
        requests = Requests(sweep_directory(planned))
        runner = _SlurmRunner(
            Tally(planned, finished, progress), submitter, queue, progress, stop, claims, requests, guide, detach
        )
        return runner.run(poll_seconds)


class _SlurmRunner:
    def __init__(
        self,
        tally: Tally,
        submitter: SlurmSubmitter,
        queue: SlurmQueue,
        progress: SweepProgress,
        stop: Stop,
        claims: Claims,
        requests: Requests,
        guide: Guide | None,
        detach: bool,
    ) -> None:
        self._tally, self._submitter, self._queue = tally, submitter, queue
        self._progress, self._stop, self._claims, self._requests = progress, stop, claims, requests
        self._is_asked = False  # to stop altogether
        self._guide, self._detach = guide, detach
        self._open = list(tally.unfinished)
        self._states: dict[str, str] = {}  # run id -> what was last said of its job
        self._num_submissions: dict[str, int] = {}
        self._ended_once: set[str] = set()
        self._trouble: str | None = None

    def run(self, poll_seconds: float) -> SweepOutcome:
        next_scan = 0.0
        while self._open and not self._stop.signums:
            if time.monotonic() >= next_scan:
                self._heed()
                if self._is_asked:
                    break
                self._scan()
                if self._detach:
                    self._say_left_out()
                    break
                next_scan = time.monotonic() + poll_seconds
            self._progress.tick()
            time.sleep(TICK_SECONDS)
        num_queued = sum(job_path(item).exists() for item in self._open)
        signum = self._stop.signums[0] if self._stop.signums else None
        return self._tally.outcome(sum(self._num_submissions.values()), signum, num_queued, self._is_asked)

    def _heed(self) -> None:
        """Do what was asked of runners since the last look; the jobs themselves are ended by whoever asks."""
        for request in self._requests.new():
            if request.action == "retry":
                self._open += self._tally.reopened(request.run_ids or ())
            elif request.run_ids is None:
                self._is_asked = True
                self._progress.say(f"asked to stop by {request.by}")
            else:
                for planned in [item for item in self._open if request.concerns(item.run.run_id)]:
                    self._open.remove(planned)
                    self._tally.stop(planned)

    def _scan(self) -> None:
        wanted = []
        for planned in list(self._open):
            result = read_result(planned.run.run_dir)
            record = read_job(job_path(planned))
            if is_finished(result):
                self._open.remove(planned)
                self._tally.finish(planned, result, ours=planned.run.run_id in self._states)
            elif record is not None:
                self._follow(planned, record)
            elif self._tally.has_failed_since(planned):
                self._open.remove(planned)
                self._tally.fail(planned, self._tally.failure_reason(planned), ours=planned.run.run_id in self._states)
            elif not awaits_trunk(planned, self._open):
                wanted.append(planned)
        self._claims.check_keeper()
        if self._guide is not None:
            self._guide.look()
            for line in self._guide.take_lines():
                self._progress.say(line)
        self._say_trouble()
        for array in self._submitter.arrays(wanted):
            self._submit(array)

    def _follow(self, planned: PlannedCell, record: JobRecord) -> None:
        state = self._queue.state(record)
        run_id = planned.run.run_id
        if state is None:
            if run_id not in self._states:
                self._say(planned, "unknown", f"job {record.job or '?'} of {record.user} on {record.cluster}")
        elif not state.has_ended:
            self._ended_once.discard(run_id)
            if record.job is None:
                self._adopt(planned, record, state)
            if state.is_running:
                self._say(planned, "running", f"job {state.job} on {state.reason}")
            else:
                self._say(planned, "queued", f"job {state.job}, {state.reason}")
        elif run_id not in self._ended_once:
            self._ended_once.add(run_id)  # said once of a job that is just being requeued, too
            self._queue.forget()
        else:
            self._bury(planned, record, state)

    def _adopt(self, planned: PlannedCell, record: JobRecord, state: JobState) -> None:
        """Note the number of a job whose submitter was killed before it did, or end the job where it has nothing to run."""
        assert state.job is not None
        claim = self._take(planned)
        if claim is None:  # the submitter's, or the job's
            return
        if read_job(job_path(planned)) == record:
            if self._submitter.is_complete(state.job):
                write_job(job_path(planned), replace(record, job=state.job))
            else:
                self._queue.cancel(state.job)
                remove_job(job_path(planned))
        claim.release()

    def _bury(self, planned: PlannedCell, record: JobRecord, state: JobState) -> None:
        """Free the cell of a job that is over and has left no result. Waits for the claim, and so for the end of all that
        the job has started, as far as can be known."""
        claim = self._take(planned)
        if claim is None:
            return
        self._ended_once.discard(planned.run.run_id)
        if read_job(job_path(planned)) == record and not is_finished(read_result(planned.run.run_dir)):
            code = self._queue.exit_code(state.job) if state.job else None
            if self._deserves_another_try(planned, record, state, code):
                self._say(planned, "lost", f"job {state.job} ({state.state})")
            else:
                reason = f"Slurm ended job {state.job}: {state.state}" + (f", exit code {code}" if code else "")
                claim.record(Attempts(claim.attempts().num_failures + 1, reason))
            remove_job(job_path(planned))
        claim.release()

    def _deserves_another_try(self, planned: PlannedCell, record: JobRecord, state: JobState, code: str | None) -> bool:
        """A job that gives up says so in the cell's claim. One that a signal has ended said nothing: its node was dying, or
        out of memory, which would happen again."""
        num_submissions = self._num_submissions.get(planned.run.run_id, 0)
        if state.state == "FAILED" and code is not None and not code.endswith(":0"):
            return num_submissions < MAX_KILLED
        return (state.asks_for_another_try or record.job is None) and num_submissions < MAX_SUBMISSIONS

    def _submit(self, array: Sequence[PlannedCell]) -> None:
        """One array of the cells whose claims can be had, and that are still nobody's, as many as there is room for."""
        held: list[Claim] = []
        free: list[PlannedCell] = []
        room = self._room()
        try:
            for planned in array:
                if len(free) == room:
                    break
                claim = self._take(planned)
                if claim is None:
                    self._say_silent(planned)
                    continue
                held.append(claim)
                if self._is_free(planned):
                    free.append(planned)
            if not free:
                return
            numbers = self._submitter.submit(free)
            for run_id in (planned.run.run_id for planned in free):
                self._num_submissions[run_id] = self._num_submissions.get(run_id, 0) + 1
                self._states[run_id] = "queued"
            self._progress.submitted(free, numbers[0] if len(free) == 1 else f"{numbers[0]} to {numbers[-1]}")
        finally:
            for claim in held:
                claim.release()

    def _room(self) -> int | None:
        """How many cells may be submitted now; None: any number. Slurm bounds the jobs of one array, so that it gets a whole
        one while it has nothing else of this sweep, and as many more as are missing while it has fewer than that. Whoever
        detaches is not there to do so."""
        num_with_slurm = sum(job_path(item).exists() for item in self._open)
        if self._submitter.max_parallel is None or self._detach or not num_with_slurm:
            return None
        return max(0, self._submitter.max_parallel - num_with_slurm)

    def _is_free(self, planned: PlannedCell) -> bool:
        is_with_slurm = job_path(planned).exists()
        is_done = is_finished(read_result(planned.run.run_dir)) or self._tally.has_failed_since(planned)
        return not (is_with_slurm or is_done)

    def _take(self, planned: PlannedCell) -> Claim | None:
        return self._claims.take(claim_path(planned))

    def _say(self, planned: PlannedCell, state: str, detail: str) -> None:
        """One line whenever a job's state changes."""
        run_id = planned.run.run_id
        if self._states.get(run_id) != state:
            self._progress.with_slurm(planned, state, detail)
            self._states[run_id] = state

    def _say_left_out(self) -> None:
        """Of the cells that `detach` doesn't submit."""
        left = [item for item in self._open if not job_path(item).exists() and awaits_trunk(item, self._open)]
        if left:
            named = ("cells " if len(left) > 1 else "cell ") + number_ranges(sorted(item.cell.index for item in left))
            self._progress.say(
                f"not submitted: {named}, to begin where shorter cells of the trunk end; the same command submits what is "
                "left once those have ended"
            )

    def _say_silent(self, planned: PlannedCell) -> None:
        cell = f"{planned.cell.label}  {planned.run.run_id}"
        if (line := self._claims.new_silence(claim_path(planned), cell)) is not None:
            self._progress.say(line)

    def _say_trouble(self) -> None:
        if self._queue.trouble != self._trouble:
            self._trouble = self._queue.trouble
            said = f"Slurm doesn't answer ({self._trouble}); waiting" if self._trouble else "Slurm answers again"
            self._progress.say(said)
