"""The columns of the run table: their order, their kinds, and what a value must be to stand in one."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

__all__ = ["COLUMNS", "TABLE_COLUMNS", "build_table", "check_value"]

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
    "mean_class_top1": "fraction",
    "in_channels": "count",
    "num_classes": "count",
    "started_at": "text",
    "finished_at": "text",
    "last_good_checkpoint": "text",
    "rollbacks": "records",
    "versions": "versions",
}
# What a table of several sources says besides: where a row comes from and what its numbers may stand beside.
TABLE_COLUMNS = COLUMNS | {
    "variant": "text",  # a model as its source writes it; `arch` is the name here, where there is one
    "source": "text",  # a citation, or the path of the run directory or file
    "is_published": "flag",
    "comparable": "text",  # accuracies of rows that differ here measure different things
    "convention": "text",  # what the source calls its FLOPs; forward_macs are multiply-adds whatever it says
    "pretrain_data": "text",
    "pretrain_data_text": "text",
    "metric": "text",
    "label_status": "text",
    "notes": "text",
}
_DTYPES = {
    "text": "string",
    "count": "Int64",
    "exact": "object",
    "real": "Float64",
    "fraction": "Float64",
    "flag": "boolean",
    "records": "string",
    "versions": "string",
}
_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_REAL = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def build_table(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> pd.DataFrame:
    """A row a record, `columns` (name -> kind) first; None and absent are NA.

    Other names that records hold follow in the order in which they first appear. Their values are text; a column of
    nothing but whole numbers becomes Int64, one of nothing but numbers Float64.
    """
    made = {name: _series(records, name, _DTYPES[kind]) for name, kind in columns.items()}
    for name in dict.fromkeys(name for record in records for name in record if name not in columns):
        made[name] = _series(records, name, _own_dtype(record.get(name) for record in records))
    return pd.DataFrame(made)


def _series(records: Sequence[Mapping[str, Any]], name: str, dtype: str) -> pd.Series:
    values = [pd.NA if record.get(name) is None else record[name] for record in records]
    if dtype in ("Int64", "Float64"):
        number = int if dtype == "Int64" else float
        values = [number(value) if isinstance(value, str) else value for value in values]
    return pd.Series(values, dtype=dtype)


def _own_dtype(values: Iterable[str | None]) -> str:
    known = [value for value in values if value is not None]
    for dtype, pattern in (("Int64", _INTEGER), ("Float64", _REAL)):
        if all(pattern.fullmatch(value) for value in known):
            return dtype
    return "string"


def check_value(column: str, value: Any) -> Any:
    """`value` as the kind its column asks for; null, NaN and infinity are None. Raises ValueError naming the column."""
    kind = TABLE_COLUMNS[column]
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return None
    if kind == "text" and isinstance(value, str):
        return value
    if kind == "flag" and isinstance(value, bool):
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
