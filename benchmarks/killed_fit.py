"""One attempt at a run: its ranks as forked processes, watched from outside, and killed at a chosen moment.

In each rank `ShardedImages.on_after_batch_transfer` and the steps of
ImageClassifier are wrapped, so that each step notes the digests of the images it works on, label and mixing
included: the ledger of what was really trained on. Loader workers are started anew by each attempt, as always.
"""

import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from forked import become_rank, free_port, rank_environment
from kill_cases import World

__all__ = ["MOMENTS", "Attempt", "Kill", "Moment", "Outcome", "read_ledger"]

Moment = Literal["start-up", "step", "saving", "evaluating", "end"]
MOMENTS: tuple[Moment, ...] = ("start-up", "step", "saving", "evaluating", "end")
REQUEUE = 75  # what `fit` promises to exit with after a signal that asks it to stop
_STOP_SECONDS = 180.0  # a rank that takes longer than this to get somewhere, or to stop, hangs
_PEER_SECONDS = 1.0  # left to the ranks whose peer was killed; torchrun stops them, too
_SAVING_SECONDS = 0.005  # a kill aimed at a checkpoint falls within this time of its first byte
_POLL_SECONDS = 0.0005


@dataclass(frozen=True)
class Kill:
    """What is sent, when, and to whom.

    step: not before this one was begun. part: 0 to 1, how far into the moment. to: one `rank`, `all` of them, or every
    rank's process `group`, loader workers included, as a terminal and Slurm send it.
    """

    signal: signal.Signals
    moment: Moment
    step: int
    part: float
    to: Literal["rank", "all", "group"]
    rank: int = 0


@dataclass
class Outcome:
    """How an attempt ended. fell: the moment a kill really met, None where the run was done before."""

    world: World
    kill: Kill | None
    fell: Moment | None
    codes: list[int | None]
    resumed_from: int | None
    last_step: int
    faults: list[str]


def _ledger_path(folder: Path, attempt: int, rank: int) -> Path:
    return folder / f"ledger-{attempt:03d}-{rank}.jsonl"


def _note_steps(ledger: Path, attempt: int, rank: int) -> None:
    """Write one line to `ledger` for each batch of training and of evaluation that this process begins to work on."""
    from vitlight.data.datamodule import ShardedImages
    from vitlight.training.classifier import ImageClassifier

    file = ledger.open("w", buffering=1)

    def note(phase: str, step: int, digests: Sequence[str] = ()) -> None:
        line = {"attempt": attempt, "rank": rank, "phase": phase, "step": step, "digests": digests}
        file.write(json.dumps(line) + "\n")

    transfer = ShardedImages.on_after_batch_transfer

    def transfer_with_digests(self: Any, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return {**transfer(self, batch, dataloader_idx), "digests": _digests(batch)}

    ShardedImages.on_after_batch_transfer = transfer_with_digests  # type: ignore[method-assign]

    def noting(phase: str, original: Callable[..., Any], ahead: int) -> Callable[..., Any]:
        def step(self: Any, batch: dict[str, Any], batch_idx: int) -> Any:
            note(phase, self.trainer.global_step + ahead, batch.pop("digests"))
            return original(self, batch, batch_idx)

        return step

    for name, phase, ahead in (("training_step", "train", 1), ("validation_step", "val", 0), ("test_step", "test", 0)):
        setattr(ImageClassifier, name, noting(phase, getattr(ImageClassifier, name), ahead))


def _digests(batch: dict[str, Any]) -> list[str]:
    pixels, labels = batch["image"].permute(0, 2, 3, 1).contiguous().numpy(), batch["label"].tolist()
    mixing = batch["mixing"].numpy() if "mixing" in batch else None
    rows = []
    for i, label in enumerate(labels):
        drawn = b"" if mixing is None else mixing[i].tobytes()
        rows.append(hashlib.blake2b(pixels[i].tobytes() + drawn + bytes([label]), digest_size=8).hexdigest())
    return rows


def _rank(args: list[str], environment: dict[str, str], folder: Path, attempt: int, rank: int) -> None:
    """A forked child: one rank of `vitlight fit`."""
    os.setpgid(0, 0)
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    become_rank(rank, environment)
    _note_steps(_ledger_path(folder, attempt, rank), attempt, rank)
    from vitlight.cli import main

    sys.exit(main(args))


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """The lines of all attempts and ranks. A last one that a kill tore is left out."""
    lines = []
    for path in sorted(folder.glob("ledger-*.jsonl")):
        lines += [json.loads(line) for line in path.read_text().split("\n")[:-1]]
    return lines


class Attempt:
    """The ranks of one start of a run. folder: for ledgers and logs, the same for all attempts at a run."""

    def __init__(self, args: list[str], world: World, folder: Path, checkpoints: Path, number: int) -> None:
        self.world, self.checkpoints, self.number = world, checkpoints, number
        self._ledger, self._offset = _ledger_path(folder, number, 0), 0
        self.first_step, self.last_step, self.phase = 0, 0, "start-up"
        self.first_mark_seconds = self.last_step_seconds = 0.0
        self.began, self._began_clock, port = time.perf_counter(), time.time(), free_port()
        context = multiprocessing.get_context("fork")
        self.processes = [
            context.Process(
                target=_rank, args=(args, rank_environment(rank, world.num_ranks, port), folder, number, rank)
            )
            for rank in range(world.num_ranks)
        ]
        for process in self.processes:
            process.start()

    def run(self, kill: Kill | None, horizon: int, lengths: dict[Moment, float]) -> Outcome:
        """Send the kill at its moment (lengths: seconds of each), and wait until every rank has ended."""
        fell: Moment | None = None
        allowed: list[set[int]] = [{0} for _ in self.processes]
        deadline = time.perf_counter() + _STOP_SECONDS
        while self._is_running() and time.perf_counter() < deadline:
            self._look(horizon)
            if kill is not None and self._has_reached(kill, horizon):
                break
            time.sleep(_POLL_SECONDS)
        if kill is not None and self._is_running():
            time.sleep(kill.part * (_SAVING_SECONDS if kill.moment == "saving" else lengths[kill.moment]))
            if self._is_running():
                fell = self._moment(horizon)
                allowed = self._send(kill)
        faults = self._reap()
        self._look(horizon)
        codes = [process.exitcode for process in self.processes]
        for rank, (code, good) in enumerate(zip(codes, allowed, strict=True)):
            if good and code not in good:
                faults.append(f"attempt {self.number}: rank {rank} ended with {code}, not {sorted(good)}")
        resumed = self.first_step - 1 if self.first_step else None
        return Outcome(self.world, kill, fell, codes, resumed, self.last_step, faults)

    def lengths(self, horizon: int) -> dict[Moment, float]:
        """How long each moment was in this attempt, which nothing disturbed, in seconds."""
        after = time.perf_counter() - self.began - self.last_step_seconds
        step = (self.last_step_seconds - self.first_mark_seconds) / horizon
        return {"start-up": self.first_mark_seconds, "step": 2 * step, "evaluating": after / 2, "end": after}

    def _look(self, horizon: int) -> None:
        """Read what rank 0 noted since the last look."""
        if not self._ledger.exists():
            return
        with self._ledger.open("rb") as file:
            file.seek(self._offset)
            whole, newline, _ = file.read().rpartition(b"\n")
        if not newline:
            return
        self._offset += len(whole) + 1
        marks = [json.loads(line) for line in whole.split(b"\n")]
        if self.phase == "start-up":
            self.first_mark_seconds = time.perf_counter() - self.began
            self.first_step = marks[0]["step"] if marks[0]["phase"] == "train" else 0
        self.phase, self.last_step = marks[-1]["phase"], marks[-1]["step"]
        if self.last_step == horizon and not self.last_step_seconds:
            self.last_step_seconds = time.perf_counter() - self.began

    def _is_saving(self) -> bool:
        for path in self.checkpoints.glob(".*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime > self._began_clock:
                    return True
        return False

    def _is_running(self) -> bool:
        return any(process.exitcode is None for process in self.processes)

    def _has_reached(self, kill: Kill, horizon: int) -> bool:
        if kill.moment == "start-up":
            return True
        if kill.moment == "saving":
            return self.last_step >= kill.step and self._is_saving()
        if kill.moment == "evaluating":
            return self.last_step >= kill.step and self.phase in ("val", "test")
        return self.last_step >= (horizon if kill.moment == "end" else max(kill.step, 1))

    def _moment(self, horizon: int) -> Moment:
        """Where the attempt stands."""
        self._look(horizon)
        if self._is_saving():
            return "saving"
        if self.phase == "train":
            return "end" if self.last_step == horizon else "step"
        return "evaluating" if self.phase in ("val", "test") else "start-up"

    def _send(self, kill: Kill) -> list[set[int]]:
        """Send the signal; the exit codes that each rank may then have, an empty set for any."""
        hit = [kill.rank] if kill.to == "rank" else list(range(len(self.processes)))
        handled = all(_handles(self.processes[rank].pid, kill.signal) for rank in hit)
        for rank in hit:
            pid = self.processes[rank].pid
            assert pid is not None
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if kill.to == "group" else os.kill)(pid, kill.signal)
        if handled:
            return [{REQUEUE, 0} for _ in self.processes]
        # SIGKILL; or another before its handler is there or after it is gone. Its peers have then lost a rank.
        return [{-kill.signal, REQUEUE, 0} if rank in hit else set() for rank in range(len(self.processes))]

    def _reap(self) -> list[str]:
        """Wait for all ranks, not long for those that lost one; then end what is left. Returns what hangs."""
        deadline = time.perf_counter() + _STOP_SECONDS
        while self._is_running() and time.perf_counter() < deadline:
            if self._has_lost_rank():
                deadline = min(deadline, time.perf_counter() + _PEER_SECONDS)
            time.sleep(_POLL_SECONDS)
        hanging = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        faults = [] if self._has_lost_rank() else [f"attempt {self.number}: rank {rank} hangs" for rank in hanging]
        for process in self.processes:
            assert process.pid is not None
            if process.exitcode is None:
                process.kill()
            process.join()
            with contextlib.suppress(ProcessLookupError):  # loader workers of a rank that was killed
                os.killpg(process.pid, signal.SIGKILL)
        return faults

    def _has_lost_rank(self) -> bool:
        return any(process.exitcode is not None and process.exitcode < 0 for process in self.processes)


def _handles(pid: int | None, number: signal.Signals) -> bool:
    """Whether a process has a handler of its own for the signal."""
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt"))
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)
    return False
