"""Tables of a sweep's cells, as `plan` and `status` print them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from vitlight.sweep.space import flattened

if TYPE_CHECKING:
    from rich.table import Table

    from vitlight.sweep.plan import PlannedCell

__all__ = [
    "CAPTION",
    "STATE_STYLES",
    "Column",
    "Row",
    "cost_columns",
    "flops_column",
    "make_table",
    "naming_columns",
    "print_table",
    "si_text",
    "summed",
]

Row = dict[str, Any]
STATE_STYLES = {
    "done": "green",
    "running": "cyan",
    "queued": "blue",
    "failed": "red",
    "diverged": "yellow",
    "stopped": "magenta",
    "waiting": "",
    "other": "dim",
}
CAPTION = "FLOP = half a MAC; train FLOPs = 3 x 2 x forward MACs x images"


@dataclass(frozen=True)
class Column:
    """A column of a table: how a row fills it, and how all rows together fill the last line."""

    title: str
    text: Callable[[Row], str]
    total: Callable[[list[Row]], str] = lambda rows: ""
    numeric: bool = False


def summed(title: str, key: str) -> Column:
    """A count, with its sum over the sweep's own cells in the last line."""
    return Column(
        title,
        lambda row: "" if row[key] is None else f"{row[key]:,}",
        lambda rows: f"{sum(row[key] or 0 for row in rows if row['cell'] is not None):,}",
        numeric=True,
    )


def si_text(number: int | None) -> str:
    """Three digits and an SI prefix: 21_966_208 -> "22.0 M"."""
    if number is None:
        return ""
    for power, prefix in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if number >= 0.9995 * 10**power:  # what rounds to the next prefix takes it
            return f"{number / 10**power:#.3g} {prefix}".replace(". ", " ")
    return str(number)


def cost_columns(planned: Sequence[PlannedCell]) -> list[Column]:
    """Where cells share a trunk, what each costs by itself stands beside the FLOPs its result counts; only these sum up."""
    flops = [flops_column("train FLOPs", "train_flops")]
    if any(item.own_train_flops != item.run.train_flops for item in planned):
        flops = [replace(flops[0], total=lambda rows: ""), flops_column("of these its own", "own_train_flops")]
    return [
        Column("params", lambda row: si_text(row["params"]), numeric=True),
        Column("forward MACs per image", lambda row: si_text(row["forward_macs"]), numeric=True),
        *flops,
        summed("images", "horizon_samples"),
    ]


def flops_column(title: str, name: str) -> Column:
    return Column(
        title,
        lambda row: "" if row[name] is None else f"{row[name]:.3e}",
        lambda rows: f"{sum(row[name] for row in rows if row['cell'] is not None):.3e}",
        numeric=True,
    )


def naming_columns(planned: Sequence[PlannedCell]) -> list[Column]:
    """The cell's number, its run, and each swept parameter under the last part of its name."""
    settings = [item.cell.settings for item in planned]
    names = list(dict.fromkeys(name for each in settings for name in each))
    swept = [name for name in names if any(name not in each or each[name] != settings[0][name] for each in settings)]
    endings = [name.rpartition(".")[2] for name in names]
    columns = [
        Column("cell", lambda row: "" if row["cell"] is None else str(row["cell"]), lambda rows: "total", numeric=True),
        Column("run", lambda row: row["run_id"]),
    ]
    for name in swept or names:
        ending = name.rpartition(".")[2]
        title = ending if endings.count(ending) == 1 else name
        columns.append(Column(title, partial(_parameter_text, name)))
    return columns


def _parameter_text(name: str, row: Row) -> str:
    return _escaped(str(flattened(row["parameters"]).get(name, "")))


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def make_table(
    columns: Sequence[Column], rows: list[Row], caption: str | None, shown: Sequence[Row] | None = None
) -> Table:
    """The rows, or those of them that are `shown`, with the totals of all."""
    from rich.table import Table

    table = Table(caption=caption, caption_justify="left", show_footer=True)
    for column in columns:
        table.add_column(
            column.title,
            footer=column.total(rows),
            justify="right" if column.numeric else "left",
            overflow="fold",
        )
    for row in rows if shown is None else shown:
        table.add_row(*(column.text(row) for column in columns))
    return table


def print_table(columns: Sequence[Column], rows: list[Row], summary: str) -> None:
    """The table with its totals and a summary. In a pipe it is as wide as it needs to be, so that no value is cut."""
    from rich.console import Console

    table = make_table(columns, rows, f"{summary}\n{CAPTION}")
    console = Console()
    if not console.is_terminal:
        console = Console(width=console.measure(table, options=console.options.update(max_width=10_000)).maximum)
    console.print(table)
