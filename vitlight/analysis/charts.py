"""What the charts show, for the page and the PNG figures alike: axes, family styles, and the points themselves."""

from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from vitlight.analysis.quantities import FLOP_CONVENTION, format_si, format_top1
from vitlight.analysis.summary import COMPARABLE, choose_settings

__all__ = ["CHARTS", "Chart", "FamilyStyle", "chart_points", "family_styles"]


@dataclass(frozen=True)
class Chart:
    """Accuracy against one axis.

    column: of the summary table, times `factor`. connects: a line runs through the model sizes of one family at one
    data size, or through the data sizes of one model.
    """

    key: str
    title: str
    axis: str
    column: str
    connects: Literal["models", "data"]
    factor: int = 1

    @property
    def file(self) -> str:
        return f"accuracy_vs_{self.key}.png"


CHARTS = (
    Chart(
        "forward_flops", "forward FLOPs", f"forward FLOPs per image ({FLOP_CONVENTION})", "forward_macs", "models", 2
    ),
    Chart("params", "parameters", "parameters", "params", "models"),
    Chart("train_flops", "training FLOPs", f"training FLOPs ({FLOP_CONVENTION})", "train_flops", "data"),
    Chart("images", "training images", "distinct training images", "num_train_samples", "data"),
)


@dataclass(frozen=True)
class FamilyStyle:
    """How a family is drawn: hex colours on light and dark ground, and a marker (the shape's name on the page)."""

    light: str
    dark: str
    marker: str


# Okabe and Ito's colour-blind safe set, its pale members darkened on light ground and its dark ones lifted on dark
# ground, so that each has 3:1 contrast or more. Shape tells families apart without any colour.
_STYLES = (
    FamilyStyle("#0072b2", "#56b4e9", "circle"),
    FamilyStyle("#d55e00", "#f2894a", "square"),
    FamilyStyle("#00875f", "#35c69b", "triangle"),
    FamilyStyle("#b0568c", "#e39ac6", "diamond"),
    FamilyStyle("#8a6a00", "#e6b422", "pentagon"),
    FamilyStyle("#5b4fbf", "#a99ff0", "wedge"),
)
_OWN_FAMILIES = ("vit", "coatnet", "resnet")  # keep their colour on every page, whoever else is there


def family_styles(families: list[str]) -> dict[str, FamilyStyle]:
    """Styles by family, in the order to list them: vitlight's own first, the others by name in the styles left."""
    own = [family for family in _OWN_FAMILIES if family in families]
    others = sorted(set(families) - set(own))
    styles = {family: _STYLES[_OWN_FAMILIES.index(family)] for family in own}
    left = _STYLES[len(_OWN_FAMILIES) :]
    return styles | {family: left[i % len(left)] for i, family in enumerate(others)}


_TOLD_WHERE_VARYING = ("image_size", "samples_seen", "lr", "weight_decay", "global_batch_size")


def chart_points(summary: pd.DataFrame) -> list[dict[str, Any]]:
    """One JSON-ready point a cell. `x` holds a number per chart; `lines` the line it lies on per kind of line, None for
    a cell whose settings lost to another's; `details` label and text, ready to show."""
    shown = set(choose_settings(summary).index)
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
                "arch": str(row["arch"]),
                "family": str(row["family"]),
                "images": int(row["num_train_samples"]),
                "n": int(row["n"]),
                "mean": float(row["top1_mean"]),
                "std": None if pd.isna(row["top1_std"]) else float(row["top1_std"]),
                "seeds": [float(value) for value in str(row["top1_values"]).split()],
                "x": {chart.key: float(row[chart.column] * chart.factor) for chart in CHARTS},
                "lines": lines if index in shown else {"models": None, "data": None},
                "details": _details(row, varying),
            }
        )
    return points


def _details(row: pd.Series, varying: list[str]) -> list[list[str]]:
    n, mean, macs = int(row["n"]), float(row["top1_mean"]), int(row["forward_macs"])
    seeds = "one: spread unknown" if n == 1 else f"n = {n}" if n > 8 else f"{', '.join(row['seeds'].split())} (n = {n})"
    details = [
        [f"top-1 ({row['eval_split']})", f"{format_top1(mean, float(row['top1_std']) if n > 1 else None, 2)} %"],
        ["error", f"{100 - round(100 * mean, 2):.2f} %"],
        ["seeds", seeds],
    ]
    if pd.notna(row["top1_eval_standard_error"]):
        noise = 100 * float(row["top1_eval_standard_error"])
        details.append(["evaluation noise", f"± {noise:.2f} points, {int(row['num_eval_samples']):,} images"])
    details += [
        ["parameters", format_si(int(row["params"]))],
        ["forward", f"{format_si(macs, 'MAC')} = {format_si(2 * macs, 'FLOP')}"],
        ["training images", f"{int(row['num_train_samples']):,}"],
        ["training", format_si(row["train_flops"], "FLOP")],
    ]
    settings = [(column.replace("_", " "), row[column]) for column in varying]
    return details + [[name, "–" if pd.isna(value) else f"{value:,}"] for name, value in settings]
