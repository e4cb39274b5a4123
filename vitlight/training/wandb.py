"""Weights & Biases as a projection of the record: offline where there is no key, on rank 0 only, never in the way."""

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.rank_zero import rank_zero_only

__all__ = ["build_wandb_logger", "update_summary"]


def is_rank_zero() -> bool:
    """Known before there is a trainer: launchers set the rank in the environment."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _has_key() -> bool:
    """Whether W&B would find a key without asking: WANDB_API_KEY, or an entry for its host in ~/.netrc."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def build_wandb_logger(
    run_dir: Path, run_id: str, name: str, group: str, project: str, config: Mapping[str, Any]
) -> Logger | None:
    """A WandbLogger that continues the run of the same id, or None on other ranks and where W&B can't start.

    `val/*` and `test/*` are plotted against training FLOPs, everything else against samples seen.
    """
    if not is_rank_zero() or os.environ.get("WANDB_MODE") == "disabled":
        return None
    from lightning.pytorch.loggers import WandbLogger

    offline = os.environ.get("WANDB_MODE") == "offline" or ("WANDB_MODE" not in os.environ and not _has_key())
    try:
        import wandb

        experiment = wandb.init(
            id=run_id,
            name=name,
            group=group,
            project=os.environ.get("WANDB_PROJECT", project),
            dir=run_dir,
            config=dict(config),
            mode="offline" if offline else None,
            resume=None if offline else "allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        logger = WandbLogger(experiment=experiment, save_dir=run_dir)
        experiment.define_metric("data/samples_seen")
        experiment.define_metric("compute/train_flops")
        experiment.define_metric("*", step_metric="data/samples_seen")
        for split in ("val", "test"):
            experiment.define_metric(f"{split}/*", step_metric="compute/train_flops")
    except Exception as error:  # a logging service must never stop a run
        rank_zero_warn(f"W&B can't be used, the run goes on without it: {error}")
        return None
    return logger


def update_summary(loggers: list[Logger], result: Mapping[str, Any]) -> None:
    """Put the result into the W&B summary and close the run."""
    from lightning.pytorch.loggers import WandbLogger

    for logger in loggers:
        if isinstance(logger, WandbLogger):
            try:
                logger.experiment.summary.update({name: value for name, value in result.items() if value is not None})
                logger.experiment.finish()
            except Exception as error:  # a logging service must never stop a run
                rank_zero_warn(f"the W&B summary could not be written: {error}")
