"""Run directories become one table: a row a run, whatever became of it.

A run directory holds `experiment.yaml`, `metrics.jsonl` and, once it has ended, `result.json`, one flat object of
schema 1. A directory with no `result.json` is a run under way; its axes are those of the last rows it logged.
Nothing is dropped: a result that can't be read, or that claims to be done and lacks a number that tables need, is a
row with status `failed` whose reason says what is wrong with it.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from vitlight.errors import InputError

__all__ = ["COLUMNS", "STATUSES", "find_run_dirs", "load_runs"]

SCHEMA = 1
STATUSES = ("done", "diverged", "failed", "running")

# Column -> kind, in the order of the table. `exact` is a whole number of any length: training FLOPs pass int64 at
# 9.2e18, a ViT-L/16 (61.6 GMACs) after 20 epochs of ImageNet-1k, so that column holds Python integers.
COLUMNS = {
    "arch": "text",
    "family": "text",
    "params": "count",
    "forward_macs": "count",
    "image_size": "count",
    "num_train_samples": "count",
    "samples_seen": "count",
    "unique_samples_seen": "count",
    "epochs": "real",
    "train_flops": "exact",
    "top1": "fraction",
    "eval_split": "text",
    "top5": "fraction",
    "loss": "real",
    "val_top1": "fraction",
    "val_loss": "real",
    "seed": "count",
    "status": "text",
    "wall_seconds": "real",
    "device_seconds": "real",
    "images_per_second": "real",
    "global_batch_size": "count",
    "lr": "real",
    "weight_decay": "real",
    "name": "text",
    "run_id": "text",
    "run_dir": "text",
    "commit": "text",
    "data_digest": "text",
    "num_ranks": "count",
    "device": "text",
    "reason": "text",
    "horizon_samples": "count",
    "own_train_flops": "exact",
    "own_device_seconds": "real",
    "num_eval_samples": "count",
    "top1_count": "count",
    "in_channels": "count",
    "num_classes": "count",
    "started_at": "text",
    "finished_at": "text",
    "last_good_checkpoint": "text",
    "rollbacks": "records",
    "versions": "versions",
}
DTYPES = {
    "text": "string",
    "count": "Int64",
    "exact": "object",
    "real": "Float64",
    "fraction": "Float64",
    "records": "string",
    "versions": "string",
}
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
METRICS_TAIL_BYTES = 1 << 18  # of metrics.jsonl, enough for hundreds of rows; the file may be far longer


def load_runs(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """One row a run found at or beneath `paths`, in path order, with the columns COLUMNS.

    Integer columns are Int64 with NA; `train_flops` is an object column of Python integers, exact at any length;
    fractions lie in [0, 1]; `versions` and `rollbacks` (NA where there was none) are JSON text; times are ISO UTC. Raises
    InputError for a path that doesn't exist or has no run in it.
    """
    records = [_read_run(run_dir) for run_dir in find_run_dirs(paths)]
    columns = {}
    for column, kind in COLUMNS.items():
        values = [pd.NA if record.get(column) is None else record[column] for record in records]
        columns[column] = pd.Series(values, dtype=DTYPES[kind])
    return pd.DataFrame(columns)


def find_run_dirs(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The run directories at or beneath `paths`, each once, at any depth; runs inside runs are not looked for."""
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
        if not has_run:
            raise InputError(f"no run in {str(path)!r}: a run is a folder with experiment.yaml or result.json in it")
    return list(found.values())


def _refuse(error: OSError) -> None:
    raise InputError(f"the folder {error.filename!r} can't be read: {error.strerror}")


def _read_run(run_dir: Path) -> dict[str, Any]:
    """The row of one run, column -> value or None."""
    where = {"name": run_dir.parent.name, "run_id": run_dir.name, "run_dir": str(run_dir)}
    path = run_dir / "result.json"
    if not path.exists():
        return _read_running(run_dir) | where | {"status": "running"}
    try:
        result = json.loads(path.read_bytes())
        if not isinstance(result, dict):
            raise ValueError("it is not a JSON object")
        if result.get("schema") != SCHEMA:
            raise ValueError(f"schema {result.get('schema')!r} is not {SCHEMA}")
        if result.get("status") not in STATUSES:
            raise ValueError(f"status {result.get('status')!r} is none of {', '.join(STATUSES)}")
        record = {column: _checked(column, result.get(column)) for column in COLUMNS}
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
    return record | {"run_dir": str(run_dir)} | {k: v for k, v in where.items() if record[k] is None}


def _checked(column: str, value: Any) -> Any:
    """`value` as the kind its column asks for; null, NaN and infinity are None. Raises ValueError naming the column."""
    kind = COLUMNS[column]
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "text" and isinstance(value, str):
        return value
    if kind == "versions" and isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    if kind == "records" and isinstance(value, list):
        return json.dumps(value, sort_keys=True) if value else None
    if kind in ("count", "exact") and isinstance(value, int | float) and not isinstance(value, bool):
        if value < 0 or value != int(value) or (kind == "count" and value >= 1 << 63):
            raise ValueError(f"{column} is {value!r}, which is not a count")
        return int(value)
    if kind in ("real", "fraction") and isinstance(value, int | float) and not isinstance(value, bool):
        if kind == "fraction" and not 0 <= value <= 1:
            raise ValueError(f"{column} is {value!r}, outside [0, 1]")
        return float(value)
    raise ValueError(f"{column} is {value!r}, which is no {kind}")


def _read_running(run_dir: Path) -> dict[str, Any]:
    """What is known of a run under way: settings from its config, axes from the last rows that hold them."""
    record = _from_config(run_dir / "experiment.yaml")
    for row in _last_rows(run_dir / "metrics.jsonl"):
        for column, key in METRIC_KEYS.items():
            if row.get(key) is not None:
                record[column] = _or_none(column, row[key])
    return record


def _last_rows(path: Path) -> list[dict[str, Any]]:
    """The last rows of metrics.jsonl in order; a row still being written (or cut by the tail's edge) is left out."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        start = max(0, path.stat().st_size - METRICS_TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")
    rows = []
    for line in lines[1:-1] if start else lines[:-1]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _from_config(path: Path) -> dict[str, Any]:
    """The columns that a resolved config tells; empty where it can't be read (the run itself is listed either way)."""
    try:
        config = yaml.safe_load(path.read_bytes())
    except (OSError, yaml.YAMLError):
        return {}
    record = {}
    for column, key in CONFIG_KEYS.items():
        value = config
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        record[column] = _or_none(column, value)
    return record


def _or_none(column: str, value: Any) -> Any:
    try:
        return _checked(column, value)
    except ValueError:
        return None
