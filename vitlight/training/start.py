"""Where all ranks of a run begin: at the checkpoint that the first of them finds whole."""

import os
from pathlib import Path

import lightning.pytorch as pl
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment

from vitlight.training.checkpoint import checkpoint_step, newest_checkpoint

__all__ = ["agree_on_start"]

_VARIABLE = "VITLIGHT_CHECKPOINT"


def agree_on_start(trainer: pl.Trainer, folder: Path) -> tuple[int, Path] | None:
    """(step, path) of the checkpoint in `folder` that every rank loads, or None. Rank 0 alone looks and reads it whole: on a
    shared file system one rank may see what another doesn't yet, and hundreds would read it twice."""
    if trainer.world_size == 1:
        return newest_checkpoint(folder)
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if not dist.is_initialized() and isinstance(environment, LightningEnvironment):
        if trainer.num_nodes > 1:  # a node's first process starts the others when it trains: they can't meet before
            return newest_checkpoint(folder)
        if trainer.is_global_zero:  # the other ranks are about to be started with its environment
            found = newest_checkpoint(folder)
            os.environ[_VARIABLE] = str(found[1]) if found is not None else ""
            return found
        path = os.environ.get(_VARIABLE, "")
        return (checkpoint_step(Path(path)), Path(path)) if path else None
    _meet(trainer)
    found = newest_checkpoint(folder) if trainer.is_global_zero else None
    return trainer.strategy.broadcast(found)


def _meet(trainer: pl.Trainer) -> None:
    """Make the group of all ranks, as Lightning does when it trains; then it finds the group there."""
    strategy = trainer.strategy
    trainer.accelerator.setup_device(strategy.root_device)
    setup = getattr(strategy, "setup_distributed", None) or strategy._setup_distributed  # type: ignore[attr-defined]
    setup()
