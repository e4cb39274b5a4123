"""What happens around the steps: the record and progress lines."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from vitlight.training.classifier import ImageClassifier
from vitlight.training.record import RunDirectory

__all__ = ["Diverged", "Record", "is_step_end"]


class Diverged(RuntimeError):
    """The loss or the logits are no longer finite."""


def is_step_end(trainer: pl.Trainer, batch_idx: int) -> bool:
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Record(pl.Callback):
    """Writes metrics.jsonl, keeps the clocks, projects rows to the loggers, and prints plain progress lines.

    Times are sums over all the processes that worked on the run, restored from the checkpoint: wall time since training
    began, and device time, the part spent in training steps times the number of ranks.
    """

    def __init__(self, run: RunDirectory, log_every_steps: int, print_every_seconds: float | None = 10.0) -> None:
        self.run, self.log_every_steps, self.print_every_seconds = run, log_every_steps, print_every_seconds
        self.wall_seconds = 0.0
        self.device_seconds = 0.0
        self._loss_sum: Tensor | None = None
        self._loss_count = 0
        self._interval = {"seconds": 0.0, "wait": 0.0, "samples": 0}
        self._clock = self._batch_start = self._batch_end = time.perf_counter()
        self._eval_start = 0.0
        self._printed = 0.0
        self._metrics_length = 0
        self._started = False
        self._loggers_failed = False

    def state_dict(self) -> dict[str, Any]:
        self._tick()
        return {
            "wall_seconds": self.wall_seconds,
            "device_seconds": self.device_seconds,
            "loss_sum": None if self._loss_sum is None else self._loss_sum.item(),
            "loss_count": self._loss_count,
            "metrics_length": self.run.metrics_length(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.wall_seconds, self.device_seconds = state["wall_seconds"], state["device_seconds"]
        self._loss_count = state["loss_count"]
        self._loss_sum = None if state["loss_sum"] is None else torch.tensor(state["loss_sum"], dtype=torch.float64)
        self._metrics_length = state["metrics_length"]

    def _tick(self) -> None:
        now = time.perf_counter()
        self.wall_seconds += now - self._clock
        self._clock = now

    def _start(self, trainer: pl.Trainer) -> None:
        """Once: start the clock; on rank 0 cut the record back to the checkpoint (or to nothing)."""
        if self._started:
            return
        self._started = True
        self._clock = self._batch_end = time.perf_counter()
        if trainer.is_global_zero:
            self.run.rewind_metrics(self._metrics_length)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch_start = time.perf_counter()
        self._interval["wait"] += self._batch_start - self._batch_end

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        loss = outputs["loss"].detach().double()
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum.to(loss.device) + loss
        self._loss_count += 1
        if is_step_end(trainer, batch_idx):
            self._interval["samples"] += pl_module.images.plan.global_batch_size
            step = trainer.global_step
            if step % self.log_every_steps == 0 or step == pl_module.horizon_steps:
                self._log_train(trainer, pl_module)
        now = time.perf_counter()
        self._interval["seconds"] += now - self._batch_end
        self.device_seconds += (now - self._batch_end) * trainer.world_size
        self._batch_end = now

    def _log_train(self, trainer: pl.Trainer, module: ImageClassifier) -> None:
        assert self._loss_sum is not None
        # Lightning divides the loss by the number of accumulated batches before it hands it to the callbacks.
        mean = self._loss_sum * trainer.accumulate_grad_batches / self._loss_count
        loss = float(trainer.strategy.reduce(mean, reduce_op="mean"))  # the only synchronisation between logged steps
        self._loss_sum, self._loss_count = None, 0
        seconds = self._interval["seconds"] + time.perf_counter() - self._batch_end
        row = {
            "train/loss": loss,
            "train/learning_rate": module.learning_rate_at(trainer.global_step - 1),
            "perf/images_per_second": self._interval["samples"] / seconds,
            "perf/data_wait_fraction": self._interval["wait"] / seconds,
        }
        self._interval = {"seconds": self._batch_end - time.perf_counter(), "wait": 0.0, "samples": 0}
        self.write_row(trainer, module, "train", row)
        self._print(trainer, module, row)
        if not math.isfinite(loss):
            raise Diverged(f"the training loss is {loss} at step {trainer.global_step}")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)
        self._eval_start = time.perf_counter()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_evaluation(trainer, pl_module, "val")
        self._batch_end += time.perf_counter() - self._eval_start  # evaluation is no training time

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_evaluation(trainer, pl_module, "test")

    def _log_evaluation(self, trainer: pl.Trainer, module: pl.LightningModule, split: str) -> None:
        assert isinstance(module, ImageClassifier)
        result = module.results[split]
        row = {f"{split}/{name}": result[name] for name in ("loss", "top1", "top5", "top1_count", "num_images")}
        self.write_row(trainer, module, split, row)

    def write_row(
        self, trainer: pl.Trainer, module: ImageClassifier, event: str, row: Mapping[str, float | int]
    ) -> None:
        """Write one row with every x axis, on rank 0, and hand it to the loggers."""
        if not trainer.is_global_zero:
            return
        self._tick()
        step = trainer.global_step
        times = {"time/wall_seconds": self.wall_seconds, "time/device_seconds": self.device_seconds}
        skipped = {"data/skipped_samples": len(self.run.skipped(step))}
        full = {"event": event, "step": step, **module.axes(), **skipped, **times, **row}
        self.run.append(full)
        numbers = {name: value for name, value in full.items() if "/" in name and isinstance(value, (int, float))}
        try:
            for logger in trainer.loggers:
                logger.log_metrics({name: float(value) for name, value in numbers.items()}, step=step)
        except Exception as error:  # a logging service must never stop a run
            if not self._loggers_failed:
                rank_zero_warn(f"logging failed and goes on in {self.run.metrics_path} only: {error}")
            self._loggers_failed = True

    def _print(self, trainer: pl.Trainer, module: ImageClassifier, row: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if self.print_every_seconds is None or not trainer.is_global_zero:
            return
        horizon, step = module.horizon_steps, trainer.global_step
        if now - self._printed < self.print_every_seconds and step < horizon:
            return
        self._printed = now
        rate = row["perf/images_per_second"]
        left = (horizon - step) * module.images.plan.global_batch_size / rate
        print(
            f"{100 * step / horizon:3.0f} %  step {step:,} of {horizon:,}  images {module.samples_seen:,}  "
            f"loss {row['train/loss']:.4f}  {rate:,.0f} images/s  data wait {100 * row['perf/data_wait_fraction']:.0f} %  "
            f"{left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )
