"""One table from anything that holds results: run directories, CSV files, W&B's exports, published results."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.analysis.columns import TABLE_COLUMNS, build_table
from vitlight.analysis.csv_records import read_records
from vitlight.analysis.published import PREFIX, published_path
from vitlight.analysis.runs import find_run_dirs, read_run
from vitlight.analysis.sheets import read_sheet
from vitlight.analysis.wandb_export import find_wandb_runs, read_wandb_runs
from vitlight.errors import InputError

__all__ = ["TABLE_COLUMNS", "load_table", "resolve_source"]

_TEXT_FILES = (".csv", ".tsv", ".txt")
# Where a row was found says nothing of what it is.
_PLACE = ("source", "run_dir")


def resolve_source(source: str | Path) -> tuple[Path, str]:
    """Path of a source, and what messages and the column `source` call it; `published:NAME` is a table of the package.

    InputError: there is no such published table, or nothing at the path.
    """
    label = str(source)
    if label.startswith(PREFIX):
        return published_path(label.removeprefix(PREFIX)), label
    path = Path(source)
    if not path.exists():
        raise InputError(
            f"nothing at {label!r}: name a folder of runs, a CSV file, or a published table such as {PREFIX}models"
        )
    return path, label


def load_table(sources: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """One row a run or published result of all `sources`, in their order: TABLE_COLUMNS, then names only the sources know.

    A source is a run directory or a folder of them, a folder of offline W&B runs, a CSV of any form of `csv_forms.FORMS`,
    or `published:NAME`. Kinds of columns as in `load_runs`; `forward_macs` are multiply-adds whatever a source calls
    them, accuracies are fractions. A run that several sources hold alike is one row, with a warning. InputError names a
    source that can't be read, and why.
    """
    records: list[dict[str, Any]] = []
    for source in [sources] if isinstance(sources, str | Path) else list(sources):
        path, label = resolve_source(source)
        records += _from_folder(path) if path.is_dir() else _from_file(path, label)
    if not records:
        raise InputError("no source of results was named")
    return build_table(_without_repeats(records), TABLE_COLUMNS)


def _from_folder(path: Path) -> list[dict[str, Any]]:
    wandb_runs = find_wandb_runs(path)
    run_dirs = find_run_dirs(path, required=False)
    if not run_dirs and not wandb_runs:
        tables = sorted(file.name for file in path.iterdir() if file.suffix.lower() in _TEXT_FILES)
        held = (
            f"; it holds {', '.join(tables[:3])}{', ...' if len(tables) > 3 else ''}: name the files" if tables else ""
        )
        raise InputError(f"no run in {str(path)!r}: a run is a folder with experiment.yaml or result.json in it{held}")
    records = _from_run_dirs(run_dirs)
    return records + [record for sheet in read_wandb_runs(wandb_runs) for record in read_records(sheet)]


def _from_run_dirs(run_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    records = []
    for run_dir in run_dirs:
        record = read_run(run_dir) | {"source": str(run_dir), "is_published": False}
        records.append(record | {"convention": None if record.get("forward_macs") is None else "MACs"})
    return records


def _from_file(path: Path, label: str) -> list[dict[str, Any]]:
    if path.suffix.lower() not in _TEXT_FILES:
        raise InputError(f"{label} is no table: name a CSV file, or the folder of a run instead of a file in it")
    return read_records(read_sheet(path, label))


def _without_repeats(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A run directory and a CSV written from it hold the same runs; a run that they tell differently stays twice, and
    what counts runs (`counted_runs`) takes the one that ended last."""
    kept: dict[frozenset[tuple[str, Any]], dict[str, Any]] = {}
    for record in records:
        said = frozenset((name, value) for name, value in record.items() if value is not None and name not in _PLACE)
        kept.setdefault(said, record)
    if repeats := len(records) - len(kept):
        warnings.warn(f"{repeats} of {len(records)} rows stand in two sources alike and are counted once", stacklevel=3)
    return list(kept.values())
