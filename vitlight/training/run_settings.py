"""Settings of a run that don't change its result: the `run` group."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from vitlight.errors import InputError
from vitlight.training.signals import DEFAULT_STOP_SIGNALS, check_stop_signals

__all__ = ["RunSettings"]


@dataclass(frozen=True)
class RunSettings:
    """Where a run's record goes and how often it is written; none of it changes the result.

    Args:
        name: The experiment's folder beneath `root`.
        root: Folder of all runs.
        num_evaluations: Passes over `val`, evenly spaced in samples, the last at the end.
        checkpoint_every_steps: Optimizer steps between checkpoints.
        checkpoint_every_minutes: Save also where the last checkpoint is this old; on several ranks that is looked at with
            the rows of the record. Null: by steps alone.
        checkpoint_async: Write checkpoints while the training goes on, from a copy in the host's memory.
        checkpoint_sharded: Under `trainer.strategy=fsdp2`: every rank writes its own part of a checkpoint, which is a folder
            then (null, true), or rank 0 all of it, as one file (false).
        keep_checkpoints: How many of the newest are kept.
        keep_best: Keep the one with the highest `val/top1` too, as `best.ckpt`; of equal ones the earliest.
        milestone_samples: The first step that has seen as many images as each of these is saved and kept.
        log_every_steps: Optimizer steps between rows of the record.
        share_trunk: Under a schedule with a cooldown (`wsd`, `rsqrt`), begin with the steps that a shorter run of the same
            settings has done before its own cooldown, and leave the state there to longer ones.
        extend: The run id of a finished run in the same folder to continue beyond its horizon, with all other settings
            equal; the new run has an id of its own and names this one in its result.
        rank_timeout_seconds: How long ranks wait for one that is stuck before the run fails.
        stop_signals: Signals, beside SIGINT, after which the run saves at the next step, stops, and exits with 75: TERM,
            USR1, USR2 or HUP. SIGINT exits with 130.
        claim_wait_seconds: How long to wait for another process that still holds the run, as when a scheduler starts a
            job again before the last attempt has ended.
        wandb: Also log to Weights & Biases, offline where there is no key.
        wandb_project: Its project. The group there is `name`, the job type `fit`.
        wandb_finish_seconds: How long the end of a run waits for it, and for `trainer.logger`, to take the last rows.
        tags: Tags of the run there, beside its architecture and family.
        peak_flops: Dense peak FLOP/s of one device in the run's precision, for `perf/mfu`; null: from a table of GPUs.
    """

    name: str = "default"
    root: str = "runs"
    num_evaluations: int = 10
    checkpoint_every_steps: int = 500
    checkpoint_every_minutes: float | None = None
    checkpoint_async: bool = True
    checkpoint_sharded: bool | None = None
    keep_checkpoints: int = 2
    keep_best: bool = False
    milestone_samples: list[int] = field(default_factory=list)
    log_every_steps: int = 50
    share_trunk: bool = True
    extend: str | None = None
    rank_timeout_seconds: float = 600.0
    stop_signals: list[str] = field(default_factory=lambda: list(DEFAULT_STOP_SIGNALS))
    claim_wait_seconds: float = 0.0
    wandb: bool = True
    wandb_project: str = "vitlight"
    wandb_finish_seconds: float = 30.0
    tags: list[str] = field(default_factory=list)
    peak_flops: float | None = None

    def __post_init__(self) -> None:
        for name in ("checkpoint_every_steps", "keep_checkpoints", "log_every_steps", "num_evaluations"):
            if getattr(self, name) < 1:
                raise InputError(f"run.{name}={getattr(self, name)} is not at least 1")
        if self.checkpoint_every_minutes is not None and not self.checkpoint_every_minutes > 0:
            raise InputError(f"run.checkpoint_every_minutes={self.checkpoint_every_minutes} is not above 0")
        if wrong := [samples for samples in self.milestone_samples if samples < 1]:
            raise InputError(f"run.milestone_samples has {wrong[0]}, which is not at least 1")
        if not self.rank_timeout_seconds > 0:
            raise InputError(f"run.rank_timeout_seconds={self.rank_timeout_seconds} is not above 0")
        check_stop_signals(self.stop_signals)
        if not 0 <= self.claim_wait_seconds <= 86_400:
            raise InputError(f"run.claim_wait_seconds={self.claim_wait_seconds} is not from 0 to 86400 (a day)")
        if not 0 <= self.wandb_finish_seconds <= 86_400:
            raise InputError(f"run.wandb_finish_seconds={self.wandb_finish_seconds} is not from 0 to 86400 (a day)")
        if self.peak_flops is not None and not 0 < self.peak_flops < math.inf:
            raise InputError(f"run.peak_flops={self.peak_flops} is not above 0; null takes it from a table of GPUs")
        if self.extend is not None and Path(self.extend).name != self.extend:
            raise InputError(f"run.extend={self.extend!r} is not a run id, a folder's name beside the run's own")
        if not self.name or self.name.startswith((".", "/")) or ".." in Path(self.name).parts:
            raise InputError(f"run.name={self.name!r} is not a plain folder name")
