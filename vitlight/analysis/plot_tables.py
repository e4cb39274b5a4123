"""The numbers behind the report's plots as HTML tables, for whom a plot says nothing: curves, laws, published results."""

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from vitlight.analysis.curves import Curve
from vitlight.analysis.laws import LawFit
from vitlight.analysis.quantities import FLOP_CONVENTION, format_percent, format_si
from vitlight.analysis.report_tables import NONE, scroll

__all__ = ["curve_table", "parameter_table", "published_table", "samples_to_reach"]


def samples_to_reach(curve: Curve, top1: float) -> float | None:
    """Samples seen when a curve first reaches `top1`, straight between evaluations in the logarithm of samples; None
    where it never does."""
    for place, value in enumerate(curve.top1):
        if value >= top1:
            if place == 0:
                return float(curve.samples_seen[0])
            before, low = curve.samples_seen[place - 1], curve.top1[place - 1]
            part = (top1 - low) / (value - low)
            return math.exp((1 - part) * math.log(before) + part * math.log(curve.samples_seen[place]))
    return None


def curve_table(curves: Sequence[tuple[str | None, Curve]]) -> str:
    """A row a curve: its ends, and the samples that it took to the accuracies which all, and which half of them, reach."""
    best = np.array([max(curve.top1) for _, curve in curves])
    marks = sorted({math.floor(100 * value) / 100 for value in (best.min(), float(np.median(best)))} - {0.0})
    heads = ["model", "family", "images", "runs", "evaluations", "samples seen", "last top-1"]
    heads += [f"samples to {format_percent(mark, 0)}" for mark in marks]
    rows = []
    for group, curve in curves:
        cells = [
            str(curve.n),
            str(len(curve.top1)),
            format_si(curve.samples_seen[-1]),
            format_percent(curve.top1[-1], 2),
            *(NONE if (seen := samples_to_reach(curve, mark)) is None else format_si(seen) for mark in marks),
        ]
        images = NONE if curve.images is None else f"{curve.images:,}"
        grouped = "" if group is None else f' data-group="{escape(group)}"'
        rows.append(
            f'<tr data-family="{escape(curve.family)}"{grouped}><th scope="row">{escape(curve.arch)}</th>'
            f'<td class="text">{escape(curve.family)}</td><td>{images}</td>'
            f"{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
        )
    return scroll(_table(heads, rows, ("model", "family")), "Sample efficiency")


def parameter_table(fit: LawFit) -> str:
    """A row a parameter, with its interval."""
    rows = []
    for name, value in fit.parameters.items():
        low, high = fit.intervals[name]
        span = NONE if not (math.isfinite(low) and math.isfinite(high)) else f"{low:.4g} to {high:.4g}"
        rows.append(f'<tr><th scope="row">{escape(name)}</th><td>{value:.4g}</td><td>{span}</td></tr>')
    heads = ["parameter", "value", f"{100 * fit.level:g} % interval ({fit.interval_method})"]
    return scroll(_table(heads, rows, ("parameter",)), f"Parameters of {fit.form.name}", "whole")


def published_table(points: Sequence[dict[str, Any]]) -> str:
    """A row a published result that is drawn, with its source."""
    rows = []
    for point in sorted(points, key=lambda point: (point["group"], point["family"], -point["mean"])):
        flops, params = (point["x"][key] for key in ("forward_flops", "params"))
        source = dict(point["details"])["source"]
        link = (
            f'<a href="{escape(point["runs"][0]["url"])}" rel="noreferrer">{escape(source)}</a>'
            if point["runs"]
            else escape(source)
        )
        rows.append(
            f'<tr data-family="{escape(point["family"])}" data-group="{escape(point["group"])}">'
            f'<th scope="row">{escape(point["label"])}</th><td class="text">{escape(point["family"])}</td>'
            f'<td class="text">{escape(point["group"])}</td>{_number(point["mean"], format_percent(point["mean"], 2))}'
            f"{_number(params, None)}{_number(flops, None)}"
            f'<td class="text wrap">{link}</td></tr>'
        )
    heads = ["model", "family", "pretraining", "top-1", "params", f"forward FLOPs ({FLOP_CONVENTION})", "source"]
    return scroll(_table(heads, rows, ("model", "family", "pretraining", "source"), sortable=True), "Published results")


def _number(value: float | None, text: str | None) -> str:
    if value is None:
        return f'<td data-value="">{NONE}</td>'
    return f'<td data-value="{value!r}" title="{value!r}">{text or format_si(value)}</td>'


def _table(heads: Sequence[str], rows: Sequence[str], texts: Sequence[str], sortable: bool = False) -> str:
    cells = []
    for head in heads:
        kind = ' class="text"' if head in texts else ""
        words = f'<button type="button">{escape(head)}</button>' if sortable else escape(head)
        cells.append(f'<th scope="col"{kind}>{words}</th>')
    kind = ' class="runs"' if sortable else ""
    return f"<table{kind}><thead><tr>{''.join(cells)}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
