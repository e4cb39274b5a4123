"""How cells and runners end: finished, failed and why, stopped."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from vitlight.sweep.claims import read_attempts
from vitlight.sweep.plan import PlannedCell
from vitlight.sweep.status import FINISHED, Result, claim_path, read_result
from vitlight.training.signals import INTERRUPTED, REQUEUE

__all__ = ["Failure", "FailureMark", "SweepOutcome", "exit_reason", "is_finished", "result_reason"]


@dataclass(frozen=True)
class Failure:
    """A cell that ended without a result, or with the result `failed`."""

    planned: PlannedCell
    reason: str  # one line
    log: Path


@dataclass(frozen=True)
class SweepOutcome:
    """How one call of `run_sweep` ended."""

    num_done: int
    num_diverged: int
    num_started: int  # by this call
    failures: tuple[Failure, ...]  # in this call, another runner's included
    signum: int | None = None  # the signal that stopped it
    num_queued: int = 0  # cells that Slurm still has
    num_ended_early: int = 0  # by `early_terminate`
    is_stopped: bool = False  # by a request, all of it or some cells

    @property
    def exit_code(self) -> int:
        """1 where a cell failed, else 0; of a sweep that was stopped, as of a run: 75 where a scheduler did it, which then
        starts it again, and 128 + the signal's number for Ctrl-C and a closed terminal. A request is as Ctrl-C: nothing
        that starts jobs again should start this one."""
        if self.signum is not None:
            return REQUEUE if self.signum in (signal.SIGTERM, signal.SIGUSR1) else 128 + self.signum
        if self.failures:
            return 1
        return INTERRUPTED if self.is_stopped else 0


@dataclass(frozen=True)
class FailureMark:
    """What a cell's failures have left: the count kept by runners, and the failed result that it wrote itself."""

    num_failures: int
    content: bytes | None

    @classmethod
    def of(cls, planned: PlannedCell) -> FailureMark:
        result = read_result(planned.run.run_dir)
        return cls(read_attempts(claim_path(planned)).num_failures, result.content if result else None)

    def is_newer_than(self, other: FailureMark) -> bool:
        changed = self.content is not None and self.content != other.content
        return changed or self.num_failures > other.num_failures


def is_finished(result: Result | None) -> TypeGuard[Result]:
    """Whether the run has ended for good: done, diverged, or ended early."""
    return result is not None and result.status in FINISHED


def result_reason(result: Result | None) -> str | None:
    """The first line of the reason that a result gives, None where it gives none."""
    reason = str(result.values.get("reason") or "") if result else ""
    return next((line.strip() for line in reason.splitlines() if line.strip()), None)


def exit_reason(code: int, log: Path) -> str:
    """How a cell without a result ended, and the last thing it said."""
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code} and no result"
    lines: list[str] = []
    with suppress(FileNotFoundError), log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    # srun adds that a task has ended, and how, which is said already.
    last = next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("srun: ")), "")
    return how if not last or last.startswith("$ ") else f"{how}: {last[:300]}"
