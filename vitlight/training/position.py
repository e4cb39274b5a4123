"""Where a run stands is its optimizer step: the axes that follow from it, what a checkpoint says of it, and Lightning's
counters, put there."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from vitlight.cost import train_flops
from vitlight.data.plan import DataPlan
from vitlight.errors import InputError

__all__ = ["axes_at", "check_position", "put_counters"]


def axes_at(step: int, plan: DataPlan, forward_macs: int) -> dict[str, float | int]:
    """Every x axis of a plot after `step` optimizer steps, exact."""
    samples = step * plan.global_batch_size
    return {
        "data/samples_seen": samples,
        "data/unique_samples_seen": plan.unique_samples_seen(samples),
        "data/epochs": samples / plan.num_samples,
        "compute/train_flops": train_flops(forward_macs, samples),
    }


def check_position(state: Mapping[str, Any], plan: DataPlan, horizon_steps: int | None) -> None:
    """InputError where training can't go on from a checkpoint, of which `state` is what the run said of itself: the data
    plan is another, or the horizon. horizon_steps: None where a run takes over one of another horizon."""
    if state["plan_digest"] != plan.digest:
        raise InputError(
            f"the checkpoint at step {state['step']} was made with data plan {state['plan_digest']}, not "
            f"{plan.digest}: its data, subset, seed or data.global_batch_size differ"
        )
    if horizon_steps is None:
        return
    horizon = horizon_steps * plan.global_batch_size
    if state["horizon_samples"] != horizon:
        raise InputError(
            f"the checkpoint at step {state['step']} is of a run of {state['horizon_samples']} samples seen, not "
            f"{horizon}: its model.duration differs, on which the learning rates depend; to go beyond a finished run's "
            f"horizon set run.extend"
        )


def put_counters(trainer: pl.Trainer, step: int) -> None:
    """Lightning's own counters, as they are after optimizer step `step`."""
    loop = trainer.fit_loop.epoch_loop
    for field in ("ready", "started", "processed", "completed"):
        setattr(loop.batch_progress.total, field, step * trainer.accumulate_grad_batches)
    steps = loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop._batches_that_stepped = step
