"""A run that diverged goes back to an earlier step, once, and on at a lower rate. What is noted of it outlives a kill."""

import json
from typing import Any

from vitlight.errors import InputError
from vitlight.training.checkpoint import best_step, discard, write_atomically
from vitlight.training.record import RunDirectory

__all__ = ["check_rollback", "note_rollback", "read_rollbacks"]

_NAME = "rollbacks.json"


def check_rollback(lr_factor: float | None) -> None:
    """InputError for a rate that would not fall."""
    if lr_factor is not None and not 0.0 < lr_factor < 1.0:
        raise InputError(f"model.rollback_lr_factor={lr_factor} is not between 0 and 1")


def read_rollbacks(run: RunDirectory) -> list[dict[str, Any]]:
    """What `note_rollback` noted, oldest first."""
    path = run.path / _NAME
    return list(json.loads(path.read_text())) if path.exists() else []


def note_rollback(run: RunDirectory, step: int, reason: str, resumed_from_step: int, lr_factor: float) -> None:
    """Note that the run diverged at `step` and goes on from an earlier one, at a lower rate, whoever resumes it. Where the
    best checkpoint is one of a step in between, which will be another now, it is dropped. A kill before this has returned
    makes the run repeat the steps that diverged, and no more."""
    best = best_step(run.checkpoints)
    if best is not None and best > resumed_from_step:
        (run.checkpoints / "best.json").unlink()
        discard(run.checkpoints / "best.ckpt")
    note = {"step": step, "reason": reason, "resumed_from_step": resumed_from_step, "lr_factor": lr_factor}
    write_atomically(run.path / _NAME, json.dumps([*read_rollbacks(run), note]) + "\n")
