"""What a Slurm job runs: one cell's `vitlight fit` under `srun`, with the cell's claim, requeued until it is done.

It runs on the first node of the job, as a part of the batch script (`docs/slurm/fit.sh` is the same for one run without
a sweep). Slurm may start it any number of times, on any nodes.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

from vitlight.sweep.claims import Attempts, Claim, Claims
from vitlight.sweep.job_records import read_job, remove_job, write_job
from vitlight.sweep.outcomes import exit_reason, is_finished, result_reason
from vitlight.sweep.requests import Requests
from vitlight.sweep.status import Result, read_result
from vitlight.training.signals import REQUEUE

__all__ = ["CellFailed", "SlurmCell"]

MAX_CRASHES = 3  # of a cell on several nodes, any of which may be the one that dies
_CLAIM_SECONDS = 900.0
_TO_BE_ENDED_SECONDS = 600.0
_LOOK_SECONDS = 10.0
# Saved, start me again; and USR1 or TERM that came before Python could take them.
_AGAIN = (REQUEUE, 128 + signal.SIGUSR1, 128 + signal.SIGTERM)
_FOR_GOOD = (2, 130)  # bad input, and SIGINT by hand


class CellFailed(RuntimeError):
    """The job ends with an error, so that Slurm shows it as failed."""


@dataclass(frozen=True)
class SlurmCell:
    """One cell, as plain values that can be pickled. Called with nothing, it runs the cell."""

    token: str
    command: tuple[str, ...]  # vitlight and all arguments
    num_nodes: int
    ranks_per_node: int
    cpus_per_task: int | None
    run_dir: Path
    claim: Path
    job: Path  # the record
    log: Path

    def __call__(self) -> str:
        """How it ended, in a word. CellFailed: without a result. SystemExit: to be started again by Slurm."""
        ending = _Ending()
        requests = Requests(self.claim.parent.parent)
        with Claims() as claims:
            claim = self._take(claims)
            if claim is None:
                return "finished by another"
            record = read_job(self.job)
            if record is None or record.token != self.token:
                claim.release()
                return "no longer wanted"
            before = read_result(self.run_dir)
            if is_finished(before):
                return self._end(claim, before.status)
            attempts = claim.attempts()
            claim.record(Attempts(attempts.num_failures))
            code = self._run(claims, claim)
            result = read_result(self.run_dir)
            if is_finished(result):
                return self._end(claim, result.status)
            if (
                ending.asked
            ):  # cancelled, preempted or requeued: Slurm ends this process, and knows what becomes of the job
                claim.release()
                time.sleep(_TO_BE_ENDED_SECONDS)
                raise SystemExit(code)
            if any(each.action == "stop" and each.concerns(self.claim.stem) for each in requests.new()):
                return self._end(claim, "stopped")
            may_be_a_node = self.num_nodes > 1 and code not in _FOR_GOOD and record.num_crashes + 1 < MAX_CRASHES
            if code in _AGAIN or may_be_a_node:
                if code not in _AGAIN:
                    write_job(self.job, replace(record, num_crashes=record.num_crashes + 1))
                claim.release()
                subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=False)
                raise SystemExit(REQUEUE)
            reason = self._reason(code, before, result)
            claim.record(Attempts(attempts.num_failures + 1, reason))
            self._end(claim, "failed")
            raise CellFailed(reason)

    def _take(self, claims: Claims) -> Claim | None:
        """The claim, waited for: the last attempt may not have quite ended, or its node is gone. None where the cell has
        meanwhile got a result."""
        deadline = time.monotonic() + _CLAIM_SECONDS
        while (claim := claims.take(self.claim)) is None:
            if is_finished(read_result(self.run_dir)):
                return None
            if time.monotonic() > deadline:
                raise CellFailed(f"somebody else has had the claim {self.claim} for {_CLAIM_SECONDS:g} s")
            time.sleep(1.0)
        return claim

    def srun_words(self) -> list[str]:
        # srun inherits no --cpus-per-task from sbatch (Slurm 22.05 and later).
        cpus = [] if self.cpus_per_task is None else [f"--cpus-per-task={self.cpus_per_task}"]
        return [
            *("srun", f"--nodes={self.num_nodes}", f"--ntasks={self.num_nodes * self.ranks_per_node}"),
            *(f"--ntasks-per-node={self.ranks_per_node}", *cpus, "--wait=60", *self.command),
            "--run.claim_wait_seconds=60",
        ]

    def _run(self, claims: Claims, claim: Claim) -> int:
        """The exit code of `srun`, which is the highest of its tasks'. CellFailed: another host has taken the cell over."""
        words = self.srun_words()
        with self.log.open("a", encoding="utf-8") as log:
            job, nodes = os.environ["SLURM_JOB_ID"], os.environ["SLURM_JOB_NODELIST"]
            log.write(f"$ {shlex.join(words)}  # job {job} on {nodes}\n")
            log.flush()
            srun = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_addresses()},
                pass_fds=(claim.fd,),
            )
        while True:
            with suppress(subprocess.TimeoutExpired):
                return srun.wait(_LOOK_SECONDS)
            claims.check_keeper()
            if claim.is_lost():
                srun.kill()
                srun.wait()
                claim.release()
                raise CellFailed(
                    f"another host has taken over {self.claim}, having heard nothing of this one for too long"
                )

    def _reason(self, code: int, before: Result | None, result: Result | None) -> str:
        fresh = result if result is None or before is None or result.content != before.content else None
        killed = code > 128 and code - 128 in set(signal.Signals)
        return result_reason(fresh) or exit_reason(128 - code if killed else code, self.log)

    def _end(self, claim: Claim, how: str) -> str:
        remove_job(self.job)
        claim.release()
        return how


class _Ending:
    """Whether Slurm has asked this process to end. USR1 is for the ranks."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._note)
        signal.signal(signal.SIGUSR1, lambda signum, frame: None)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True


def _addresses() -> dict[str, str]:
    """Where ranks meet: on the job's first node, which this is, and a port of the job's own."""
    found = {"MASTER_PORT": str(20_000 + int(os.environ["SLURM_JOB_ID"]) % 10_000)}
    if "MASTER_ADDR" not in os.environ:
        nodes = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        with suppress(OSError, subprocess.CalledProcessError):
            found["MASTER_ADDR"] = subprocess.check_output(nodes, text=True).split()[0]
    return found
