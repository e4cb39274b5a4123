"""The tables of the report page, as HTML. Every text that comes from a run is escaped here."""

from collections.abc import Callable
from html import escape
from typing import Any

import pandas as pd

from vitlight.analysis.charts import family_styles
from vitlight.analysis.quantities import FLOP_CONVENTION, format_duration, format_percent, format_si, format_top1
from vitlight.analysis.summary import COMPARABLE, choose_settings

__all__ = ["grid_tables", "not_counted_table", "run_table"]

NONE = "–"


def _scroll(table: str, label: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{table}</div>'


def grid_tables(summary: pd.DataFrame) -> str:
    """Model size x data size, one table per comparable set: mean, std and n, shaded by the mean."""
    tables = []
    sets = list(choose_settings(summary).groupby(list(COMPARABLE), dropna=False, sort=False))
    for number, (values, cells) in enumerate(sets, start=1):
        heading = ""
        if len(sets) > 1:
            named = ", ".join(f"{column} {value}" for column, value in zip(COMPARABLE, values, strict=True))
            heading = f"<h3>Set {number}: {escape(named)}</h3>"
        tables.append(heading + _grid_table(cells, family_order=list(family_styles(list(summary["family"].unique())))))
    return "".join(tables)


def _grid_table(cells: pd.DataFrame, family_order: list[str]) -> str:
    sizes = sorted(int(size) for size in cells["num_train_samples"].unique())
    low, high = float(cells["top1_mean"].min()), float(cells["top1_mean"].max())
    rows = []
    previous = None
    order = cells.assign(place=cells["family"].map(family_order.index)).sort_values(["place", "forward_macs", "params"])
    for _, members in order.groupby(["family", "arch", "params", "forward_macs"], sort=False):
        family, arch = str(members["family"].iloc[0]), str(members["arch"].iloc[0])
        params, forward_flops = int(members["params"].iloc[0]), 2 * int(members["forward_macs"].iloc[0])
        by_size = {int(row["num_train_samples"]): row for _, row in members.iterrows()}
        body = "".join(_grid_cell(size, by_size.get(size), low, high) for size in sizes)
        first = ' class="first"' if family != previous and previous is not None else ""
        previous = family
        index = family_order.index(family)
        rows.append(
            f'<tr data-family="{escape(family)}"{first}>'
            f'<th scope="row"><span class="swatch" style="--colour: var(--family-{index})"></span>'
            f"{escape(arch)}</th>"
            f'<td title="{params:,}">{format_si(params)}</td>'
            f'<td title="{forward_flops:,}">{format_si(forward_flops)}</td>{body}</tr>'
        )
    heads = "".join(f'<th scope="col" data-images="{size}">{size:,}<small>images</small></th>' for size in sizes)
    head = (
        '<thead><tr><th scope="col" class="text">model</th><th scope="col">params</th>'
        f'<th scope="col">forward FLOPs<small>{FLOP_CONVENTION}</small></th>{heads}</tr></thead>'
    )
    return _scroll(f'<table class="heat">{head}<tbody>{"".join(rows)}</tbody></table>', "Top-1 by model and data size")


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
    ("images_per_second", "images/s", "training", lambda value: f"{value:,.0f}"),
    ("run_id", "run", "", str),
)
_TEXT_COLUMNS = {"arch", "family", "run_id", "eval_split"}


def run_table(counted: pd.DataFrame) -> str:
    """Every run that the means are made of, sortable; at first by model, then data size, then seed."""
    counted = counted.sort_values(
        ["family", "forward_macs", "params", "arch", "num_train_samples", "lr", "seed"], kind="stable"
    )
    columns = [c for c in _RUN_COLUMNS if counted[c[0]].notna().any()]
    heads = []
    for column, title, unit, _ in columns:
        small = f"<small>{escape(unit)}</small>" if unit else ""
        kind = ' class="text"' if column in _TEXT_COLUMNS else ""
        heads.append(f'<th scope="col"{kind}><button type="button">{escape(title)}{small}</button></th>')
    rows = []
    for _, run in counted.iterrows():
        body = "".join(_run_cell(column, run[column], show) for column, _, _, show in columns)
        rows.append(f'<tr data-family="{escape(str(run["family"]))}">{body}</tr>')
    table = f'<table class="runs"><thead><tr>{"".join(heads)}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    return _scroll(table, "Runs")


def _run_cell(column: str, value: Any, show: Callable[[Any], str]) -> str:
    if pd.isna(value):
        return f'<td data-value="">{NONE}</td>'
    if column in _TEXT_COLUMNS:
        return f'<td class="text">{escape(str(value))}</td>'
    return f'<td data-value="{float(value)!r}" title="{value}">{escape(show(value))}</td>'


def not_counted_table(runs: pd.DataFrame) -> str:
    """Runs that are no part of any mean, with what is known of why."""
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
        cells = "".join(f'<td class="text">{escape(text)}</td>' for text in [*texts, progress, str(run["run_id"])])
        rows.append(f'<tr>{cells}<td class="text wrap">{escape(reason)}</td></tr>')
    titles = ("status", "model", "images", "seed", "samples seen", "run", "reason")
    heads = "".join(f'<th scope="col" class="text">{title}</th>' for title in titles)
    return _scroll(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table>", "Runs not counted")
