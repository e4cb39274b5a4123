"""Looking inside the network while it trains: `run.inspect_every`."""

import copy
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from vitlight.analysis.insight import inspect_network, write_insight
from vitlight.analysis.insight.insight import Insight
from vitlight.analysis.insight.numbers import scalars
from vitlight.data.datamodule import ShardedImages
from vitlight.data.loader import World
from vitlight.errors import InputError
from vitlight.models import set_activation_checkpointing
from vitlight.training.callbacks import Record, is_step_end
from vitlight.training.classifier import ImageClassifier
from vitlight.training.ema import WeightAverage
from vitlight.training.ledger import EVALUATION
from vitlight.training.run_settings import RunSettings

__all__ = ["InsideViews", "own_images"]

_EVENT = "insight"


class InsideViews(pl.Callback):
    """Every `run.inspect_every` images, and at the end, looks inside the network as `vitlight inspect` does: the page and
    figures go to `insight/SAMPLES/` in the run directory, and a row with mean attention distance and entropy of each
    layer and the radii of the receptive fields into the record. The row names the figures, which W&B shows as images.

    The images are `run.inspect_images` held-out ones, always the same. Weights are those that the run evaluates: their
    average, where it has one. The first rank works on a copy of the network in float32, while the others wait; training goes
    on as if nothing had happened, and the time counts as evaluation. Stands after Record, whose row of the step comes first,
    and before Checkpoints, so that a resumed run neither repeats nor misses a row.
    """

    def __init__(self, settings: RunSettings, record: Record, average: WeightAverage | None) -> None:
        assert settings.inspect_every is not None
        self.every, self.num_images = settings.inspect_every, settings.inspect_images
        self.record, self.average = record, average
        self._pixels: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if not trainer.is_global_zero or not is_step_end(trainer, batch_idx):
            return
        step, size = trainer.global_step, pl_module.images.plan.global_batch_size
        is_multiple_passed = step * size // self.every > (step - 1) * size // self.every
        if not is_multiple_passed and step != pl_module.horizon_steps:
            return
        account = self.record.ledger.enter(EVALUATION)
        insight = self._look(trainer, pl_module)
        folder = self.record.run.path / _EVENT / f"{pl_module.samples_seen:012}"
        _, pngs = write_insight([insight], folder)
        figures = {f"{_EVENT}/{path.stem}": str(path.relative_to(self.record.run.path)) for path in pngs}
        self.record.write_row(trainer, pl_module, _EVENT, scalars(insight), figures)
        self.record.ledger.enter(account)

    def _look(self, trainer: pl.Trainer, module: ImageClassifier) -> Insight:
        data = module.images
        if self._pixels is None:
            self._pixels = own_images(data, self.num_images)
        network = self._copy(trainer, module)
        images = data.normalization(self._pixels.to(module.device))
        return inspect_network(
            network,
            images,
            self._pixels,
            name=module.arch,
            arch=module.arch,
            source=f"{self.record.run.path.name}, {module.samples_seen:,} samples seen",
            image_size=data.image_size,
        )

    def _copy(self, trainer: pl.Trainer, module: ImageClassifier) -> nn.Module:
        """The network that evaluations see, in float32 and uncompiled."""
        if self.average is not None:
            self.average.on_validation_start(trainer, module)
        try:
            network = copy.deepcopy(module.model)
        finally:
            if self.average is not None:
                self.average.on_validation_end(trainer, module)
        set_activation_checkpointing(network, False)
        return network.float()


def own_images(data: ShardedImages, count: int) -> Tensor:
    """uint8 (N, C, S, S): `count` held-out images, or all where there are fewer, evenly spread in the order of the
    shards; of data that holds none out, images of the test set. The same ones for the same data. `data` is prepared.

    InputError: there is neither."""
    if len(data.val_ids):
        ids, split = data.val_ids, "train"
    elif data.test_index is not None:
        ids, split = np.arange(len(data.test_index)), "test"
    else:
        raise InputError("data.val_fraction=0.0 and data.test=null: there are no held-out images to look at")
    places = np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(np.int64)
    loader = data.evaluation_loader("train" if split == "train" else "test", ids[places], World())
    return torch.cat([batch["image"][batch["weight"] > 0] for batch in loader])
