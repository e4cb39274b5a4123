"""Runs that begin with steps another run has done: branches of one trunk, and extensions of a finished run.

Under a schedule that is constant until its cooldown (`wsd`), runs that differ in their duration alone pass through the
same states until the shorter one's cooldown begins. Each leaves its state at that point in the folder of their trunk,
and starts from the last state there that lies before its own cooldown: five durations cost one long trunk and five
cooldowns, and each result is the one of a run that did all its steps itself.

What was taken over is noted in `origin.json`, so that a sweep's cost counts shared steps once.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn

from vitlight.cost import train_flops
from vitlight.errors import InputError
from vitlight.json_lines import read_rows
from vitlight.messages import say
from vitlight.training.callbacks import Record, is_step_end
from vitlight.training.checkpoint import link_checkpoint, newest_checkpoint, write_atomically
from vitlight.training.record import RunDirectory

__all__ = ["LeavesTrunk", "Origin", "Trunk", "begin", "own_share", "read_origin"]

_ORIGIN = "origin.json"


@dataclass(frozen=True)
class Origin:
    """What a run took over. kind: `trunk` or `extension`. step: the optimizer step it began at, after `samples_seen` images
    that run `run_id` and those before it had drawn in `device_seconds`."""

    kind: str
    run_id: str
    step: int
    samples_seen: int
    device_seconds: float


def read_origin(run: RunDirectory) -> Origin | None:
    path = run.path / _ORIGIN
    return Origin(**json.loads(path.read_text())) if path.exists() else None


def own_share(
    run: RunDirectory, samples_seen: int, forward_macs: int, device_seconds: float
) -> dict[str, dict[str, Any] | float | int | None]:
    """For result.json: what the run took over, and what of its compute and time is its own."""
    origin = read_origin(run)
    return {
        "origin": asdict(origin) if origin is not None else None,
        "own_train_flops": train_flops(forward_macs, samples_seen - (origin.samples_seen if origin is not None else 0)),
        "own_device_seconds": device_seconds - (origin.device_seconds if origin is not None else 0.0),
    }


@dataclass(frozen=True)
class Trunk:
    """The states that runs of one trunk have left for one another, in `folder`; this run's cooldown begins after `last_step`
    optimizer steps."""

    folder: Path
    last_step: int

    def has(self, step: int) -> bool:
        return self._place(step).is_dir()

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}"

    def leave(self, run: RunDirectory, checkpoint: Path, origin: Origin) -> None:
        """Put a whole checkpoint of `run`, and its record until then, where other runs of the trunk look."""
        place = self._place(origin.step)
        if place.is_dir():
            return
        beside = self.folder / f".{place.name}.{origin.run_id}.tmp"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _take_over(run.path, checkpoint, beside, beside)
        write_atomically(beside / _ORIGIN, json.dumps(asdict(origin)))
        try:
            beside.rename(place)
        except OSError:  # another run was first, with the same state
            shutil.rmtree(beside)

    def join(self, run: RunDirectory) -> Origin | None:
        """Make the trunk's last state before this run's cooldown the run's first checkpoint, where it has none yet."""
        if newest_checkpoint(run.checkpoints) is not None:
            return None
        for place in sorted(self.folder.glob("step-*"), reverse=True):
            if int(place.name.removeprefix("step-")) <= self.last_step and newest_checkpoint(place) is not None:
                origin = Origin(**json.loads((place / _ORIGIN).read_text()))
                _begin(run, place, origin)
                return origin
        return None


def begin(run: RunDirectory, trunk: Trunk | None, extended_id: str | None) -> None:
    """Let a run that has no checkpoint begin where its trunk, or the run that it extends, has one."""
    origin = trunk.join(run) if trunk is not None else None
    if extended_id is not None:
        origin = extend(run, RunDirectory(run.path.parent / extended_id))
    if origin is not None:
        how = "goes on from the end" if origin.kind == "extension" else "begins on the trunk"
        say(f"{run.path}: {how} of run {origin.run_id}, after {origin.samples_seen:,} images")


def extend(run: RunDirectory, base: RunDirectory) -> Origin | None:
    """Make the last checkpoint of the finished run `base` the first one of `run`, where it has none yet."""
    if newest_checkpoint(run.checkpoints) is not None:
        return None
    found, result = newest_checkpoint(base.checkpoints), base.read_result()
    assert result is not None
    if found is None:
        raise InputError(f"run.extend={result['run_id']} has no whole checkpoint left in {base.checkpoints}")
    step, path = found
    origin = Origin("extension", result["run_id"], step, result["samples_seen"], result["device_seconds"])
    _begin(run, path.parent, origin, base.path)
    return origin


def _begin(run: RunDirectory, checkpoints: Path, origin: Origin, record: Path | None = None) -> None:
    """The checkpoint comes last: a run that is killed before it begins anew."""
    found = newest_checkpoint(checkpoints)
    assert found is not None
    write_atomically(run.path / _ORIGIN, json.dumps(asdict(origin)))
    _take_over(record if record is not None else checkpoints, found[1], run.path, run.checkpoints)


def _take_over(source: Path, checkpoint: Path, target: Path, checkpoints: Path) -> None:
    """The record in `source` into `target`, with the pictures that its rows name, and a checkpoint into `checkpoints`. The
    record may be longer than what the checkpoint remembers: whoever resumes cuts it back."""
    for name in ("metrics.jsonl", "skipped.jsonl"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)
    for row in read_rows(target / "metrics.jsonl"):
        for figure in row.get("figures", {}).values():
            if (source / figure).is_file():
                (target / figure).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / figure, target / figure)
    link_checkpoint(checkpoint, checkpoints)


class LeavesTrunk(pl.Callback):
    """Leaves the run's state to the other runs of its trunk where its cooldown begins. Stands before Checkpoints, which
    calls `saved`."""

    def __init__(self, trunk: Trunk, run: RunDirectory, run_id: str, global_batch_size: int, record: Record) -> None:
        self.trunk, self.run, self.run_id, self.record = trunk, run, run_id, record
        self.samples = trunk.last_step * global_batch_size
        self._device_seconds = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.trunk.last_step and is_step_end(trainer, batch_idx):
            self._device_seconds = self.record.device_seconds

    def saved(self, step: int, checkpoint: Path) -> None:
        if step != self.trunk.last_step:
            return
        origin = Origin("trunk", self.run_id, step, self.samples, self._device_seconds)
        try:
            self.trunk.leave(self.run, checkpoint, origin)
        except OSError as error:
            rank_zero_warn(f"the state at step {step} can't be left to other runs in {self.trunk.folder}: {error}")
