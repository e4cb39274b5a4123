"""Images that can't be decoded: noted in the run directory, counted, and no more of them than the settings allow."""

from typing import Any

import lightning.pytorch as pl

from vitlight.errors import InputError
from vitlight.training.record import RunDirectory

__all__ = ["SkippedSamples"]


class SkippedSamples(pl.Callback):
    """Writes down every image that a step left out, and stops the run at the first beyond `allowed` different ones.

    The list lies in a file that all ranks append to, so counting takes no communication. Stands before Record, whose rows
    hold the number of draws left out so far.
    """

    def __init__(self, run: RunDirectory, allowed: int) -> None:
        self.run, self.allowed = run, allowed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            self.run.rewind_skipped(trainer.global_step)
        trainer.strategy.barrier("skipped")

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        faults = batch["skipped"]
        if not faults:
            return
        self.run.append_skipped(trainer.global_step, faults)
        different = set(self.run.skipped(trainer.global_step + 1))
        if len(different) > self.allowed:
            raise InputError(
                f"{faults[-1]}; with it {len(different)} images had to be skipped, and data.max_skipped_samples="
                f"{self.allowed}; mend or remove them (`vitlight data verify` finds them all), or allow more"
            )
