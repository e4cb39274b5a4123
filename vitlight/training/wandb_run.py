"""A vitlight run as a W&B run: its name, group, tags and config there; and runs that have ended, brought up to date."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vitlight.data.sources import is_remote, shown
from vitlight.errors import InputError
from vitlight.models import arch_family
from vitlight.training.record import RunDirectory
from vitlight.training.result import SUMMARY
from vitlight.training.wandb import WandbProjection, start_wandb

__all__ = ["FACTS", "catch_up", "conclude", "show_run"]

FACTS = ("arch", "params", "forward_macs", "num_train_samples", "seed")  # as in result.json


def show_run(
    run: RunDirectory,
    run_id: str,
    config: Mapping[str, Any],
    facts: Mapping[str, Any],
    finish_seconds: float,
    anew: bool = False,
) -> WandbProjection | None:
    """Show a run on W&B, or go on with it; None on other ranks and where W&B is turned off.

    config: the resolved settings, as experiment.yaml has them. facts: what FACTS names.
    """
    arch, settings = facts["arch"], config["run"]
    return start_wandb(
        run,
        run_id,
        name=f"{arch} {facts['num_train_samples']} s{facts['seed']}",
        group=settings["name"],
        tags=[arch_family(arch), arch, *settings["tags"]],
        project=settings["wandb_project"],
        config=_without_secrets(dict(config)) | {name: facts[name] for name in FACTS if name != "seed"},
        finish_seconds=finish_seconds,
        anew=anew,
    )


def conclude(projection: WandbProjection, result: Mapping[str, Any]) -> None:
    """Hand over what result.json says, and wait."""
    summary = {name: result.get(name) for name in SUMMARY}
    projection.finish(summary, 0 if result["status"] in ("done", "stopped") else 1)


def catch_up(run_dir: Path, finish_seconds: float, anew: bool = False) -> WandbProjection:
    """Give W&B the rows that it lacks of a run that has ended, whether or not it was shown there before.

    anew: all rows, as a new run of W&B. InputError: the run has not ended, is in progress, or W&B is turned off.
    """
    run = RunDirectory(run_dir)
    result = run.read_result()
    if result is None or not run.metrics_path.is_file():
        raise InputError(
            f"{run_dir} has no result.json and metrics.jsonl: its run has not ended; `vitlight fit` goes on"
        )
    config = yaml.safe_load(run.experiment_path.read_text())
    with run.claimed():
        projection = show_run(run, result["run_id"], config, result, finish_seconds, anew)
        if projection is None:
            raise InputError("WANDB_MODE=disabled turns W&B off; unset it")
        conclude(projection, result)
    return projection


def _without_secrets(value: Any) -> Any:
    """Settings as others may see them: URLs of shards may hold passwords or signatures, commands anything."""
    if isinstance(value, dict):
        return {_without_secrets(name): _without_secrets(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each) for each in value]
    return shown(value) if isinstance(value, str) and is_remote(value) else value
