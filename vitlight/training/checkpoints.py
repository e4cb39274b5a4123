"""When a run is saved, and which of its checkpoints are kept."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy

from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.training.callbacks import is_step_end
from vitlight.training.checkpoint import (
    beside_checkpoint,
    best_step,
    checkpoint_path,
    checkpoint_step,
    drop_checkpoints,
    forget_best,
    keep_as_best,
)
from vitlight.training.checkpoint_io import CheckpointReader, CheckpointWriter
from vitlight.training.classifier import ImageClassifier
from vitlight.training.ledger import CHECKPOINT, Ledger
from vitlight.training.record import RunDirectory
from vitlight.training.run_settings import RunSettings

__all__ = ["Checkpoints"]


class Checkpoints(pl.Callback):
    """Saves a run every so many steps or minutes, at milestones, where `val/top1` is the best so far, and at the end. Where
    an evaluation is due at the same step, the checkpoint follows it, so that a resumed run neither repeats nor misses it;
    the last one comes before the final evaluations, which are then repeated by a run that was killed among them. Stands
    after Record, whose row it then holds.

    Every rank takes the same decisions: steps are counted, accuracies are summed over ranks, and the clock is rank 0's,
    asked at logged steps alone.

    Args:
        run: Where to.
        settings: Those of checkpoints, and `log_every_steps`.
        evaluate_every_steps: Optimizer steps between evaluations on `val`, None where there are none.
        also_at: Further optimizer steps to save at; these checkpoints are kept until the one at the horizon is written.
        on_saved: Called on rank 0 with step and path of each checkpoint that is whole on disk, in the thread that wrote it;
            the next save waits for it, and what it raises counts as a failure of the save.
        ledger: Where the time that training waits for saves is noted.
    """

    def __init__(
        self,
        run: RunDirectory,
        settings: RunSettings,
        evaluate_every_steps: int | None,
        also_at: frozenset[int] = frozenset(),
        on_saved: Callable[[int, Path], None] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        if settings.keep_best and evaluate_every_steps is None:
            raise InputError("run.keep_best=true needs held-out images; set data.val_fraction above 0")
        self.run, self.settings, self.evaluate_every_steps = run, settings, evaluate_every_steps
        self.also_at, self.on_saved = also_at, on_saved
        self.ledger = ledger if ledger is not None else Ledger()
        self.writer = CheckpointWriter(settings.checkpoint_async, self._final_path, self._when_whole)
        self._strategy: Strategy | None = None  # of several ranks
        self._milestones: frozenset[int] = frozenset()
        self._horizon = 0
        self._best: tuple[int, float] | None = None
        self._saved_step = self._due_step = -1
        self._saved_at = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best = state["best"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self._strategy = trainer.strategy if trainer.world_size > 1 else None
        if stage != "fit":
            return
        if type(trainer.strategy.checkpoint_io) not in (TorchCheckpointIO, CheckpointReader, CheckpointWriter):
            name = type(trainer.strategy.checkpoint_io).__name__
            raise InputError(f"trainer.plugins={name} would write the checkpoints, which run.checkpoint_async decides")
        trainer.strategy.checkpoint_io = self.writer
        batch, self._horizon = pl_module.images.plan.global_batch_size, pl_module.horizon_steps
        for samples in self.settings.milestone_samples:
            if samples > self._horizon * batch:
                raise InputError(
                    f"run.milestone_samples has {samples}, past the run's end at {self._horizon * batch} samples seen"
                )
        self._milestones = frozenset(-(-samples // batch) for samples in self.settings.milestone_samples)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        step = trainer.global_step
        self._saved_step, self._saved_at = step or -1, time.monotonic()
        if not trainer.is_global_zero:
            return
        for missed in sorted(each for each in self._milestones if each < step):
            if not checkpoint_path(self.run.checkpoints, missed).exists():
                say(f"vitlight: run.milestone_samples: step {missed} is over and was not kept")
        if self.settings.keep_best:
            if (best_step(self.run.checkpoints) or 0) > step:
                forget_best(self.run.checkpoints)  # of steps that are run again, and maybe otherwise
            self._keep_best()  # a kill may have come between the checkpoint and its second name

    def _final_path(self, beside: Path) -> Path:
        return beside.with_name(beside.name.removeprefix(".").removesuffix(".tmp"))

    def _when_whole(self, path: Path) -> None:
        """What follows a save, in the thread that wrote it; nothing it reads changes while a save is in flight."""
        step = checkpoint_step(path)
        if self._best is not None and self._best[0] == step:
            self._keep_best()
        if self.on_saved is not None:
            self.on_saved(step, path)
        kept = self._milestones if step == self._horizon else self._milestones | self.also_at
        drop_checkpoints(self.run.checkpoints, step, self.settings.keep_checkpoints, kept)

    def _keep_best(self) -> None:
        if self._best is not None:
            path = checkpoint_path(self.run.checkpoints, self._best[0])
            if path.exists():
                keep_as_best(path, self._best[1])

    def _is_due(self, trainer: pl.Trainer) -> bool:
        step = trainer.global_step
        if step % self.settings.checkpoint_every_steps == 0 or step == self._horizon:
            return True
        return step in self._milestones or step in self.also_at or self._is_time(trainer)

    def _is_time(self, trainer: pl.Trainer) -> bool:
        minutes = self.settings.checkpoint_every_minutes
        if minutes is None:
            return False
        is_time = time.monotonic() - self._saved_at >= 60 * minutes
        if trainer.world_size == 1:
            return is_time
        if trainer.global_step % self.settings.log_every_steps:
            return False
        return bool(trainer.strategy.broadcast(is_time))

    def _save(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        if step == self._saved_step:
            return
        before = self.ledger.enter(CHECKPOINT)
        path = checkpoint_path(self.run.checkpoints, step)
        self.writer.settle_before_save()
        trainer.save_checkpoint(beside_checkpoint(path))
        self._saved_step, self._saved_at = step, time.monotonic()
        self.ledger.enter(before)

    def save_now(self, trainer: pl.Trainer, module: ImageClassifier) -> None:
        """At a step boundary, called by every rank: save this step, if it isn't yet, and wait until it is on the disk.
        NotSaved where that fails. Whether an evaluation of this step is still to come is for the caller to note."""
        self._save(trainer)
        self.wait()

    def wait(self) -> None:
        """Wait for the save in flight. NotSaved, on every rank, where the last save failed. Called by all."""
        self.writer.wait(self._agree)

    def _agree(self, failure: str | None) -> str | None:
        """Of a checkpoint that rank 0 writes the others know nothing."""
        if self._strategy is None:
            return failure
        agreed: str | None = self._strategy.broadcast(failure)
        return agreed

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not is_step_end(trainer, batch_idx):
            return
        step, every = trainer.global_step, self.evaluate_every_steps
        evaluates = every is not None and step % every == 0 and step != self._horizon
        if self._is_due(trainer):
            self._due_step = step
            if not evaluates:
                self._save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        is_best = self.settings.keep_best and self._improves(trainer.global_step, pl_module.results["val"]["top1"])
        if trainer.state.fn == "fit" and (is_best or trainer.global_step == self._due_step):
            self._save(trainer)
        if is_best and trainer.is_global_zero:
            self.writer.settle()
            self._keep_best()  # where the step was saved before its evaluation, as the last one is

    def _improves(self, step: int, top1: float) -> bool:
        """Whether this evaluation is the best so far; of equal ones the earlier is."""
        if self._best is not None and not top1 > self._best[1]:
            return False
        self.writer.settle()  # its thread reads the best step
        self._best = step, top1
        return True

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self.writer.settle()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.writer.num_waits:
            say(
                f"vitlight: {self.writer.num_waits} of {self.writer.num_saves} checkpoints waited for the one before, "
                f"{self.writer.wait_seconds:.1f} s in all; run.checkpoint_every_steps says how often they are due"
            )
