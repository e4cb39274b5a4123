"""Writes insights: the page, figures as PNG, numbers as CSV and JSON."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from vitlight.analysis.insight.figures import write_comparison, write_figures
from vitlight.analysis.insight.insight import Insight
from vitlight.analysis.insight.numbers import ATTENTION_COLUMNS, FIELD_COLUMNS, as_json, attention_rows, field_rows
from vitlight.analysis.insight.page import build_page, model_styles
from vitlight.analysis.whole_files import replace_whole

__all__ = ["folder_names", "write_insight"]


def write_insight(insights: Sequence[Insight], folder: Path, title: str | None = None) -> tuple[Path, list[Path]]:
    """Into `folder`, which is made: insight.html, one file that loads nothing else; insight.json and, where there is such,
    attention.csv (a row a layer and head) and receptive_field.csv (a row a stage); PNGs, of several networks each in a
    folder of its name, with receptive_fields.png for all on one scale. Each file is replaced whole. Returns the page
    and the PNGs."""
    assert insights, "there is a network"
    folder.mkdir(parents=True, exist_ok=True)
    pngs = []
    styles = model_styles(insights)
    for insight, name, style in zip(insights, folder_names(insights), styles, strict=True):
        own = folder / name if len(insights) > 1 else folder
        own.mkdir(exist_ok=True)
        pngs += write_figures(insight, own, style)
    if len(insights) > 1 and any(insight.fields for insight in insights):
        pngs.append(write_comparison(insights, folder / "receptive_fields.png"))
    numbers: dict[str, list[dict[str, Any]]] = {
        "attention.csv": attention_rows(insights),
        "receptive_field.csv": field_rows(insights),
    }
    columns = {"attention.csv": ATTENTION_COLUMNS, "receptive_field.csv": FIELD_COLUMNS}
    tables = [name for name, rows in numbers.items() if rows]
    for name in tables:
        text = pd.DataFrame(numbers[name], columns=list(columns[name])).to_csv(index=False, lineterminator="\n")
        _replace(folder / name, text)
    _replace(folder / "insight.json", json.dumps([as_json(insight) for insight in insights], indent=1) + "\n")
    beside = [*tables, "insight.json", *(path.relative_to(folder).as_posix() for path in pngs)]
    page = build_page(insights, title or " · ".join(insight.name for insight in insights), beside)
    return _replace(folder / "insight.html", page), pngs


def folder_names(insights: Sequence[Insight]) -> list[str]:
    """A folder's name for each, no two alike."""
    names: list[str] = []
    for insight in insights:
        plain = re.sub(r"[^\w.-]+", "_", insight.name).strip("._") or "network"
        name, count = plain, 1
        while name in names:
            count += 1
            name = f"{plain}_{count}"
        names.append(name)
    return names


def _replace(path: Path, text: str) -> Path:
    return replace_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", newline=""))
