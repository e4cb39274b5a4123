"""What becomes of a sweep's cells in one call, counted and told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitlight.errors import InputError
from vitlight.sweep.claims import read_attempts
from vitlight.sweep.outcomes import Failure, FailureMark, SweepOutcome, is_finished, result_reason
from vitlight.sweep.plan import PlannedCell, shorter_first, sweep_directory
from vitlight.sweep.progress import SweepProgress, duration_text
from vitlight.sweep.recorded_plan import record_plan
from vitlight.sweep.status import FINISHED, Result, claim_path, log_path, read_result
from vitlight.sweep.whole_files import replace_whole

__all__ = ["SWEEP_FILE", "Tally", "open_directory"]

SWEEP_FILE = "sweep.yaml"  # the copy in the sweep's directory


def open_directory(planned: Sequence[PlannedCell], sweep_file: Path) -> dict[str, str]:
    """Make the sweep's directory with a copy of its file; returns run id -> status of the cells that have ended for good.

    InputError: it can't be written.
    """
    directory = sweep_directory(planned)
    try:
        for name in ("claims", "logs"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        _keep_copy(sweep_file, directory / SWEEP_FILE)
    except OSError as error:
        raise InputError(f"{directory} can't be written ({error.strerror}); change --root") from None
    record_plan(planned)
    # A result is final, so it counts without the claim.
    results = {item.run.run_id: read_result(item.run.run_dir) for item in planned}
    return {run_id: result.status for run_id, result in results.items() if is_finished(result)}


def _keep_copy(source: Path, copy: Path) -> None:
    """The sweep file beside its runs, for the record."""
    content = source.read_bytes()
    if copy.exists() and copy.read_bytes() == content:
        return
    replace_whole(copy, content)


class Tally:
    """Counts cells that have ended, remembers the failures, and tells the progress."""

    def __init__(
        self,
        planned: Sequence[PlannedCell],
        finished: Mapping[str, str],
        progress: SweepProgress,
        order: Callable[[PlannedCell], Any] = shorter_first,
    ) -> None:
        """order: in which cells are started."""
        self._cells = {item.run.run_id: item for item in planned}
        self.order = order
        self.unfinished = sorted((item for item in planned if item.run.run_id not in finished), key=order)
        self._progress = progress
        self._marks = {item.run.run_id: FailureMark.of(item) for item in self.unfinished}
        self._ended = {status: list(finished.values()).count(status) for status in FINISHED}
        self._failures: list[Failure] = []
        self._without_metrics = {run_id: status for run_id, status in finished.items() if status != "done"}
        self._stopped: set[str] = set()

    def add(self, planned: PlannedCell) -> None:
        """One more cell, which nobody knew of when this call began."""
        self._cells[planned.run.run_id] = planned
        self._cells[planned.run.run_id] = planned
        self._marks[planned.run.run_id] = FailureMark.of(planned)
        self._progress.added(planned)

    def has_failed_since(self, planned: PlannedCell) -> bool:
        """Whether the cell has failed, here or elsewhere, after this call began."""
        return FailureMark.of(planned).is_newer_than(self._marks[planned.run.run_id])

    def failure_reason(self, planned: PlannedCell) -> str:
        """Why it has failed, from its claim's record or its result."""
        reason = read_attempts(claim_path(planned)).reason
        return reason or result_reason(read_result(planned.run.run_dir)) or "failed"

    def finish(self, planned: PlannedCell, result: Result, ours: bool, seconds: float | None = None) -> None:
        self._ended[result.status] += 1
        if result.status != "done":
            self._without_metrics[planned.run.run_id] = result.status
        top1 = result.values.get("top1")
        details = [f"top1 {top1:.4f}"] if isinstance(top1, float) else []
        details += [str(result_reason(result))] if result.status != "done" and result_reason(result) else []
        details += [duration_text(seconds)] if seconds is not None else []
        self._progress.ended(planned, result.status, "  ".join(details), ours)

    def fail(self, planned: PlannedCell, reason: str, ours: bool) -> None:
        failure = Failure(planned, reason, log_path(planned))
        self._failures.append(failure)
        self._progress.ended(planned, "failed", f"{reason}  {failure.log}", ours)

    def stop(self, planned: PlannedCell, say: bool = True) -> None:
        """The cell is left to the next call, as somebody has asked."""
        self._stopped.add(planned.run.run_id)
        if say:
            self._progress.say(f"left     {planned.cell.label}  {planned.run.run_id}  as asked")

    def reopened(self, run_ids: Iterable[str]) -> list[PlannedCell]:
        """Those cells that had ended in this call, or before it, and that somebody has cleared: they are to be run."""
        cells = [self._cells[run_id] for run_id in run_ids if run_id in self._cells]
        self._marks |= {item.run.run_id: FailureMark.of(item) for item in cells}  # what is cleared is no new failure
        return [item for item in cells if not is_finished(read_result(item.run.run_dir)) and self._reopen(item)]

    def _reopen(self, planned: PlannedCell) -> bool:
        """Count a cell that failed, diverged or was stopped as unfinished; False where it is none of these."""
        run_id = planned.run.run_id
        failures = [failure for failure in self._failures if failure.planned.run.run_id != run_id]
        status = self._without_metrics.pop(run_id, None)
        if len(failures) == len(self._failures) and status is None and run_id not in self._stopped:
            return False
        if run_id not in self._stopped:
            self._progress.reopened(planned, status or "failed")
        self._failures = failures
        if status is not None:
            self._ended[status] -= 1
        self._stopped.discard(run_id)
        return True

    def outcome(
        self, num_started: int, signum: int | None, num_queued: int = 0, is_stopped: bool = False
    ) -> SweepOutcome:
        return SweepOutcome(
            num_done=self._ended["done"],
            num_diverged=self._ended["diverged"],
            num_ended_early=self._ended["stopped"],
            num_started=num_started,
            failures=tuple(self._failures),
            signum=signum,
            num_queued=num_queued,
            is_stopped=is_stopped or bool(self._stopped),
        )
