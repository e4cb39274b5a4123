"""What happens around the steps: the record, its clocks and ledger, and what is shown of it."""

import os
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from vitlight.cost import train_flops
from vitlight.training.background_logger import close_reports
from vitlight.training.classifier import ImageClassifier
from vitlight.training.device import DeviceWait, memory_gib, peak_flops
from vitlight.training.fetch_clock import FetchClock
from vitlight.training.ledger import DATA_WAIT, EVALUATION, LOGGING, OTHER, STARTUP, STEP, Ledger, verdict
from vitlight.training.progress import TrainingProgress, seconds_left
from vitlight.training.record import RunDirectory
from vitlight.training.run_settings import RunSettings
from vitlight.training.wandb import WandbProjection

__all__ = ["Record", "is_step_end"]


def is_step_end(trainer: pl.Trainer, batch_idx: int) -> bool:
    return (batch_idx + 1) % trainer.accumulate_grad_batches == 0


class Record(pl.Callback):
    """Writes metrics.jsonl, keeps clocks and ledger, tells W&B and the loggers of each row, and shows progress.

    Times are sums over all the processes that worked on the run, restored from the checkpoint: wall time since training
    began, and device time, all of it but evaluations, times the number of ranks. The ledger, memory and data wait are
    rank 0's own: one that waits in a step for a slower rank counts that as the step.

    evaluate_every: optimizer steps between evaluations, for the time left. `projection` is set once W&B has been started.
    """

    def __init__(self, run: RunDirectory, settings: RunSettings, evaluate_every: int | None = None) -> None:
        self.run, self.settings, self.evaluate_every = run, settings, evaluate_every
        self.ledger = Ledger()
        self.projection: WandbProjection | None = None
        self.peak_flops = settings.peak_flops
        self._device_seconds = 0.0  # up to `_device_mark` of the ledger's training seconds
        self._device_mark = 0.0
        self._num_ranks = 1
        self._loss_sum: Tensor | None = None  # of this rank's mean losses of the `_loss_steps` steps since the last row
        self._loss_steps, self._loss_ranks = 0, 1
        self._strategy: Strategy | None = None
        self._samples = 0  # since the last row
        self._row: Mapping[str, float] = {}
        self._device_wait: DeviceWait | None = None
        self._evaluation_seconds: float | None = None
        self._progress: TrainingProgress | None = None
        self._metrics_length = 0
        self._started = self._stepped = self._closed = False

    @property
    def wall_seconds(self) -> float:
        return sum(self.ledger.settle())

    @property
    def device_seconds(self) -> float:
        return self._device_seconds + (self.ledger.training_seconds - self._device_mark) * self._num_ranks

    def state_dict(self) -> dict[str, Any]:
        return {
            "device_seconds": self.device_seconds,
            "ledger": self.ledger.state(),
            "loss_sum": None if self._loss_sum is None else self._loss_over_ranks(),
            "loss_steps": self._loss_steps,
            "loss_ranks": self._loss_ranks,
            "metrics_length": self.run.metrics_length(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ledger.restore(state["ledger"])
        self._device_seconds = state["device_seconds"]
        self._device_mark = self.ledger.training_seconds
        self._loss_steps, self._loss_ranks = state["loss_steps"], state["loss_ranks"]
        self._loss_sum = None if state["loss_sum"] is None else torch.tensor(state["loss_sum"], dtype=torch.float64)
        self._metrics_length = state["metrics_length"]

    def _start(self, trainer: pl.Trainer) -> None:
        """Once: start the clocks; on rank 0 cut the record back to the checkpoint (or to nothing)."""
        if self._started:
            return
        self._started = True
        self.ledger.start()
        if trainer.is_global_zero:
            self.run.rewind_metrics(self._metrics_length)
            if self.projection is not None:
                self.projection.rows_written()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ImageClassifier)
        self._start(trainer)
        if self._loss_sum is not None:  # what all ranks had that saved it: rank 0's share of the sum, now
            self._loss_sum *= trainer.world_size / self._loss_ranks if trainer.is_global_zero else 0.0
        self._num_ranks = self._loss_ranks = trainer.world_size
        self._strategy = trainer.strategy
        trainer.profiler = FetchClock(trainer.profiler, self)  # type: ignore[attr-defined]
        device = trainer.strategy.root_device
        if device.type == "cuda":
            self._device_wait = DeviceWait()
            if self.peak_flops is None:
                is_tf32 = torch.backends.cuda.matmul.allow_tf32
                self.peak_flops = peak_flops(torch.cuda.get_device_name(device), str(trainer.precision), is_tf32)
        if trainer.is_global_zero:
            self._progress = TrainingProgress(pl_module.horizon_steps)

    def fetch_begins(self) -> None:
        if self._stepped:
            self.ledger.enter(DATA_WAIT)

    def fetch_ends(self) -> None:
        before = self.ledger.seconds[DATA_WAIT]
        if self._stepped:
            self.ledger.enter(STEP)
        if self._device_wait is not None:
            self._device_wait.begin(self.ledger.seconds[DATA_WAIT] - before)

    def evaluation_begins(self) -> None:
        self.ledger.enter(EVALUATION)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if self._device_wait is not None:
            self._device_wait.end()
        loss = outputs["loss"].detach().double()  # Lightning has divided it by the number of accumulated batches
        self._loss_sum = loss if self._loss_sum is None else self._loss_sum.to(loss.device) + loss
        if is_step_end(trainer, batch_idx):
            self._loss_steps += 1
            self._stepped = True
            self._samples += pl_module.images.plan.global_batch_size
            step = trainer.global_step
            if step % self.settings.log_every_steps == 0 or step == pl_module.horizon_steps:
                self._log_train(trainer, pl_module)
            if self._progress is not None and self._progress.is_due(step):
                self.ledger.enter(LOGGING)
                self._show(trainer, pl_module, self._progress)
        if self._stepped:
            self.ledger.enter(OTHER)

    def _loss_over_ranks(self) -> float:
        """The sum of `_loss_sum` over the ranks; float64 holds it exactly in any order. Called by all."""
        assert self._loss_sum is not None and self._strategy is not None
        return float(self._strategy.reduce(self._loss_sum.clone(), reduce_op="sum"))

    def _log_train(self, trainer: pl.Trainer, module: ImageClassifier) -> None:
        # The only synchronisation between logged steps.
        loss = self._loss_over_ranks() / (trainer.world_size * self._loss_steps)
        self._loss_sum, self._loss_steps = None, 0
        # What was waited for just now was the device's work, so it belongs to the step.
        self.ledger.enter(LOGGING)
        row = {"train/loss": loss, "train/learning_rate": module.learning_rate_at(trainer.global_step - 1)}
        row |= self._performance(trainer, module)
        self.ledger.mark()
        self._samples, self._row = 0, row
        self.write_row(trainer, module, "train", row)

    def _performance(self, trainer: pl.Trainer, module: ImageClassifier) -> dict[str, float]:
        """Since the last row; perf/mfu is left out where the device's peak is not known."""
        if self._device_wait is not None:
            waited = self.ledger.since_mark()[DATA_WAIT]
            self.ledger.move(DATA_WAIT, STEP, waited * (1.0 - self._device_wait.read()))
        seconds = self.ledger.since_mark()
        training = sum(seconds) - seconds[EVALUATION]
        figures = {
            "perf/images_per_second": self._samples / training,
            "perf/data_wait_fraction": seconds[DATA_WAIT] / training,
            "perf/memory_gib": memory_gib(trainer.strategy.root_device),
        }
        if self.peak_flops is not None:
            achieved = train_flops(module.forward_macs, self._samples) / training
            figures["perf/mfu"] = achieved / (self.peak_flops * trainer.world_size)
        return figures

    def performance_summary(
        self, trainer: pl.Trainer, module: ImageClassifier, num_workers: int | None, compiles: bool
    ) -> dict[str, Any]:
        """Of all attempts: `verdict`, a line, and `perf`, the shares and seconds it comes from."""
        shares, seconds, mfu = self.ledger.shares(), self.device_seconds, None
        if self.peak_flops is not None and seconds:
            mfu = train_flops(module.forward_macs, module.samples_seen) / (seconds * self.peak_flops)
        hints = []
        if trainer.strategy.root_device.type == "cuda":
            hints += ["trainer.precision=bf16-mixed is faster"] if str(trainer.precision).startswith("32") else []
            hints += ["model.compile=true may be faster"] if not compiles else []
        line = verdict(
            shares, mfu, num_workers, self.settings, len(os.sched_getaffinity(0)) // trainer.num_devices, hints
        )
        return {"verdict": line, "perf": {**shares, "startup_seconds": self.ledger.seconds[STARTUP], "mfu": mfu}}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.ledger.enter(EVALUATION)  # what is left

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)
        self.ledger.enter(EVALUATION)
        self._evaluation_start = time.perf_counter()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._start(trainer)
        self.ledger.enter(EVALUATION)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._evaluation_seconds = time.perf_counter() - self._evaluation_start
        self._log_evaluation(trainer, pl_module, "val")
        if trainer.state.fn == "fit":
            self.ledger.enter(OTHER)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._log_evaluation(trainer, pl_module, "test")

    def _log_evaluation(self, trainer: pl.Trainer, module: pl.LightningModule, split: str) -> None:
        assert isinstance(module, ImageClassifier)
        result = module.results.get(split, {})  # of a test of evaluation sets alone there is none
        names = ("loss", "top1", "top5", "top1_count", "num_images") if result else ()
        row = {f"{split}/{name}": result[name] for name in names}
        if split == "test":
            row |= module.set_scores.row()
        self.write_row(trainer, module, split, row)

    def write_row(
        self,
        trainer: pl.Trainer,
        module: ImageClassifier,
        event: str,
        row: Mapping[str, float | int],
        figures: Mapping[str, str] | None = None,
    ) -> None:
        """Write one row with every x axis, on rank 0, and tell all that show it elsewhere. figures: by name, files in the
        run directory that W&B shows with it."""
        if not trainer.is_global_zero:
            return
        step, device_seconds = trainer.global_step, self.device_seconds
        times = {"time/wall_seconds": self.wall_seconds, "time/device_seconds": device_seconds}
        skipped = {"data/skipped_samples": len(self.run.skipped(step))}
        full: dict[str, Any] = {"event": event, "step": step, **module.axes(), **skipped, **times, **row}
        if figures:
            full["figures"] = dict(figures)
        self.run.append(full)
        if self.projection is not None:
            self.projection.rows_written()
        numbers = {
            name: float(value) for name, value in full.items() if "/" in name and isinstance(value, (int, float))
        }
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=step)

    def _show(self, trainer: pl.Trainer, module: ImageClassifier, progress: TrainingProgress) -> None:
        """With the figures of the last row; before the first, those so far."""
        images, step = module.images, trainer.global_step
        seconds = self.ledger.since_mark()
        training = sum(seconds) - seconds[EVALUATION]
        rate = self._row.get("perf/images_per_second", self._samples / training)
        evaluations: float = 0
        if self.evaluate_every is not None:
            evaluations = -(-module.horizon_steps // self.evaluate_every) - step // self.evaluate_every
            if images.test_index is not None:
                evaluations += len(images.test_index) / len(images.val_ids)
        left = module.horizon_steps - step
        progress.show(
            step,
            module.samples_seen,
            loss=self._row.get("train/loss"),
            images_per_second=rate,
            data_wait=self._row.get("perf/data_wait_fraction", seconds[DATA_WAIT] / training),
            mfu=self._row.get("perf/mfu"),
            memory_gib=self._row.get("perf/memory_gib"),
            seconds_left=seconds_left(
                left, images.plan.global_batch_size / rate, evaluations, self._evaluation_seconds
            ),
        )

    def close(self, trainer: pl.Trainer, summary: Mapping[str, Any], exit_code: int) -> None:
        """Give the terminal back, and hand the result to W&B and the loggers; only the first call counts."""
        if self._closed:
            return
        self._closed = True
        if self._progress is not None:
            self._progress.close()
        close_reports(self.projection, trainer.loggers, summary, exit_code, self.settings.wandb_finish_seconds)
