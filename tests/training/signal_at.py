"""A callback that sends this process a signal at a chosen moment of a run."""

import os
import signal
import time
from pathlib import Path

import lightning.pytorch as pl

__all__ = ["SignalAt"]

NOTICE_SECONDS = 0.1  # for the thread that waits for signals


class SignalAt(pl.Callback):
    """moment: `setup`, `train`, `val`, `fit_val` or `test`; step: optimizer steps done by then. rank: that gets it. once: a
    file that remembers that the signal was sent. hang_seconds: the moment then lasts so long."""

    def __init__(
        self, moment: str, step: int, once: str, signum: int = 15, rank: int = 0, hang_seconds: float = 0.0
    ) -> None:
        self.moment, self.step, self.once = moment, step, Path(once)
        self.signum, self.rank, self.hang_seconds = signum, rank, hang_seconds

    def _reached(self, trainer: pl.Trainer, moment: str, step: int) -> None:
        if moment == self.moment and step == self.step and trainer.global_rank == self.rank and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), signal.Signals(self.signum))
            time.sleep(NOTICE_SECONDS + self.hang_seconds)

    def setup(self, trainer, pl_module, stage):
        self._reached(trainer, "setup", 0)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._reached(trainer, "train", trainer.global_step)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self._reached(trainer, "fit_val" if trainer.state.fn == "fit" else "val", trainer.global_step)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 1:
            self._reached(trainer, "test", trainer.global_step)
