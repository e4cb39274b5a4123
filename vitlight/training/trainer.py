"""The Lightning Trainer of a run: what vitlight decides, and what is left to the settings."""

from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
import yaml
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.training.background_logger import BackgroundLogger
from vitlight.training.batch_norm import SharedBatchNorm
from vitlight.training.checkpoint_io import CheckpointReader
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import ResolvedRun
from vitlight.training.run_settings import RunSettings
from vitlight.training.sharded import ShardedStrategy
from vitlight.training.strategy import choose_strategy, launched_world
from vitlight.training.wandb import WandbProjection
from vitlight.training.wandb_run import FACTS, show_run

__all__ = ["build_fit_trainer", "build_trainer", "show_on_wandb"]


def build_trainer(**arguments: Any) -> pl.Trainer:
    """A Trainer; what Lightning refuses of its settings is bad input."""
    arguments |= launched_world(arguments)
    try:
        trainer = pl.Trainer(**{**arguments, "strategy": choose_strategy(arguments)})
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise InputError(f"trainer: {error}") from error
    if getattr(trainer.strategy, "_layer_sync", None) is not None:
        trainer.strategy._layer_sync = SharedBatchNorm(trainer.strategy.root_device.type)  # type: ignore[attr-defined]
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = CheckpointReader()
    return trainer


def show_on_wandb(
    cli: ExperimentCLI, resolved: ResolvedRun, run: RunDirectory, settings: RunSettings
) -> WandbProjection | None:
    """The run on Weights & Biases, as the settings ask for it; None on other ranks and where it is turned off."""
    if not settings.wandb:
        return None
    facts = {name: getattr(resolved, name) for name in FACTS}
    return show_run(run, resolved.run_id, yaml.safe_load(cli.dump()), facts, settings.wandb_finish_seconds)


def build_fit_trainer(
    cli: ExperimentCLI,
    resolved: ResolvedRun,
    run: RunDirectory,
    callbacks: list[pl.Callback],
    evaluate_every: int | None,
) -> pl.Trainer:
    """The Trainer of a run. evaluate_every: optimizer steps between passes over `val`, None for no pass."""
    arguments, settings = cli.build_trainer_settings(), cli.build_run_settings()
    given = arguments.pop("logger", None)
    loggers = [] if given in (None, True, False) else given if isinstance(given, list) else [given]
    own = arguments.pop("callbacks", None) or []
    for name in ("enable_progress_bar", "enable_model_summary"):  # Record's lines say more; both can be asked for
        arguments[name] = bool(arguments.get(name))
    if cli.settings.model.compile:
        # Lightning validates during a fit without inference mode, and a test with it would compile a third time.
        arguments["inference_mode"] = False
    accumulate = arguments.get("accumulate_grad_batches") or 1
    trainer = build_trainer(
        **arguments,
        logger=[BackgroundLogger(logger) for logger in loggers] or False,
        callbacks=[*(own if isinstance(own, list) else [own]), *callbacks],
        max_epochs=-1,
        max_steps=resolved.steps,
        limit_val_batches=1.0 if evaluate_every else 0,
        val_check_interval=evaluate_every * accumulate if evaluate_every else 1.0,
        check_val_every_n_epoch=None if evaluate_every else 1,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=run.path,
        log_every_n_steps=settings.log_every_steps,
    )
    if trainer.world_size == 1 and cli.settings.model.gradient_compression != "none":
        say("model.gradient_compression=bf16 does nothing on one rank")
    if isinstance(trainer.strategy, ShardedStrategy):
        trainer.strategy.saves_parts = settings.checkpoint_sharded is not False
    elif settings.checkpoint_sharded:
        raise InputError("run.checkpoint_sharded=true needs split weights (trainer.strategy=fsdp2); leave it out")
    if hasattr(trainer.strategy, "_timeout"):  # Lightning's DDP and FSDP hand it to torch when the ranks meet
        trainer.strategy._timeout = timedelta(seconds=settings.rank_timeout_seconds)
    return trainer
