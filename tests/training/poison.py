"""Callbacks for runs of tests: they spoil a run's numbers or its folder at a chosen moment, or note its weights."""

import shutil
from pathlib import Path

import lightning.pytorch as pl
import torch

__all__ = ["BreakCheckpoints", "NoteWeights", "Poison"]


class Poison(pl.Callback):
    """what: the `loss` or `weights` of optimizer step `step` (from 1), or the logits of the `evaluation` after it, are no
    longer finite, on rank `rank`. always: also once the run has been set back."""

    def __init__(self, what: str, step: int, rank: int = 0, always: bool = False) -> None:
        self.what, self.step, self.rank, self.always = what, step, rank, always

    def _is_now(self, trainer, module, what, step):
        is_meant = (what, step, trainer.global_rank) == (self.what, self.step, self.rank)
        return is_meant and (self.always or not module.rollbacks)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self._is_now(trainer, pl_module, "loss", trainer.global_step + 1):
            batch["weight"].fill_(torch.nan)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self._is_now(trainer, pl_module, "weights", trainer.global_step):
            next(pl_module.parameters()).data.view(-1)[0] = torch.inf

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and self._is_now(trainer, pl_module, "evaluation", trainer.global_step):
            batch["image"][:3] = torch.nan


class BreakCheckpoints(pl.Callback):
    """From optimizer step `step` on nothing can be written where the checkpoints lay."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step and trainer.is_global_zero:
            folder = Path(trainer.default_root_dir) / "checkpoints"
            shutil.rmtree(folder)
            folder.write_text("no folder")


class NoteWeights(pl.Callback):
    """Saves the module's state before the first step and after each, as `step-N.rank-R.pt` in `folder`."""

    def __init__(self, folder: str) -> None:
        self.folder, self.noted = Path(folder), -1

    def _note(self, trainer, module):
        if trainer.global_step != self.noted:
            self.noted = trainer.global_step
            torch.save(module.state_dict(), self.folder / f"step-{self.noted}.rank-{trainer.global_rank}.pt")

    def on_train_start(self, trainer, pl_module):
        self._note(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._note(trainer, pl_module)


class SkewStatistics(pl.Callback):
    """On every rank but the first the running means of batch norm are far from what images have. Training reads none."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.is_global_zero:
            for name, buffer in pl_module.named_buffers():
                if name.endswith("running_mean"):
                    buffer += 5.0
