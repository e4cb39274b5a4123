"""The points of the report's charts as JSON-ready objects: own cells, and published results beside them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vitlight.analysis.charts import CHARTS, Chart, family_key
from vitlight.analysis.quantities import format_duration, format_percent, format_si, format_top1
from vitlight.analysis.summary import COMPARABLE, choose_settings

__all__ = ["chart_points", "drawn_charts", "published_group", "published_points"]

_TOLD_WHERE_VARYING = ("image_size", "samples_seen", "lr", "weight_decay", "global_batch_size")
_USUAL_METRIC = "imagenet_top1"
_ARXIV = re.compile(r"\b(\d{4}\.\d{4,5})(?:v\d+)?\b")


def chart_points(
    summary: pd.DataFrame, links: Mapping[int, Sequence[Mapping[str, str]]] | None = None
) -> list[dict[str, Any]]:
    """One point a cell, in the summary's order. `x` holds a number per chart, None where it isn't known; `lines` the line
    it lies on per kind of line, None for a cell whose settings lost to another's; `details` label and text, ready to
    show; `runs` the cell's `links` (by row of the summary)."""
    shown = set(choose_settings(summary).index) if len(summary) else set()
    varying = [column for column in _TOLD_WHERE_VARYING if summary[column].nunique(dropna=False) > 1]
    points = []
    for number, (index, row) in enumerate(summary.iterrows()):
        same = [str(row[column]) for column in COMPARABLE]
        lines = {
            "models": "|".join([str(row["family"]), str(row["num_train_samples"]), *same]),
            "data": "|".join([str(row["arch"]), str(row["params"]), str(row["forward_macs"]), *same]),
        }
        points.append(
            {
                "id": number,
                "arch": _text(row["arch"]),
                "label": _text(row["arch"]),
                "family": family_key(row["family"]),
                "images": None if pd.isna(row["num_train_samples"]) else int(row["num_train_samples"]),
                "n": int(row["n"]),
                "mean": float(row["top1_mean"]),
                "std": None if pd.isna(row["top1_std"]) else float(row["top1_std"]),
                "seeds": [float(value) for value in str(row["top1_values"]).split()],
                "x": {chart.key: _position(row[chart.column], chart) for chart in CHARTS},
                "lines": lines if index in shown else {"models": None, "data": None},
                "details": _details(row, varying),
                "runs": [dict(link) for link in (links or {}).get(number, ())],
            }
        )
    return points


def published_group(row: Mapping[Any, Any]) -> str:
    """What a published result may be compared with: the data it was pretrained on, and the metric where that is another
    than ImageNet's top-1."""
    parts = [row.get("comparable"), row.get("metric")]
    if pd.isna(parts[0]):
        parts[0] = row.get("pretrain_data")
    known = [str(part) for part in parts if pd.notna(part) and part != _USUAL_METRIC]
    return " · ".join(dict.fromkeys(known)) or "not stated"


def published_points(table: pd.DataFrame, first_id: int = 0) -> list[dict[str, Any]]:
    """One point a published result of a `load_published` table that states a top1; `group` is its `published_group`.

    They have one number each and no spread, and lie on no line: a series in a paper is not told from the next. The
    number of training images is left out where it is that of all results in the group, and says nothing; `label` is the
    model's name, with the image size where the group has several of it.
    """
    points: list[dict[str, Any]] = []
    rows = table[table["top1"].notna()].to_dict("records")
    amounts: dict[str, set[Any]] = {}
    resolutions: dict[tuple[str, str], set[Any]] = {}
    for row in rows:
        group, name = published_group(row), _published_name(row)
        amounts.setdefault(group, set()).add(row.get("num_train_samples"))
        resolutions.setdefault((group, name), set()).add(row.get("image_size"))
    for row in rows:
        group, name = published_group(row), _published_name(row)
        tells_size = len(resolutions[group, name]) > 1 and pd.notna(row.get("image_size"))
        tells_images = len(amounts[group]) > 1 and pd.notna(row.get("num_train_samples"))
        source = _text(row.get("source"))
        found = _ARXIV.search(source)
        points.append(
            {
                "id": first_id + len(points),
                "arch": name,
                "label": f"{name} @{int(row['image_size'])}" if tells_size else name,
                "family": family_key(row.get("family")),
                "group": group,
                "images": int(row["num_train_samples"]) if tells_images else None,
                "n": 1,
                "mean": float(row["top1"]),
                "std": None,
                "seeds": [],
                "x": {
                    chart.key: _position(row.get(chart.published or ""), chart)
                    if tells_images or chart.key != "images"
                    else None
                    for chart in CHARTS
                },
                "lines": {"models": None, "data": None},
                "details": _published_details(row),
                "runs": [{"text": f"arXiv {found[1]}", "url": f"https://arxiv.org/abs/{found[1]}"}] if found else [],
            }
        )
    return points


def drawn_charts(points: list[dict[str, Any]]) -> list[Chart]:
    """The charts that have a point."""
    return [chart for chart in CHARTS if any(point["x"][chart.key] is not None for point in points)]


def _published_name(row: Mapping[Any, Any]) -> str:
    """As its source writes it."""
    return _text(row["variant"] if pd.notna(row.get("variant")) else row.get("arch"))


def _position(value: Any, chart: Chart) -> float | None:
    """On the chart's axis; None where it is unknown, or no number above 0 (axes are logarithmic at first)."""
    if value is None or pd.isna(value):
        return None
    number = float(value) * chart.factor
    return number if number > 0 and math.isfinite(number) else None


def _text(value: Any) -> str:
    return "not stated" if value is None or pd.isna(value) else str(value)


def _details(row: pd.Series, varying: list[str]) -> list[list[str]]:
    n, mean = int(row["n"]), float(row["top1_mean"])
    seeds = "one: spread unknown" if n == 1 else f"n = {n}" if n > 8 else f"{', '.join(row['seeds'].split())} (n = {n})"
    details = [
        [f"top-1 ({_text(row['eval_split'])})", f"{format_top1(mean, float(row['top1_std']) if n > 1 else None, 2)} %"],
        ["error", f"{100 - round(100 * mean, 2):.2f} %"],
        ["seeds", seeds],
    ]
    if pd.notna(row["top1_eval_standard_error"]):
        noise = 100 * float(row["top1_eval_standard_error"])
        details.append(["evaluation noise", f"± {noise:.2f} points, {int(row['num_eval_samples']):,} images"])
    details += _sizes(row)
    if pd.notna(row["num_train_samples"]):
        details.append(["training images", f"{int(row['num_train_samples']):,}"])
    if pd.notna(row["train_flops"]):
        details.append(["training", format_si(row["train_flops"], "FLOP")])
    if pd.notna(row["device_seconds_mean"]):
        details.append(["device time", format_duration(float(row["device_seconds_mean"]))])
    if pd.notna(row["images_per_second_mean"]):
        details.append(["images a second", f"{float(row['images_per_second_mean']):,.0f}"])
    settings = [(column.replace("_", " "), row[column]) for column in varying]
    return details + [[name, "–" if pd.isna(value) else f"{value:,}"] for name, value in settings]


def _sizes(row: Mapping[Any, Any] | pd.Series) -> list[list[str]]:
    told = []
    if pd.notna(row["params"]):
        told.append(["parameters", format_si(int(row["params"]))])
    if pd.notna(row["forward_macs"]):
        macs = int(row["forward_macs"])
        told.append(["forward", f"{format_si(macs, 'MAC')} = {format_si(2 * macs, 'FLOP')}"])
    return told


def _published_details(row: Mapping[Any, Any]) -> list[list[str]]:
    details = [["top-1, as published", format_percent(float(row["top1"]), 2)], *_sizes(row)]
    if pd.notna(row.get("image_size")):
        details.append(["image size", f"{int(row['image_size'])}"])
    for title, column in (("pretraining", "pretrain_data"), ("metric", "metric"), ("label", "label_status")):
        if pd.notna(row.get(column)):
            details.append([title, str(row[column])])
    for title, column in (("training images", "num_train_samples"), ("images seen", "samples_seen")):
        if pd.notna(row.get(column)):
            details.append([title, f"{int(row[column]):,}"])
    details.append(["source", _text(row.get("source"))])
    if pd.notna(row.get("notes")):
        details.append(["note", str(row["notes"])])
    return details
