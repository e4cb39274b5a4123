"""The charts of the report as PNG figures, for slides and papers."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from vitlight.analysis.charts import CHARTS, Chart, FamilyStyle, chart_points, family_styles
from vitlight.analysis.quantities import format_si
from vitlight.analysis.summary import pareto_front

__all__ = ["draw_figure", "write_figures"]

_MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "pentagon": "p", "wedge": "v"}
_INK, _QUIET, _GRID = "#1d2126", "#5b636d", "#e8e6e0"
_DPI = 180


def write_figures(summary: pd.DataFrame, folder: Path) -> list[Path]:
    """One PNG per chart into `folder`, 1440 x 900 pixels; a summary with no cell gives figures that say so."""
    paths = []
    for chart in CHARTS:
        figure = draw_figure(summary, chart)
        beside = folder / f".{chart.file}.part"
        figure.savefig(beside, format="png", metadata={"Software": None})
        paths.append(beside.rename(folder / chart.file))
    return paths


def draw_figure(summary: pd.DataFrame, chart: Chart) -> Figure:
    """Means over seeds with ± one sample standard deviation, single seeds, lines, and the Pareto front."""
    figure = Figure(figsize=(8, 5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _dress(axes, chart)
    points = chart_points(summary)
    if not points:
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=_QUIET)
        return figure
    styles = family_styles([point["family"] for point in points])
    sizes = sorted({point["images"] for point in points})
    areas = dict(zip(sizes, np.linspace(5, 10, len(sizes)) if len(sizes) > 1 else [7.0], strict=True))
    x = np.array([point["x"][chart.key] for point in points])
    y = np.array([100 * point["mean"] for point in points])

    if chart.key == "images" and len(sizes) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(sizes))
    front = pareto_front(x, y)
    axes.step(x[front], y[front], where="post", color=_INK, linewidth=1.1, linestyle=(0, (1, 2.5)), zorder=1)
    lines = defaultdict(list)
    for place, point in enumerate(points):
        if point["lines"][chart.connects] is not None:
            lines[point["lines"][chart.connects]].append(place)
    for places in lines.values():
        ordered = sorted(places, key=lambda place: x[place])
        axes.plot(
            x[ordered], y[ordered], color=styles[points[ordered[0]]["family"]].light, alpha=0.4, linewidth=1.3, zorder=2
        )
    for place, point in enumerate(points):
        colour, single = styles[point["family"]].light, point["n"] == 1
        if not single:
            axes.errorbar(
                x[place],
                y[place],
                yerr=100 * point["std"],
                color=colour,
                alpha=0.75,
                linewidth=1.1,
                capsize=2.5,
                zorder=3,
            )
            seeds = [100 * seed for seed in point["seeds"]]
            axes.plot([x[place]] * len(seeds), seeds, "o", color=colour, alpha=0.3, markersize=2.5, zorder=3)
        axes.plot(
            x[place], y[place], _MARKERS[styles[point["family"]].marker], markersize=areas[point["images"]],
            markerfacecolor="white" if single else colour, markeredgecolor=colour if single else "white",
            markeredgewidth=1.4 if single else 0.7, zorder=4,
        )  # fmt: skip
    right = max(x.max() * 1.12, axes.get_xlim()[1])
    axes.plot([x[front[-1]], right], [y[front[-1]]] * 2, color=_INK, linewidth=1.1, linestyle=(0, (1, 2.5)), zorder=1)
    axes.set_xlim(right=right)
    _add_legend(axes, styles, areas, any(point["n"] == 1 for point in points))
    return figure


def _dress(axes: Axes, chart: Chart) -> None:
    axes.set_xscale("log")
    axes.set_xlabel(chart.axis, color=_QUIET)
    axes.set_ylabel("top-1 accuracy (%)", color=_QUIET)
    axes.set_title(f"Accuracy against {chart.title}", loc="left", color=_INK, fontsize=12)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_QUIET, length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _add_legend(axes: Axes, styles: dict[str, FamilyStyle], areas: dict[int, float], has_single: bool) -> None:
    def mark(marker: str, size: float, colour: str, label: str, face: str | None = None) -> Line2D:
        return Line2D(
            [],
            [],
            linestyle="",
            marker=marker,
            markersize=size,
            color=colour,
            label=label,
            markerfacecolor=face or colour,
        )

    entries = [mark(_MARKERS[style.marker], 7, style.light, name) for name, style in styles.items()]
    entries += [mark("o", area, _QUIET, f"{format_si(size)} images") for size, area in areas.items()]
    entries.append(Line2D([], [], color=_INK, linewidth=1.1, linestyle=(0, (1, 2.5)), label="Pareto front"))
    if has_single:
        entries.append(mark("o", 7, _QUIET, "one seed", face="white"))
    entries.append(mark("|", 11, _QUIET, "± 1 std over seeds"))
    axes.legend(
        handles=entries, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelcolor=_QUIET, fontsize=9
    )
