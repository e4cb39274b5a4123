"""Where a run stops when a signal or a file asks for it: between two steps, all ranks at the same one, with a checkpoint."""

from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment
from torch import Tensor

from vitlight.training.callbacks import is_step_end
from vitlight.training.checkpoints import Checkpoints
from vitlight.training.classifier import ImageClassifier
from vitlight.training.signals import INTERRUPTED, REQUEUE, StopSignals
from vitlight.training.stop_file import StopFile

__all__ = ["StopAtBoundary", "Stopped", "is_launched_by_lightning", "let_no_other_handle_signals"]


class Stopped(Exception):
    """The run was asked to stop, has stopped at `step`, and can go on from there; exit_code says how the process ends."""

    def __init__(self, step: int, exit_code: int) -> None:
        super().__init__(f"stopped at step {step}")
        self.step, self.exit_code = step, exit_code


def let_no_other_handle_signals(trainer: pl.Trainer) -> None:
    """Lightning would save and requeue inside a handler, and broadcast with a synchronisation at every batch."""
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def is_launched_by_lightning(trainer: pl.Trainer) -> bool:
    """Whether this is a rank that the first one of its machine has started. Lightning kills that one at once when such a
    rank ends with anything but 0, in the middle of whatever it writes."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return isinstance(environment, LightningEnvironment) and trainer.local_rank > 0


class Agreement:
    """The greatest urgency over all ranks, which each learns at the same boundary: the one after it was noted. The sum over
    the ranks runs meanwhile, on a group of its own, so no step waits for it. Every rank must call at every boundary."""

    def __init__(self, num_ranks: int, timeout: timedelta) -> None:
        self._group = dist.new_group(backend="gloo", timeout=timeout) if num_ranks > 1 else None
        self._pending: tuple[dist.Work, Tensor] | None = None
        self._agreed = 0

    def exchange(self, urgency: int) -> int:
        """What the ranks have agreed on; `urgency` becomes part of the next answer (of this one, where a rank is alone)."""
        if self._group is None:
            return urgency
        self.settle()
        if not self._agreed:
            noted = torch.tensor(urgency)
            work = dist.all_reduce(noted, dist.ReduceOp.MAX, group=self._group, async_op=True)
            assert work is not None
            self._pending = work, noted
        return self._agreed

    def settle(self) -> int:
        """Wait for the exchange under way."""
        if self._pending is not None:
            work, noted = self._pending
            work.wait()
            self._pending, self._agreed = None, int(noted)
        return self._agreed


class StopAtBoundary(pl.Callback):
    """Ends training and evaluation with Stopped at the next boundary after a signal, or after the first rank has found the
    stop file, which counts as SIGTERM, when a checkpoint of that step is on disk. An evaluation that is due or under way is
    left to the resumed run, which makes it before it goes on.

    Stands last: what other callbacks do at the boundary is then part of the checkpoint. evaluate_every_steps: None for no
    evaluation while training. timeout_seconds: how long ranks wait for each other.
    """

    def __init__(
        self,
        stop: StopSignals,
        stop_file: StopFile,
        checkpoints: Checkpoints,
        evaluate_every_steps: int | None,
        timeout_seconds: float,
    ) -> None:
        self.stop, self.stop_file, self.checkpoints = stop, stop_file, checkpoints
        self.evaluate_every_steps, self.timeout = evaluate_every_steps, timedelta(seconds=timeout_seconds)
        self.evaluation_due = False
        self._agreement: Agreement | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"evaluation_due": self.evaluation_due}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.evaluation_due = state["evaluation_due"]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._agreement is None:
            self._agreement = Agreement(trainer.world_size, self.timeout)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._agreement is not None:
            self._agreement.settle()

    def _begin(self, trainer: pl.Trainer) -> None:
        """Before the first step or batch, where waiting for the other ranks costs nothing."""
        assert self._agreement is not None
        self.stop.defer()
        self._agreement.exchange(self._urgency(trainer))
        if urgency := self._agreement.settle():
            self._leave(trainer, urgency)

    def _urgency(self, trainer: pl.Trainer) -> int:
        return 2 if trainer.is_global_zero and self.stop_file.is_there() else self.stop.urgency

    def _asked(self, trainer: pl.Trainer) -> int:
        assert self._agreement is not None
        return self._agreement.exchange(self._urgency(trainer))

    def _leave(self, trainer: pl.Trainer, urgency: int) -> None:
        self.stop.answered()
        self.checkpoints.wait()
        trainer.strategy.barrier("stopped")  # launchers may kill the others when the first rank has left
        raise Stopped(trainer.global_step, REQUEUE if urgency > 1 else INTERRUPTED)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)
        if self.evaluation_due:
            self.evaluation_due = False
            loop, connector = trainer.fit_loop.epoch_loop.val_loop, trainer._logger_connector
            first = connector._first_loop_iter
            trainer.validating = True
            loop.run()
            trainer.training, connector._first_loop_iter = True, first

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if is_step_end(trainer, batch_idx) and (urgency := self._asked(trainer)):
            self.stop.answered()
            step, every = trainer.global_step, self.evaluate_every_steps
            self.evaluation_due = every is not None and step % every == 0 and step != pl_module.horizon_steps
            self.checkpoints.save_now(trainer, pl_module)
            self._leave(trainer, urgency)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            self._begin(trainer)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._begin(trainer)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(pl_module, ImageClassifier)
        if urgency := self._asked(trainer):
            self.stop.answered()
            if trainer.state.fn == "fit" and trainer.global_step != pl_module.horizon_steps:
                self.evaluation_due = True
                self.checkpoints.save_now(trainer, pl_module)
            self._leave(trainer, urgency)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if urgency := self._asked(trainer):
            self._leave(trainer, urgency)
