"""A callback that makes steps last, so that a test can disturb a run in the middle."""

import time
from pathlib import Path

import lightning.pytorch as pl

__all__ = ["SlowSteps"]


class SlowSteps(pl.Callback):
    """Every step takes `seconds` longer, until the file `fast` is there."""

    def __init__(self, seconds: float, fast: str) -> None:
        self.seconds, self.fast = seconds, Path(fast)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if not self.fast.exists():
            time.sleep(self.seconds)
