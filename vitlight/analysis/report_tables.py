"""The tables of the report page, as HTML. Every text that comes from a run is escaped here."""

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.analysis.charts import family_key, family_styles
from vitlight.analysis.links import run_link
from vitlight.analysis.probes import probe_fractions
from vitlight.analysis.quantities import FLOP_CONVENTION, format_duration, format_percent, format_si, format_top1
from vitlight.analysis.summary import COMPARABLE, choose_settings

__all__ = ["grid_tables", "not_counted_table", "run_table", "scroll"]

NONE = "–"


def scroll(table: str, label: str, kind: str = "") -> str:
    """A table in a region of its own, which keyboards reach and which scrolls in place of the page. `kind` `whole`: to the
    side only."""
    return f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def grid_tables(summary: pd.DataFrame) -> str:
    """Model size x data size, one table per comparable set, a block per family: mean, std and n, shaded by the mean."""
    tables = []
    known = summary[summary["num_train_samples"].notna()]
    sets = list(choose_settings(known).groupby(list(COMPARABLE), dropna=False, sort=False)) if len(known) else []
    order = list(family_styles(family_key(family) for family in summary["family"].unique()))
    for number, (values, cells) in enumerate(sets, start=1):
        heading = ""
        if len(sets) > 1:
            named = ", ".join(f"{column} {value}" for column, value in zip(COMPARABLE, values, strict=True))
            heading = f"<h3>Set {number}: {escape(named)}</h3>"
        tables.append(heading + _grid_table(cells, order))
    return "".join(tables)


def _grid_table(cells: pd.DataFrame, family_order: list[str]) -> str:
    sizes = sorted(int(size) for size in cells["num_train_samples"].unique())
    low, high = float(cells["top1_mean"].min()), float(cells["top1_mean"].max())
    cells = cells.assign(family=[family_key(family) for family in cells["family"]])
    order = cells.assign(place=cells["family"].map(family_order.index)).sort_values(["place", "forward_macs", "params"])
    bodies = []
    for family, members in order.groupby("family", sort=False):
        rows = [
            _grid_row(model, sizes, low, high)
            for _, model in members.groupby(["arch", "params", "forward_macs"], sort=False, dropna=False)
        ]
        swatch = f'<span class="swatch" style="--colour: var(--family-{family_order.index(str(family))})"></span>'
        name = escape(str(family))
        span = f'<th scope="rowgroup" colspan="{3 + len(sizes)}">{swatch}{name}</th>'
        head = f'<tr class="family" data-family="{name}">{span}</tr>'
        bodies.append(f"<tbody>{head}{''.join(rows)}</tbody>")
    heads = "".join(f'<th scope="col" data-images="{size}">{size:,}<small>images</small></th>' for size in sizes)
    head = (
        '<thead><tr><th scope="col" class="text">model</th><th scope="col" class="size">params</th>'
        f'<th scope="col" class="size">forward FLOPs<small>{FLOP_CONVENTION}</small></th>{heads}</tr></thead>'
    )
    return scroll(f'<table class="heat">{head}{"".join(bodies)}</table>', "Top-1 by model and data size", "whole")


def _grid_row(model: pd.DataFrame, sizes: Sequence[int], low: float, high: float) -> str:
    first = model.iloc[0]
    params = _or_none(first["params"], format_si)
    flops = _or_none(first["forward_macs"], lambda macs: format_si(2 * int(macs)))
    by_size = {int(row["num_train_samples"]): row for _, row in model.iterrows()}
    body = "".join(_grid_cell(size, by_size.get(size), low, high) for size in sizes)
    return (
        f'<tr data-family="{escape(str(first["family"]))}"><th scope="row">{escape(str(first["arch"]))}</th>'
        f'<td class="size" title="{_or_none(first["params"], _count)}">{params}</td>'
        f'<td class="size" title="{_or_none(first["forward_macs"], lambda macs: _count(2 * int(macs)))}">{flops}</td>'
        f"{body}</tr>"
    )


def _or_none(value: Any, show: Callable[[Any], str]) -> str:
    return NONE if pd.isna(value) else show(value)


def _grid_cell(size: int, row: pd.Series | None, low: float, high: float) -> str:
    if row is None:
        return f'<td data-images="{size}" class="quiet">{NONE}</td>'
    mean, n = float(row["top1_mean"]), int(row["n"])
    warmth = (mean - low) / (high - low) if high > low else 0.5
    top1 = format_top1(mean, float(row["top1_std"]) if n > 1 else None)
    return (
        f'<td data-images="{size}" style="--warmth: {0.08 + 0.92 * warmth:.3f}" title="{mean!r}">'
        f"{escape(top1)}<small>n = {n}</small></td>"
    )


def _count(value: Any) -> str:
    return f"{int(value):,}"


# Column, header, unit or convention under it, how a value reads.
_RUN_COLUMNS: tuple[tuple[str, str, str, Callable[[Any], str]], ...] = (
    ("arch", "model", "", str),
    ("family", "family", "", str),
    ("num_train_samples", "images", "distinct, training", _count),
    ("seed", "seed", "", str),
    ("top1", "top-1", "", lambda value: format_percent(value, 2)),
    ("eval_split", "split", "", str),
    ("val_top1", "val top-1", "", lambda value: format_percent(value, 2)),
    ("params", "params", "", format_si),
    ("forward_macs", "forward MACs", "per image", format_si),
    ("train_flops", "training FLOPs", FLOP_CONVENTION, format_si),
    ("samples_seen", "samples seen", "", _count),
    ("epochs", "epochs", "", lambda value: f"{value:.4g}"),
    ("image_size", "image size", "pixels", str),
    ("global_batch_size", "batch", "global", _count),
    ("lr", "lr", "", lambda value: f"{value:g}"),
    ("wall_seconds", "wall time", "", format_duration),
    ("device_seconds", "device time", "training", format_duration),
    ("images_per_second", "images/s", "training", lambda value: f"{value:,.0f}"),
    ("run_id", "run", "", str),
)
# What paper has no room for: what is the same in most sweeps, or follows from other columns.
_SCREEN_COLUMNS = {
    "family",
    "eval_split",
    "val_top1",
    "epochs",
    "image_size",
    "global_batch_size",
    "lr",
    "wall_seconds",
}
_TEXT_COLUMNS = {"arch", "family", "run_id", "eval_split"}


def run_table(counted: pd.DataFrame, folder: Path) -> str:
    """Every run that the means are made of, sortable, linked from `folder`; at first by model, then data size, then seed."""
    counted = counted.sort_values(
        ["family", "forward_macs", "params", "arch", "num_train_samples", "lr", "seed"], kind="stable"
    )
    probed = [(name, name, "frozen features", _RUN_COLUMNS[4][3]) for name in probe_fractions(counted.columns)]
    offered = (*_RUN_COLUMNS[:-1], *probed, _RUN_COLUMNS[-1])
    columns = [c for c in offered if c[0] == "run_id" or counted[c[0]].notna().any()]
    heads = []
    for column, title, unit, _ in columns:
        small = f"<small>{escape(unit)}</small>" if unit else ""
        heads.append(f'<th scope="col"{_classes(column)}><button type="button">{escape(title)}{small}</button></th>')
    rows = []
    for _, run in counted.iterrows():
        body = "".join(_run_cell(column, run[column], show) for column, _, _, show in columns if column != "run_id")
        rows.append(f'<tr data-family="{escape(family_key(run["family"]))}">{body}{_linked(run, folder)}</tr>')
    table = f'<table class="runs"><thead><tr>{"".join(heads)}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return scroll(table, "Runs")


def _run_cell(column: str, value: Any, show: Callable[[Any], str]) -> str:
    if pd.isna(value):
        return f'<td{_classes(column)} data-value="">{NONE}</td>'
    if column in _TEXT_COLUMNS:
        return f"<td{_classes(column)}>{escape(str(value))}</td>"
    return f'<td{_classes(column)} data-value="{float(value)!r}" title="{value}">{escape(show(value))}</td>'


def _classes(column: str) -> str:
    names = ["text"] * (column in _TEXT_COLUMNS) + ["screen"] * (column in _SCREEN_COLUMNS)
    return f' class="{" ".join(names)}"' if names else ""


def _linked(run: Any, folder: Path) -> str:
    """The cell with the run's id, as a link to its directory, and to its W&B page where that is known."""
    link, name = run_link(run, folder), _or_none(run["run_id"], lambda value: escape(str(value)))
    parts = [f'<a href="{escape(link["href"])}">{name}</a>' if "href" in link else name]
    if "url" in link:
        parts.append(f'<a href="{escape(link["url"])}" rel="noreferrer">W&amp;B</a>')
    return f'<td class="text">{" ".join(parts)}</td>'


def not_counted_table(runs: pd.DataFrame, folder: Path) -> str:
    """Runs that are no part of any mean, with what is known of why, linked from `folder`."""
    rows = []
    for _, run in runs.iterrows():
        seen, horizon = run["samples_seen"], run["horizon_samples"]
        progress = NONE if pd.isna(seen) else f"{int(seen):,}" + ("" if pd.isna(horizon) else f" of {int(horizon):,}")
        texts = [
            NONE if pd.isna(run[column]) else str(run[column])
            for column in ("status", "arch", "num_train_samples", "seed")
        ]
        parts = [str(run["reason"])] if pd.notna(run["reason"]) else []
        if pd.notna(run["last_good_checkpoint"]):
            parts.append(f"last good checkpoint {run['last_good_checkpoint']}")
        reason = "no result.json yet" if run["status"] == "running" else "; ".join(parts)
        cells = "".join(f'<td class="text">{escape(text)}</td>' for text in [*texts, progress])
        rows.append(f'<tr>{cells}{_linked(run, folder)}<td class="text wrap">{escape(reason)}</td></tr>')
    titles = ("status", "model", "images", "seed", "samples seen", "run", "reason")
    heads = "".join(f'<th scope="col" class="text">{title}</th>' for title in titles)
    return scroll(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>", "Runs not counted")
