"""When a run is saved."""

from typing import Any

import lightning.pytorch as pl

from vitlight.training.callbacks import is_step_end
from vitlight.training.checkpoint import save_checkpoint
from vitlight.training.classifier import ImageClassifier
from vitlight.training.record import RunDirectory

__all__ = ["Checkpoints"]


class Checkpoints(pl.Callback):
    """Saves every `every_steps` steps and at the end. Where an evaluation is due at the same step, the checkpoint follows
    it, so that a resumed run neither repeats nor misses it; the last one comes before the final evaluations, which are
    then repeated by a run that was killed among them. Stands after Record, whose row it then holds."""

    def __init__(self, run: RunDirectory, every_steps: int, evaluate_every_steps: int | None) -> None:
        self.run, self.every_steps, self.evaluate_every_steps = run, every_steps, evaluate_every_steps
        self._saved = -1

    def _save(self, trainer: pl.Trainer, module: ImageClassifier) -> None:
        step = trainer.global_step
        if step == self._saved or not (step % self.every_steps == 0 or step == module.horizon_steps):
            return
        self._saved = step
        save_checkpoint(trainer, self.run.checkpoints, step)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        step, every = trainer.global_step, self.evaluate_every_steps
        evaluates = every is not None and step % every == 0 and step != pl_module.horizon_steps
        if is_step_end(trainer, batch_idx) and not evaluates:
            self._save(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if trainer.state.fn == "fit":
            self._save(trainer, pl_module)
