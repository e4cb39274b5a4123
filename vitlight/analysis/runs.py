"""Run directories become one table: a row a run, whatever became of it.

A run directory holds `experiment.yaml`, `metrics.jsonl` and, once it has ended, `result.json`, one flat object of
schema 1. A directory with no `result.json` is a run under way; its axes are those of the last rows it logged.
Nothing is dropped: a result that can't be read, or that claims to be done and lacks a number that tables need, is a
row with status `failed` whose reason says what is wrong with it.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vitlight.analysis.columns import COLUMNS, build_table, check_value
from vitlight.analysis.evaluation_rows import evaluation_columns
from vitlight.analysis.probes import read_probes
from vitlight.analysis.published_words import family_of_arch
from vitlight.errors import InputError
from vitlight.json_lines import read_rows

__all__ = ["COLUMNS", "STATUSES", "find_run_dirs", "load_runs", "read_run"]

SCHEMA = 1
STATUSES = ("done", "diverged", "stopped", "failed", "running")

# What a finished run must have: without any of these it has no place in a scaling plot.
REQUIRED_WHEN_DONE = (
    "arch",
    "family",
    "params",
    "forward_macs",
    "num_train_samples",
    "samples_seen",
    "train_flops",
    "top1",
)

# A running run's columns in the words of metrics.jsonl, and of the resolved config.
METRIC_KEYS = {
    "params": "model/params",
    "forward_macs": "compute/forward_macs",
    "samples_seen": "data/samples_seen",
    "unique_samples_seen": "data/unique_samples_seen",
    "epochs": "data/epochs",
    "train_flops": "compute/train_flops",
    "val_top1": "val/top1",
    "val_loss": "val/loss",
    "wall_seconds": "time/wall_seconds",
    "device_seconds": "time/device_seconds",
    "images_per_second": "perf/images_per_second",
}
CONFIG_KEYS = {
    "arch": "model.arch",
    "num_train_samples": "data.num_train_samples",
    "image_size": "data.image_size",
    "global_batch_size": "data.global_batch_size",
    "seed": "seed_everything",
    "lr": "model.optimizer.lr",
    "weight_decay": "model.optimizer.weight_decay",
}
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML was built with it
METRICS_TAIL_BYTES = 1 << 18  # of metrics.jsonl, enough for hundreds of rows; the file may be far longer


def load_runs(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """One row a run found at or beneath `paths`, in path order, with the columns COLUMNS, then those of `read_probes`, and
    `wandb_url` where a run has a page on W&B.

    Integer columns are Int64 with NA; `train_flops` is an object column of Python integers, exact at any length;
    fractions lie in [0, 1]; `versions` and `rollbacks` (NA where there was none) are JSON text; times are ISO UTC. Raises
    InputError for a path that doesn't exist or has no run in it.
    """
    return build_table([read_run(run_dir) for run_dir in find_run_dirs(paths)], COLUMNS)


def find_run_dirs(paths: str | Path | Iterable[str | Path], required: bool = True) -> list[Path]:
    """The run directories at or beneath `paths`, each once, at any depth; runs inside runs are not looked for.

    InputError: a path that doesn't exist, or, where `required`, one with no run in it.
    """
    found: dict[Path, Path] = {}
    for path in [Path(paths)] if isinstance(paths, str | Path) else map(Path, paths):
        if not path.is_dir():
            raise InputError(f"no run directory at {str(path)!r}: name a folder of runs, such as runs/quickstart")
        has_run = False
        for folder, subfolders, files in os.walk(path, onerror=_refuse):
            subfolders.sort()
            if "result.json" in files or "experiment.yaml" in files:
                subfolders.clear()
                has_run = True
                found.setdefault(Path(folder).resolve(), Path(folder))
        if required and not has_run:
            raise InputError(f"no run in {str(path)!r}: a run is a folder with experiment.yaml or result.json in it")
    return list(found.values())


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename!r} can't be read: {error.strerror}")


def read_run(run_dir: Path) -> dict[str, Any]:
    """The row of one run, column -> value or None: COLUMNS, and where it was evaluated on further sets `top1_NAME`."""
    where = {"name": run_dir.parent.name, "run_id": run_dir.name, "run_dir": str(run_dir)}
    path = run_dir / "result.json"
    if not path.exists():
        return _read_running(run_dir) | where | {"status": "running"} | _wandb_page(run_dir)
    try:
        result = json.loads(path.read_bytes())
        if not isinstance(result, dict):
            raise ValueError("it is not a JSON object")
        if result.get("schema") != SCHEMA:
            raise ValueError(f"schema {result.get('schema')!r} is not {SCHEMA}")
        if result.get("status") not in STATUSES:
            raise ValueError(f"status {result.get('status')!r} is none of {', '.join(STATUSES)}")
        record = {column: check_value(column, result.get(column)) for column in COLUMNS}
        for whole in ("train_flops", "device_seconds"):  # a run that shares no steps with others has them all to itself
            if record[f"own_{whole}"] is None:
                record[f"own_{whole}"] = record[whole]
        if record["status"] == "done":
            lacking = [column for column in REQUIRED_WHEN_DONE if record[column] is None]
            if lacking:
                raise ValueError(f"the run is done, yet {', '.join(lacking)} is null")
    except (OSError, ValueError) as error:
        config = _from_config(run_dir / "experiment.yaml")
        return config | where | {"status": "failed", "reason": f"{path} can't be used: {error}"}
    record |= evaluation_columns(run_dir, record["image_size"]) | _wandb_page(run_dir)
    own = {"run_dir": str(run_dir)} | {k: v for k, v in where.items() if record[k] is None}
    return record | own | read_probes(run_dir, result)


def _wandb_page(run_dir: Path) -> dict[str, str]:
    """`wandb_url`, as the run noted it when W&B's server had taken it in."""
    path = run_dir / "wandb" / "url"
    return {"wandb_url": path.read_text().strip()} if path.is_file() else {}


def _read_running(run_dir: Path) -> dict[str, Any]:
    """What is known of a run under way: settings from its config, axes from the last rows that hold them."""
    record = _from_config(run_dir / "experiment.yaml")
    for row in read_rows(run_dir / "metrics.jsonl", METRICS_TAIL_BYTES):
        for column, key in METRIC_KEYS.items():
            if row.get(key) is not None:
                record[column] = _or_none(column, row[key])
    return record


def _from_config(path: Path) -> dict[str, Any]:
    """The columns that a resolved config tells; empty where it can't be read (the run itself is listed either way)."""
    try:
        config = yaml.load(path.read_bytes(), Loader=_YAML_LOADER)
    except (OSError, yaml.YAMLError):
        return {}
    record = {}
    for column, key in CONFIG_KEYS.items():
        value = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        record[column] = _or_none(column, value)
    if record["arch"] is not None:
        record["family"] = family_of_arch(record["arch"])
    return record


def _or_none(column: str, value: Any) -> Any:
    try:
        return check_value(column, value)
    except ValueError:
        return None
