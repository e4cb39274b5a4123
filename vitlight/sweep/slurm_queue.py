"""What Slurm says of jobs: `squeue` and `scontrol` alone, since clusters may have no accounting (`sacct`)."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass

from vitlight.sweep.job_records import JobRecord

__all__ = ["JobState", "SlurmQueue"]

# The cluster's doing, not the cell's: it is submitted again. PREEMPTED and NODE_FAIL are seen for an instant before a
# requeue, too.
_ANOTHER_TRY = frozenset(("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "REVOKED", "TIMEOUT", "GONE"))
_ENDED = _ANOTHER_TRY | {"CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "OUT_OF_MEMORY"}
_RUNNING = frozenset(("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"))
_ANSWER_SECONDS = 60.0


@dataclass(frozen=True)
class JobState:
    """`state` in Slurm's words, or GONE where Slurm no longer knows the job; `reason` why it waits or where it runs."""

    job: str | None
    state: str
    reason: str

    @property
    def has_ended(self) -> bool:
        return self.state in _ENDED

    @property
    def asks_for_another_try(self) -> bool:
        return self.state in _ANOTHER_TRY

    @property
    def is_running(self) -> bool:
        return self.state in _RUNNING


@dataclass(frozen=True)
class _Row:
    job: str
    state: str
    reason: str
    comment: str


class SlurmQueue:
    """The user's jobs, asked for at most every `refresh_seconds`."""

    def __init__(self, refresh_seconds: float = 10.0) -> None:
        self._refresh_seconds = refresh_seconds
        self._rows: Mapping[str, _Row] | None = None
        self._asked: float | None = None
        self._cluster: str | None = None
        self.user = _user_name()
        self.trouble: str | None = None  # why Slurm gave no answer when it was last asked

    @property
    def cluster(self) -> str | None:
        """The cluster's name; None where Slurm doesn't answer."""
        if self._cluster is None:
            found = re.search(r"^ClusterName\s*=\s*(\S+)", self._run("scontrol", "show", "config") or "", re.MULTILINE)
            self._cluster = found.group(1) if found else None
        return self._cluster

    def state(self, record: JobRecord) -> JobState | None:
        """What became of a job. None where that can't be known here: Slurm doesn't answer, or the job is another user's
        or on another cluster."""
        if record.user != self.user or record.cluster != self.cluster:
            return None
        rows = self._refreshed()
        if rows is None:
            return None
        row = rows.get(record.job) if record.job else _find(rows, record)
        if row is None:
            return JobState(record.job, "GONE", "Slurm no longer knows the job")
        return JobState(row.job, row.state, row.reason)

    def exit_code(self, job: str) -> str | None:
        """`CODE:SIGNAL` of a job that has ended, None where Slurm has forgotten it."""
        found = re.search(r"\bExitCode=(\d+:\d+)", self._run("scontrol", "--oneliner", "show", "job", job) or "")
        return found.group(1) if found else None

    def cancel(self, job: str) -> None:
        self._run("scancel", job)
        self.forget()

    def forget(self) -> None:
        """Ask again at the next question."""
        self._asked = None

    def _refreshed(self) -> Mapping[str, _Row] | None:
        now = time.monotonic()
        if self._asked is None or now - self._asked >= self._refresh_seconds:
            words = (
                "squeue",
                "--noheader",
                "--array",
                "--states=all",
                f"--user={self.user}",
                "--format=%i|%T|%r|%N|%k",
            )
            answer = self._run(*words)
            self._rows = None if answer is None else _rows(answer)
            self._asked = now
        return self._rows

    def _run(self, *words: str) -> str | None:
        if shutil.which(words[0]) is None:
            self.trouble = f"there is no {words[0]} on this host"
            return None
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
        except subprocess.TimeoutExpired:
            self.trouble = f"{words[0]} gave no answer in {_ANSWER_SECONDS:g} s"
            return None
        self.trouble = None if done.returncode == 0 else f"{words[0]}: {' '.join(done.stderr.split())[:200]}"
        return None if done.returncode else done.stdout


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container; Slurm takes the number as well
        return str(os.getuid())


def _rows(answer: str) -> dict[str, _Row]:
    rows = {}
    for line in answer.splitlines():
        job, state, reason, nodes, comment = line.split("|", 4)
        rows[job] = _Row(job, state, nodes or reason, comment)
    return rows


def _find(rows: Mapping[str, _Row], record: JobRecord) -> _Row | None:
    """The job of a submission whose maker was killed before it could note the number."""
    ending = "" if record.task is None else f"_{record.task}"
    found = (row for row in rows.values() if row.comment == record.token and row.job.endswith(ending))
    return next(found, None)
