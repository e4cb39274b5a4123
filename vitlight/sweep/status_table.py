"""What `vitlight sweep status` shows: a row a cell, as many columns as there is room for, and a line a fact under them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vitlight.data.progress import duration_text
from vitlight.errors import InputError, did_you_mean
from vitlight.sweep.status import FINISHED
from vitlight.sweep.tables import (
    CAPTION,
    STATE_STYLES,
    Column,
    Row,
    flops_column,
    make_table,
    naming_columns,
    si_text,
    summed,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vitlight.sweep.plan import PlannedCell

__all__ = [
    "StatusColumn",
    "chosen_columns",
    "fact_lines",
    "failure_lines",
    "fitting",
    "most_telling",
    "status_columns",
]

_LEAST_WIDTH = 80  # of what is printed in a pipe
# Of a live table that is too high: what people look at first.
_TELLING = ("running", "failed", "diverged", "queued", "waiting", "stopped", "done", "other")


@dataclass(frozen=True)
class StatusColumn:
    """name: what --columns calls it. rank: where there is no room, the highest goes first; 0 stays."""

    name: str
    rank: int
    column: Column


def status_columns(planned: Sequence[PlannedCell]) -> list[StatusColumn]:
    """All there are, from left to right."""
    number, run, *axes = naming_columns(planned)
    shares_trunks = any(item.own_train_flops != item.run.train_flops for item in planned)
    flops = flops_column("train FLOPs", "train_flops")
    return [
        StatusColumn("cell", 0, number),
        StatusColumn("run", 8, run),
        *(StatusColumn(axis.title, 0, axis) for axis in axes),
        StatusColumn("state", 0, Column("state", _state_text)),
        StatusColumn("progress", 0, Column("progress", _progress_text, numeric=True)),
        StatusColumn("left", 1, Column("left", _left_text, numeric=True)),
        StatusColumn("top1", 2, Column("top1", lambda row: _number(row["top1"], ".4f"), numeric=True)),
        StatusColumn(
            "rate", 3, Column("images/s", lambda row: _number(row["images_per_second"], ",.0f"), numeric=True)
        ),
        StatusColumn(
            "wait", 6, Column("data wait", lambda row: _number(row["data_wait_fraction"], ".0%"), numeric=True)
        ),
        StatusColumn("where", 4, Column("where", _where_text)),
        StatusColumn("job", 5, Column("job", lambda row: row["job"] or "")),
        StatusColumn("seconds", 7, _seconds_column()),
        StatusColumn("seen", 9, summed("images seen", "samples_seen")),
        StatusColumn("images", 12, summed("images", "horizon_samples")),
        StatusColumn("params", 11, Column("params", lambda row: si_text(row["params"]), numeric=True)),
        StatusColumn(
            "macs", 14, Column("forward MACs per image", lambda row: si_text(row["forward_macs"]), numeric=True)
        ),
        StatusColumn("flops", 10, replace(flops, total=lambda rows: "") if shares_trunks else flops),
        StatusColumn("own_flops", 13, flops_column("of these its own", "own_train_flops")),
    ]


def chosen_columns(columns: Sequence[StatusColumn], names: str | None, rows: Sequence[Row]) -> list[StatusColumn]:
    """Those that are asked for, in that order; None: those that say something of some row. InputError: no such column."""
    if names is not None:
        by_name = {each.name: each for each in columns}
        for name in (wanted := [part.strip() for part in names.split(",")]):
            if name not in by_name:
                near = did_you_mean(name, by_name) or f"; there are {', '.join(by_name)}"
                raise InputError(f"--columns has {name!r}, which is none{near}")
        return [by_name[name] for name in wanted]
    own = any(row["cell"] is not None and row["own_train_flops"] != row["train_flops"] for row in rows)
    return [
        each
        for each in columns
        if (own if each.name == "own_flops" else any(each.column.text(row) for row in rows) or each.name == "state")
    ]


def fitting(
    columns: Sequence[StatusColumn],
    rows: list[Row],
    console: Console,
    drops: bool,
    shown: Sequence[Row] | None = None,
) -> Table:
    """The table as a terminal of that width shows it: without the columns of the highest ranks, where it `drops` any, and
    with no value folded as long as there is room for one of each. In a pipe, `console` is made as wide as it needs to be."""
    widths = {each.name: _width(each.column, rows) for each in columns}
    chosen = list(columns)
    while console.is_terminal and drops and sum(widths[each.name] + 3 for each in chosen) + 1 > console.width:
        last = max(chosen, key=lambda each: each.rank)
        if last.rank == 0:
            break
        chosen.remove(last)
    table = make_table([each.column for each in chosen], rows, None, shown)
    if not console.is_terminal:
        console.width = max(_LEAST_WIDTH, sum(widths[each.name] + 3 for each in chosen) + 1)
    if sum(widths[each.name] + 3 for each in chosen) + 1 <= console.width:
        for column, each in zip(table.columns, chosen, strict=True):
            column.width = widths[each.name]  # titles of several words fold, values don't
    return table


def most_telling(rows: Sequence[Row], count: int) -> list[Row]:
    """`count` rows in grid order: what runs and what went wrong before what waits or is done."""
    ordered = sorted(range(len(rows)), key=lambda place: (_TELLING.index(rows[place]["state"]), place))
    return [rows[place] for place in sorted(ordered[:count])]


def _counts_line(rows: Sequence[Row]) -> str:
    """`18 cells: 6 done, 2 running, 1 failed, 9 waiting`."""
    num_cells = sum(row["cell"] is not None for row in rows)
    counts = {state: sum(row["state"] == state for row in rows) for state in STATE_STYLES}
    return f"{num_cells} cell{'s' if num_cells != 1 else ''}: " + ", ".join(
        f"{count} {state}" for state, count in counts.items() if count
    )


def fact_lines(rows: Sequence[Row]) -> Iterator[str]:
    """How many cells are in which state, what is done and what is left, of the sweep's own cells; and the convention."""
    yield _counts_line(rows)
    yield from _amount_lines([row for row in rows if row["cell"] is not None])
    yield CAPTION


def _amount_lines(cells: Sequence[Row]) -> Iterator[str]:
    done, total = sum(map(_flops_done, cells)), sum(row["own_train_flops"] for row in cells)
    spent = sum(row["device_seconds"] or 0.0 for row in cells)
    took = f", {duration_text(spent)} of device time" if spent else ""
    yield f"done: {done:.3e} of {total:.3e} train FLOPs ({done / total if total else 1.0:.0%}){took}"
    left = [row for row in cells if row["state"] not in FINISHED]
    if not left:
        return
    known = sum(row["device_seconds_left"] or 0.0 for row in left)
    num_unknown = sum(row["device_seconds_left"] is None for row in left)
    if num_unknown:
        least = f"more than {duration_text(known)} of device time" if known else "unknown"
        yield (
            f"left: {least}; {num_unknown} of {len(left)} cells are like none that has trained yet "
            "(`vitlight sweep plan --calibrate` measures them)"
        )
        return
    line = f"left: {duration_text(known)} of device time"
    num_running = sum(row["state"] == "running" for row in left)
    if num_running:
        seconds = [row["seconds_left"] for row in left]
        line += f", about {duration_text(max(max(seconds), sum(seconds) / num_running))} with {num_running} at a time"
    yield line


def failure_lines(rows: Sequence[Row]) -> Iterator[str]:
    """One line each: the reason's first line, and where the rest is."""
    for row in rows:
        if row["reason"]:
            reason = next((line.strip() for line in row["reason"].splitlines() if line.strip()), "")
            log = f"; log: {row['log']}" if row["log"] and row["state"] == "failed" else ""
            number = "" if row["cell"] is None else f"cell {row['cell']} "
            yield f"{row['state']} {number}{row['run_id']}: {reason}{log}"


def _flops_done(row: Row) -> float:
    """Without what a shorter cell of its trunk has done."""
    if row["state"] == "done":
        return float(row["own_train_flops"])
    seen = row["train_flops"] * row["samples_seen"] / row["horizon_samples"]
    return max(0.0, seen - (row["train_flops"] - row["own_train_flops"]))


def _width(column: Column, rows: list[Row]) -> int:
    """In terminal cells: of the widest value, of the total, or of the title's longest word."""
    from rich.cells import cell_len
    from rich.text import Text

    texts = {column.total(rows), *column.title.split(), *(column.text(row) for row in rows)}
    return max(Text.from_markup(text).cell_len if "[" in text else cell_len(text) for text in texts)


def _state_text(row: Row) -> str:
    text = "stopping" if row["is_stopping"] else row["state"]
    return f"[{STATE_STYLES[row['state']] or 'default'}]{text}[/]"


def _progress_text(row: Row) -> str:
    """Nothing of what has not begun, and of what is done."""
    if row["state"] == "done" or not row["samples_seen"] or not row["horizon_samples"]:
        return ""
    return f"{row['samples_seen'] / row['horizon_samples']:.0%}"


def _left_text(row: Row) -> str:
    if row["seconds_left"] is None or row["state"] in (*FINISHED, "failed"):
        return ""
    return duration_text(row["seconds_left"])


def _where_text(row: Row) -> str:
    return f"{row['host']}:{row['pid']}" if row["host"] else ""


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _seconds_column() -> Column:
    def total(rows: list[Row]) -> str:
        return f"{sum(row['seconds'] or 0.0 for row in rows if row['cell'] is not None):,.1f}"

    return Column("seconds", lambda row: _number(row["seconds"], ",.1f"), total, numeric=True)
