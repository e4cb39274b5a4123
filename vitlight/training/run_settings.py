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
        few_shot_every: Images seen between measurements of few-shot accuracy on `val`: a linear classifier in closed form on
            the features of a few training images a class (`few_shot/10_shot`); the last one at the end. Null: none.
        few_shot_shots: Those numbers of images a class.
        few_shot_seeds: Subsets of each number, over which the mean is taken.
        few_shot_l2: Penalty of those classifiers. Of narrow networks a smaller one, such as 1, tells more.
        inspect_every: Images seen between looks inside the network, as `vitlight inspect` takes them: pages and figures in
            the run's `insight/`, and curves of attention distance, entropy and receptive field; the last one at the end.
            Null: none.
        inspect_images: How many held-out images it looks at.
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
    few_shot_every: int | None = None
    few_shot_shots: list[int] = field(default_factory=lambda: [10])
    few_shot_seeds: int = 3
    few_shot_l2: float = 1024.0
    inspect_every: int | None = None
    inspect_images: int = 32
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
        self._check_few_shot()
        self._check_inspect()
        if self.peak_flops is not None and not 0 < self.peak_flops < math.inf:
            raise InputError(f"run.peak_flops={self.peak_flops} is not above 0; null takes it from a table of GPUs")
        if self.extend is not None and Path(self.extend).name != self.extend:
            raise InputError(f"run.extend={self.extend!r} is not a run id, a folder's name beside the run's own")
        if not self.name or self.name.startswith((".", "/")) or ".." in Path(self.name).parts:
            raise InputError(f"run.name={self.name!r} is not a plain folder name")

    def _check_inspect(self) -> None:
        if self.inspect_every is None and self.inspect_images != 32:
            raise InputError(f"run.inspect_images={self.inspect_images} means nothing without run.inspect_every")
        for name in ("inspect_every", "inspect_images"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"run.{name}={value} is not at least 1 image")

    def _check_few_shot(self) -> None:
        if self.few_shot_every is None:
            if (self.few_shot_shots, self.few_shot_seeds, self.few_shot_l2) != ([10], 3, 1024.0):
                raise InputError("run.few_shot_shots, _seeds and _l2 mean nothing without run.few_shot_every")
            return
        if self.few_shot_every < 1:
            raise InputError(f"run.few_shot_every={self.few_shot_every} is not at least 1 image")
        if self.few_shot_seeds < 1:
            raise InputError(f"run.few_shot_seeds={self.few_shot_seeds} is not at least 1")
        if not 0.0 < self.few_shot_l2 < math.inf:
            raise InputError(f"run.few_shot_l2={self.few_shot_l2} is not above 0")
        shots = self.few_shot_shots
        if not shots or min(shots) < 1 or len(set(shots)) < len(shots):
            raise InputError(f"run.few_shot_shots={shots} is not a list of different numbers of at least 1")
