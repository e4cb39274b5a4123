"""Few-shot accuracy of a run's features while it trains."""

import math
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from vitlight.data.batches import Batch
from vitlight.data.datamodule import ShardedImages
from vitlight.errors import InputError
from vitlight.evaluation.probe import Computer, FewShotImages
from vitlight.evaluation.scores import score_few_shot
from vitlight.training.callbacks import Record, is_step_end
from vitlight.training.classifier import ImageClassifier
from vitlight.training.ema import WeightAverage
from vitlight.training.ledger import EVALUATION
from vitlight.training.record import RunDirectory
from vitlight.training.run_settings import RunSettings

__all__ = ["FrozenFeatures", "last_few_shot"]

_EVENT = "few_shot"


class FrozenFeatures(pl.Callback):
    """Every `run.few_shot_every` images, and at the end, writes a row with the top-1 on `val` of ridge regressions, with the
    penalty `run.few_shot_l2`, on so many training images a class: `few_shot/10_shot`, the mean over `run.few_shot_seeds`
    subsets, and `few_shot/10_shot_std`.

    The images are the same for all runs on the same data, whatever part of it they train on. Weights are those that the run
    evaluates: their average, where it has one. Training goes on as if nothing had happened; the time counts as evaluation.
    Every rank takes part, the first one fits. Stands after Record, whose row of the step comes first, and before
    Checkpoints, so that a resumed run neither repeats nor misses a row.

    Raises InputError for data without held-out images, with several labels an image, or with too few images of a class.
    """

    def __init__(
        self, data: ShardedImages, settings: RunSettings, record: Record, average: WeightAverage | None
    ) -> None:
        assert settings.few_shot_every is not None
        if not len(data.val_ids):
            raise InputError("run.few_shot_every needs held-out images; set data.val_fraction above 0")
        self.every, self.shots = settings.few_shot_every, tuple(settings.few_shot_shots)
        self.l2, self.record, self.average = settings.few_shot_l2, record, average
        self.images = FewShotImages.choose(data, self.shots, settings.few_shot_seeds)

    def is_due(self, step: int, global_batch_size: int, horizon_steps: int) -> bool:
        """Whether optimizer step `step` (from 1) is the first to reach a multiple of `every` images, or the last."""
        before, after = (step - 1) * global_batch_size // self.every, step * global_batch_size // self.every
        return after > before or step == horizon_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        size = pl_module.images.plan.global_batch_size
        if not is_step_end(trainer, batch_idx) or not self.is_due(trainer.global_step, size, pl_module.horizon_steps):
            return
        account = self.record.ledger.enter(EVALUATION)
        if self.average is not None:
            self.average.on_validation_start(trainer, pl_module)
        trainer.strategy.on_validation_start()  # after it, as in an evaluation: rank 0's averaged statistics are for all
        try:
            row = self._measure(trainer, pl_module)
        finally:
            if self.average is not None:
                self.average.on_validation_end(trainer, pl_module)
        self.record.write_row(trainer, pl_module, _EVENT, row)
        self.record.ledger.enter(account)

    def _measure(self, trainer: pl.Trainer, module: ImageClassifier) -> dict[str, float | int]:
        """The row; {} on other ranks than the first."""
        data = module.images

        def prepare(batch: Batch) -> Tensor:
            on_device = {**batch, "image": batch["image"].to(module.device, non_blocking=True)}
            images: Tensor = data.on_after_batch_transfer(on_device, 0)["image"]
            return images

        computer = Computer(module.model, prepare, computing=trainer.precision_plugin.val_step_context)
        train = computer.features(data, "train", self.images.ids)
        val = computer.features(data, "val", data.val_ids)
        if not trainer.is_global_zero:
            return {}
        row: dict[str, float | int] = {f"{_EVENT}/num_images": len(val)}
        if train.num_nonfinite or val.num_nonfinite:  # a run that diverges is ended by what watches its loss
            return row | {f"{_EVENT}/{shots}_shot": math.nan for shots in self.shots}
        for score in score_few_shot(train, self.images.rows, self.shots, val, None, computer.solver, self.l2):
            row[score.column] = score.top1
            if score.top1_std is not None:
                row[f"{score.column}_std"] = score.top1_std
        return row


def last_few_shot(run: RunDirectory, step: int) -> dict[str, float | str]:
    """For result.json: the few-shot accuracies after `step`, and what they were measured on; {} where there are none."""
    rows = [row for row in run.rows() if row["event"] == _EVENT and row["step"] == step]
    if not rows:
        return {}
    scores = {name: value for name, value in rows[-1].items() if name.startswith(f"{_EVENT}/") and "_shot" in name}
    return {**scores, "probe_split": "val"}
