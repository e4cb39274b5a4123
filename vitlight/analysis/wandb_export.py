"""Runs as W&B gives them out: the table of its API, and the folders of runs that never met a server."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vitlight.analysis.sheets import Sheet
from vitlight.errors import InputError

__all__ = ["WANDB_STATES", "find_wandb_runs", "flatten_api_table", "read_wandb_runs"]

# What W&B says of a run, in the words of `status`.
WANDB_STATES = {
    "finished": "done",
    "running": "running",
    "pending": "running",
    "crashed": "failed",
    "failed": "failed",
    "killed": "failed",
    "preempted": "failed",
    "preempting": "running",
    "unknown": "running",  # the log has no end: the run goes on, or was killed
}
_NOT_A_LITERAL = re.compile(r"(?<=[\[{(,: ])-?(nan|inf|Infinity|NaN)(?=[\]}), ])")


def flatten_api_table(sheet: Sheet) -> Sheet:
    """The table of W&B's export guide, whose cells are Python dicts, with a column a setting and a column a metric.

    Nested names are joined by dots, as W&B's page does; what starts with `_` is W&B's own. InputError: a cell is no dict.
    """
    rows = []
    for row, place in zip(sheet.rows, sheet.places, strict=True):
        flat = {name: row[name] for name in sheet.header if name not in ("summary", "config")}
        for name in ("config", "summary"):
            try:
                cell = ast.literal_eval(_NOT_A_LITERAL.sub("None", row[name]))
            except (ValueError, SyntaxError):
                cell = None
            if not isinstance(cell, dict):
                raise InputError(f"{sheet.label}, {place}: {name} is no Python dict: {row[name][:60]!r}")
            flat |= flatten(cell)
        rows.append(flat)
    header = tuple(dict.fromkeys(name for row in rows for name in row))
    return Sheet(sheet.label, header, [{name: row.get(name, "") for name in header} for row in rows], sheet.places)


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted name -> text; a list is JSON, None is empty, and names that start with `_` are left out."""
    flat: dict[str, str] = {}
    for name, value in nested.items():
        if str(name).startswith("_"):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is None:
            flat[f"{prefix}{name}"] = ""
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return flat


def find_wandb_runs(folder: Path) -> list[Path]:
    """The logs (`run-ID.wandb`) of W&B runs at or beneath `folder`, but for those in a run directory of vitlight, whose own
    record says more, and in a report's folder, which show the report."""
    found = []
    for place, subfolders, files in os.walk(folder):
        subfolders.sort()
        if {"result.json", "experiment.yaml", "report.html"}.intersection(files):
            subfolders.clear()
            continue
        found += [Path(place) / name for name in sorted(files) if name.endswith(".wandb")]
    return found


def read_wandb_runs(logs: Sequence[Path]) -> list[Sheet]:
    """Settings and summary of each log, one sheet a run, as `wandb leet inspect` reads them back with no server.

    About a second each, as many at a time as there are cores. InputError: W&B can't read one, or is too old to.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_read_wandb_run, logs))


def _read_wandb_run(log: Path) -> Sheet:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", "--summary", str(log)]
    quiet = os.environ | {"WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "offline"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise InputError(f"{log} can't be read by `wandb leet inspect`: {said[-1]}")
    told = json.loads(done.stdout)
    run_id = told["run_id"] or log.stem.removeprefix("run-")  # a log cut at its start names none
    row = {"ID": run_id, "Name": told["name"], "State": told["state"], "Notes": told.get("notes") or ""}
    row["Created"] = told.get("start_time") or ""
    row |= flatten(told.get("config") or {}) | flatten(told.get("summary") or {})
    return Sheet(str(log.parent), tuple(row), [row], ["its summary"])
