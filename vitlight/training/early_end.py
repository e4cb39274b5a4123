"""A run that is asked to end before its horizon, as by a sweep's `early_terminate`: it ends where it logs or evaluates."""

from typing import Any

import lightning.pytorch as pl

from vitlight.training.callbacks import is_step_end
from vitlight.training.classifier import ImageClassifier
from vitlight.training.end_requests import read_end_request
from vitlight.training.record import RunDirectory

__all__ = ["EarlyEnd", "EndedEarly"]


class EndedEarly(RuntimeError):
    """The run has been asked to end, for the reason that is the message."""


class EarlyEnd(pl.Callback):
    """Raises EndedEarly, on every rank together, at the first logged step or evaluation after somebody has asked for it.

    What is logged or evaluated there is in the record. At the horizon nothing is ended any more. Rank 0 looks, and the
    others hear of it where they wait for each other anyway. Stands after Record, whose row comes first.
    """

    def __init__(self, run: RunDirectory, log_every_steps: int) -> None:
        self.run, self.log_every_steps = run, log_every_steps

    def _look(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, ImageClassifier)
        if trainer.global_step >= module.horizon_steps:
            return
        reason = read_end_request(self.run.path) if trainer.is_global_zero else None
        if trainer.world_size > 1:
            reason = trainer.strategy.broadcast(reason)
        if reason is not None:
            raise EndedEarly(reason)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_step_end(trainer, batch_idx) and trainer.global_step % self.log_every_steps == 0:
            self._look(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._look(trainer, pl_module)
