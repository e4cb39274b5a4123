"""Settings of a run that don't change its result: the `run` group."""

from dataclasses import dataclass
from pathlib import Path

from vitlight.errors import InputError

__all__ = ["RunSettings"]


@dataclass(frozen=True)
class RunSettings:
    """Where a run's record goes and how often it is written; none of it changes the result.

    Args:
        name: The experiment's folder beneath `root`.
        root: Folder of all runs.
        num_evaluations: Passes over `val`, evenly spaced in samples, the last at the end.
        checkpoint_every_steps: Optimizer steps between checkpoints.
        log_every_steps: Optimizer steps between rows of the record.
        rank_timeout_seconds: How long ranks wait for one that is stuck before the run fails.
        wandb: Also log to Weights & Biases, offline where there is no key.
        wandb_project: Its project.
    """

    name: str = "default"
    root: str = "runs"
    num_evaluations: int = 10
    checkpoint_every_steps: int = 500
    log_every_steps: int = 50
    rank_timeout_seconds: float = 600.0
    wandb: bool = True
    wandb_project: str = "vitlight"

    def __post_init__(self) -> None:
        for field in ("checkpoint_every_steps", "log_every_steps", "num_evaluations"):
            if getattr(self, field) < 1:
                raise InputError(f"run.{field}={getattr(self, field)} is not at least 1")
        if not self.rank_timeout_seconds > 0:
            raise InputError(f"run.rank_timeout_seconds={self.rank_timeout_seconds} is not above 0")
        if not self.name or self.name.startswith((".", "/")) or ".." in Path(self.name).parts:
            raise InputError(f"run.name={self.name!r} is not a plain folder name")
