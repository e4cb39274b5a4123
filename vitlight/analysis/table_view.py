"""What `vitlight table` shows of a run table: some of its rows, in an order, some of its columns."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.analysis.columns import TABLE_COLUMNS
from vitlight.analysis.evaluation_rows import is_set_column
from vitlight.analysis.law_question import read_condition, select
from vitlight.analysis.probes import is_probe_fraction, probe_fractions
from vitlight.analysis.published import PREFIX, PUBLISHED, load_published
from vitlight.analysis.quantities import (
    FLOP_CONVENTION,
    TRAIN_FLOP_CONVENTION,
    format_count,
    format_duration,
    format_percent,
    format_si,
)
from vitlight.analysis.summary import pareto_front
from vitlight.analysis.whole_files import replace_whole
from vitlight.errors import InputError, did_you_mean

__all__ = ["choose_rows", "published_rows", "show", "write_csv"]

_MAIN = (
    *("variant", "arch", "family", "params", "forward_macs", "image_size", "pretrain_data", "num_train_samples"),
    *("samples_seen", "train_flops", "metric", "top1", "eval_split", "seed", "status", "run_id", "source"),
)
_SI = ("params", "forward_macs", "num_train_samples", "samples_seen", "unique_samples_seen", "train_flops")
_SECONDS = ("wall_seconds", "device_seconds", "own_device_seconds")


def published_rows() -> pd.DataFrame:
    """The tables that come with the package: what to name as a source, how many rows, what they are."""
    rows = [
        {"source": PREFIX + name, "rows": len(load_published(name)), "what": what} for name, what in PUBLISHED.items()
    ]
    return pd.DataFrame(rows).astype({"source": "string", "what": "string"})


def choose_rows(table: pd.DataFrame, where: Sequence[str], front: str | None, sort: str | None) -> pd.DataFrame:
    """The rows of a `load_table` frame that meet the conditions, on the front if one is asked for, sorted.

    InputError: a column that the table lacks or that has no numbers, a condition that can't be read or leaves no row.
    """
    rows = select(table, tuple(read_condition(text) for text in where))
    if front is not None:
        _check_column("--front", front, rows)
        rows = _front(rows, front)
    if sort is not None:
        column = sort.removeprefix("-")
        _check_column("--sort", column, rows)
        rows = rows.sort_values(column, ascending=not sort.startswith("-"), kind="stable")
    return rows


def _check_column(flag: str, name: str, rows: pd.DataFrame) -> None:
    if name not in rows:
        raise InputError(f"{flag}: the table has no column {name!r}{did_you_mean(name, map(str, rows.columns))}")


def _front(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """Of each set of comparable rows those that none beats, by rising `column`. Resolution sets own runs apart, whose images
    it makes others; of published results at several resolutions one buys accuracy with it."""
    try:
        cost = rows[column].astype("Float64")
    except (TypeError, ValueError):
        raise InputError(f"--front: {column} holds no numbers; name params, forward_macs, train_flops, ...") from None
    own_size = rows["image_size"].where(~rows["is_published"].fillna(False))
    same = [rows[name] for name in ("comparable", "metric", "data_digest", "eval_split")] + [
        own_size.rename("own_size")
    ]
    kept = []
    for _, places in rows.assign(_cost=cost).groupby(same, dropna=False, sort=False):
        members = pareto_front(places["_cost"].to_numpy(float, na_value=float("nan")), _numbers(places["top1"]))
        kept.append(rows.loc[places.index[members]])
    found = pd.concat(kept) if kept else rows
    if not len(found):
        raise InputError(f"--front: no row has both top1 and {column}")
    return found


def _numbers(column: "pd.Series[Any]") -> Any:
    return column.to_numpy(float, na_value=float("nan"))


def show(rows: pd.DataFrame, columns: Sequence[str] | None, as_json: bool) -> None:
    """Print the rows: as a table with short numbers, or as JSON with exact ones and null where there is none.

    `columns` None: the main ones that have a value, and in JSON all of them. InputError: a column that there is not.
    """
    for name in columns or ():
        _check_column("--columns", name, rows)
    if as_json:
        kept = rows if columns is None else rows[list(columns)]
        records = kept.astype(object).where(kept.notna(), None).to_dict("records")
        print(json.dumps(records, indent=1))
        return
    chosen, constant = (list(columns), []) if columns is not None else _main_columns(rows)
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    caption = [format_count(len(rows), "row")]
    caption += ["MACs of one image's forward pass"] if "forward_macs" in chosen else []
    caption += [f"{TRAIN_FLOP_CONVENTION}, {FLOP_CONVENTION}"] if "train_flops" in chosen else []
    if constant:
        first = rows.iloc[0]
        caption.append(f"the same in all: {', '.join(f'{name} {_text(name, first[name])}' for name in constant)}")
    shown = Table(caption="; ".join(caption), caption_justify="left")
    for name in chosen:
        shown.add_column(name, justify="right" if rows[name].dtype != "string" else "left", overflow="fold")
    for record in rows[chosen].to_dict("records"):
        shown.add_row(*(escape(_text(name, record[name])) for name in chosen))
    console = Console()
    if not console.is_terminal:  # in a pipe as wide as it needs to be, so that no value is cut
        console = Console(width=console.measure(shown, options=console.options.update(max_width=10_000)).maximum)
    console.print(shown)


def _main_columns(rows: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Those of _MAIN, and of evaluation sets and frozen features beside top1, that have a value, but for what repeats
    another column; and apart those with one value in all rows."""
    sets = [name for name in map(str, rows) if is_set_column(name)]
    sets += probe_fractions(rows.columns)
    main = [*_MAIN[: _MAIN.index("top1") + 1], *sets, *_MAIN[_MAIN.index("top1") + 1 :]]
    chosen = [name for name in main if rows[name].notna().any()]
    published = rows["is_published"].fillna(False)
    repeating = {"arch": rows["variant"].notna().all(), "run_id": published.all(), "source": not published.any()}
    chosen = [name for name in chosen if not repeating.get(name, False)]
    same = [name for name in chosen if len(rows) > 1 and rows[name].nunique(dropna=False) == 1]
    return [name for name in chosen if name not in same], same


def _text(name: str, value: Any) -> str:
    if pd.isna(value):
        return ""
    if name in _SI:
        return format_si(value)
    if name in _SECONDS:
        return format_duration(float(value))
    is_further = is_probe_fraction(name) or (is_set_column(name) and isinstance(value, float))
    if TABLE_COLUMNS.get(name) == "fraction" or is_further:
        return format_percent(float(value), 2)
    return f"{value:g}" if isinstance(value, float) else str(value)


def write_csv(rows: pd.DataFrame, path: Path) -> None:
    """All columns of the rows, exactly: `load_table` reads the same table back. InputError: it can't be written."""
    try:
        replace_whole(path, lambda beside: rows.to_csv(beside, index=False, lineterminator="\n"))
    except OSError as error:
        raise InputError(f"--csv={path} can't be written: {error.strerror}") from None
