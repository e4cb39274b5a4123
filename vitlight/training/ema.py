"""The exponential moving average of a run's weights, which evaluation takes in place of the weights themselves."""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitlight.errors import InputError
from vitlight.training.parts import local_part, split_as

__all__ = ["RAW", "WeightAverage", "check_average", "take_raw_weights"]

RAW = "raw_state_dict"  # in a checkpoint whose `state_dict` is the average
_AVERAGE = "average_state_dict"  # while a checkpoint is read back


def check_average(ema_decay: float | None, ema_warmup: bool) -> None:
    """InputError for a decay that averages nothing, or for ever, and for a warm-up of nothing."""
    if ema_decay is not None and not 0.0 < ema_decay < 1.0:
        raise InputError(f"model.ema_decay={ema_decay} is not between 0 and 1")
    if ema_warmup and ema_decay is None:
        raise InputError("model.ema_warmup=true has no meaning without model.ema_decay; set that, or leave it out")


def take_raw_weights(checkpoint: dict[str, Any]) -> None:
    """Training goes on from the weights themselves: where a checkpoint's `state_dict` is their average, exchange them."""
    if RAW in checkpoint:
        checkpoint[_AVERAGE], checkpoint["state_dict"] = checkpoint["state_dict"], checkpoint.pop(RAW)


class WeightAverage(pl.Callback):
    """Keeps average = d average + (1 - d) weights after every optimizer step, from the weights that training starts with.

    d is `decay`, with a warm-up min(decay, (1 + t) / (10 + t)) after t steps: `num_updates` of TensorFlow's
    ExponentialMovingAverage, given the step as in the training code of EfficientNet. Buffers are averaged like weights
    (batch norm's mean and variance; timm and EfficientNet do so too); what isn't floating point is copied.

    Evaluation of a fit uses the average, and training goes on with exactly the weights it had. When training ends the
    module holds the average. A checkpoint's `state_dict` is the average, so that whoever reads the file gets what was
    evaluated; the weights to go on from lie beside it under `raw_state_dict`. The average is one copy in float32; during
    an evaluation there is a second one, of the weights that it stands in for. Every rank computes the same average, or, of
    weights that are split over the ranks, its part of it, with no communication. Stands before Checkpoints.

    Lightning's EMAWeightAveraging isn't used. It averages tensor by tensor and asks the device at every step whether it is
    the first, keeps the average in the dtype of the weights (which in bfloat16 loses every change below 1 part in 256),
    starts from the weights before `model.weights` is read, has no warm-up, and rounds integers' averages.
    """

    def __init__(self, decay: float, has_warmup: bool = False) -> None:
        self.decay, self.has_warmup = decay, has_warmup
        self._average: dict[str, Tensor] = {}
        self._live: dict[str, Tensor] = {}  # the module's own tensors
        self._raw: dict[str, Tensor] = {}  # copies of those, while the average stands in for them
        self._step = 0

    def decay_after(self, step: int) -> float:
        """d of the update that follows optimizer step `step`, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.has_warmup else self.decay

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._average = checkpoint.get(_AVERAGE, {})

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._live, self._step = pl_module.state_dict(), trainer.global_step
        start = self._average or self._live
        assert start.keys() == self._live.keys()
        self._average = {
            name: torch.empty_like(live, dtype=torch.float32 if live.is_floating_point() else None).copy_(
                split_as(live, start[name])
            )
            for name, live in self._live.items()
        }

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return  # inside an accumulation
        self._step = trainer.global_step
        averages, weights = [], []
        for name, live in self._live.items():
            if live.is_floating_point():
                averages.append(local_part(self._average[name]))
                weights.append(local_part(live).float())
            else:
                self._average[name].copy_(live)
        get_ema_multi_avg_fn(self.decay_after(self._step))(averages, weights, None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._raw = {name: live.clone() for name, live in self._live.items()}
            self._set(self._average, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._set(self._raw, pl_module)
            self._raw = {}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._set(self._average, pl_module)
        self._average, self._live = {}, {}

    def _set(self, values: dict[str, Tensor], module: pl.LightningModule) -> None:
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # whole weights that it still holds after an evaluation would be used again
        for name, live in self._live.items():
            local_part(live).copy_(local_part(values[name]))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average:
            checkpoint[RAW] = {**checkpoint["state_dict"], **self._raw}
            checkpoint["state_dict"] = dict(self._average)
