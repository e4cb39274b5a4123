"""A run whose numbers are no longer finite: noticed without waiting for the device, ended, or set back."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from vitlight.training.callbacks import Record, is_step_end
from vitlight.training.checkpoint import newest_checkpoint
from vitlight.training.classifier import ImageClassifier
from vitlight.training.parts import local_part

__all__ = ["Diverged", "Divergence", "set_aside"]

_NEVER = 2**62  # a step that none comes after
_NAMES = ("the training loss is", "the logits are", "the weights or the optimizer's state are")
_SAVED = ("state_dict", "raw_state_dict", "optimizer_states")
_MOST_BATCHES = 4096  # looked at together, so that what is kept of them stays small


class Diverged(RuntimeError):
    """Losses, logits, weights or the optimizer's state are no longer finite.

    step: the first optimizer step, counted from 1, with which that was so; checkpoints of earlier steps are good.
    """

    def __init__(self, reason: str, step: int) -> None:
        super().__init__(reason)
        self.step = step


class Divergence(pl.Callback):
    """Raises Diverged, on every rank together, where a run's numbers are no longer finite.

    Losses and logits of the steps are looked at when a row is logged and before a checkpoint is written, so nothing is
    asked of the device in between, and the step that is named is the first one, not the one that noticed. A checkpoint with
    weights or optimizer state that aren't finite is never written. Stands after Record, whose row comes first, and before
    Checkpoints.
    """

    def __init__(self, record: Record, log_every_steps: int) -> None:
        self.record, self.log_every_steps = record, log_every_steps
        self._steps: list[int] = []
        self._seen: list[tuple[Tensor, Tensor]] = []  # of each batch, on its device: the loss, the sum of the logits

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        for rollback in pl_module.rollbacks:
            if rollback["resumed_from_step"] == trainer.global_step:
                row = {"rollback/step": rollback["step"], "rollback/lr_factor": rollback["lr_factor"]}
                self.record.write_row(trainer, pl_module, "rollback", row)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        is_end, step = is_step_end(trainer, batch_idx), trainer.global_step
        self._steps.append(step if is_end else step + 1)
        self._seen.append((outputs["loss"].detach(), pl_module.logit_sum))
        is_logged = is_end and (step % self.log_every_steps == 0 or step == pl_module.horizon_steps)
        if is_logged or len(self._steps) >= _MOST_BATCHES:
            self._check(trainer, None)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check(trainer, get_total_norm(_floating([checkpoint.get(name) for name in _SAVED]), math.inf))

    def _check(self, trainer: pl.Trainer, largest: Tensor | None) -> None:
        """largest: the largest absolute value of all that is to be saved; NaN or infinite where one is."""
        first = torch.full((3,), _NEVER, device=trainer.strategy.root_device)
        if self._steps:
            losses, sums = zip(*self._seen, strict=True)
            finite = torch.stack([torch.stack(losses), torch.stack(sums)]).isfinite()
            first[:2] = torch.where(finite, _NEVER, torch.tensor(self._steps, device=first.device)).amin(1)
        if largest is not None:
            first[2] = torch.where(largest.to(first.device).isfinite(), _NEVER, trainer.global_step)
        self._steps, self._seen = [], []
        steps = trainer.strategy.reduce(first, reduce_op="min").tolist()
        step = min(steps)
        if step != _NEVER:
            raise Diverged(f"{_NAMES[steps.index(step)]} not finite at step {step}", step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _check_evaluation(trainer, pl_module, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        _check_evaluation(trainer, pl_module, "test")


def _floating(state: Any) -> list[Tensor]:
    """The tensors of real numbers in nested dicts and lists, this rank's parts of those that are split over ranks."""
    if isinstance(state, Tensor):
        part = local_part(state)
        return [part] if part.is_floating_point() and part.numel() else []
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return [tensor for each in inner for tensor in _floating(each)]


def _check_evaluation(trainer: pl.Trainer, module: pl.LightningModule, split: str) -> None:
    assert isinstance(module, ImageClassifier)
    result = module.results.get(split)  # of a test of evaluation sets alone there is none
    if result is not None and (bad := result["num_nonfinite"]):
        raise Diverged(
            f"of the {result['num_images']} {split} images, {bad} have logits or a loss that is not finite at step "
            f"{trainer.global_step}",
            trainer.global_step,
        )


def set_aside(folder: Path, diverged: Diverged) -> tuple[int, Path] | None:
    """(step, path) of the newest whole checkpoint from before a divergence, or None. Later ones, such as that of the last
    step where the evaluation after it has no finite loss, are renamed to `bad-step-N.*`, which nothing resumes."""
    for path in folder.glob("step-*"):
        found = re.match(r"step-(\d+)\.", path.name)
        if found is not None and int(found[1]) >= diverged.step:
            path.rename(path.with_name(f"bad-{path.name}"))
    return newest_checkpoint(folder)
