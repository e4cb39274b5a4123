"""The charts of the report as PNG figures, for slides and papers."""

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

from vitlight.analysis.chart_points import drawn_charts
from vitlight.analysis.charts import CHARTS, Chart, FamilyStyle, family_styles
from vitlight.analysis.quantities import format_si
from vitlight.analysis.summary import pareto_front
from vitlight.analysis.whole_files import replace_whole

__all__ = [
    "INK",
    "MARKERS",
    "QUIET",
    "draw_figure",
    "dress",
    "format_tick",
    "new_figure",
    "save_figure",
    "write_figures",
]

MARKERS = {"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "pentagon": "p", "wedge": "v"}
INK, QUIET, _GRID = "#1d2126", "#5b636d", "#e8e6e0"
_FRONT: dict[str, Any] = {"color": INK, "linewidth": 1.1, "linestyle": (0, (1, 2.5)), "zorder": 1}
_DPI = 180


def write_figures(points: list[dict[str, Any]], folder: Path) -> list[Path]:
    """One PNG per chart that has a point into `folder`, 1440 x 900 pixels; with no point at all, one that says so."""
    paths = []
    for chart in drawn_charts(points) or CHARTS[:1]:
        paths.append(save_figure(draw_figure(points, chart), folder / chart.file))
    return paths


def new_figure() -> Figure:
    figure = Figure(figsize=(8, 5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> Path:
    """The same bytes for the same figure."""
    return replace_whole(path, lambda beside: figure.savefig(beside, format="png", metadata={"Software": None}))


def draw_figure(points: list[dict[str, Any]], chart: Chart) -> Figure:
    """Means over seeds with ± one sample standard deviation, single seeds, lines, and the Pareto front."""
    figure = new_figure()
    axes = figure.add_subplot()
    groups = dict.fromkeys(point["group"] for point in points if "group" in point)
    of = f", published, {', '.join(groups)}" if groups else ""
    dress(axes, f"Accuracy against {chart.title}{of}", chart.axis, "top-1 accuracy (%)")
    points = [point for point in points if point["x"][chart.key] is not None]
    if not points:
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=QUIET)
        return figure
    styles = family_styles([point["family"] for point in points])
    sizes = sorted({point["images"] for point in points if point["images"] is not None})
    areas = dict(zip(sizes, np.linspace(5, 10, len(sizes)) if len(sizes) > 1 else [7.0] * len(sizes), strict=True))
    x = np.array([point["x"][chart.key] for point in points])
    y = np.array([100 * point["mean"] for point in points])
    if chart.key == "images" and len(sizes) <= 8:
        axes.xaxis.set_major_locator(FixedLocator(sizes))
    _draw_lines(axes, points, chart, x, y, styles)
    for place, point in enumerate(points):
        _draw_point(axes, point, x[place], y[place], styles[point["family"]], areas.get(point["images"], 5.0))
    _draw_front(axes, x, y, chart)
    _add_legend(axes, styles, areas if len(areas) <= 8 else {}, points)
    return figure


def _draw_front(axes: Axes, x: np.ndarray, y: np.ndarray, chart: Chart) -> None:
    """Steps from the cheapest on; of a rate, from the fastest."""
    front = pareto_front(-x if chart.is_gain else x, y)
    axes.step(x[front], y[front], where="post", **_FRONT)
    left, right = min(x.min() / 1.12, axes.get_xlim()[0]), max(x.max() * 1.12, axes.get_xlim()[1])
    axes.plot([x[front[-1]], left if chart.is_gain else right], [y[front[-1]]] * 2, **_FRONT)
    axes.set_xlim(left, right)


def _draw_lines(
    axes: Axes,
    points: list[dict[str, Any]],
    chart: Chart,
    x: np.ndarray,
    y: np.ndarray,
    styles: dict[str, FamilyStyle],
) -> None:
    lines = defaultdict(list)
    for place, point in enumerate(points):
        if point["lines"][chart.connects] is not None:
            lines[point["lines"][chart.connects]].append(place)
    for places in lines.values():
        order = sorted(places, key=lambda place: x[place])
        colour = styles[points[order[0]]["family"]].light
        axes.plot(x[order], y[order], color=colour, alpha=0.4, linewidth=1.3, zorder=2)


def _draw_point(axes: Axes, point: dict[str, Any], x: float, y: float, style: FamilyStyle, area: float) -> None:
    single = point["n"] == 1
    if not single:
        error = {"yerr": 100 * point["std"], "alpha": 0.75, "linewidth": 1.1, "capsize": 2.5}
        axes.errorbar(x, y, color=style.light, zorder=3, **error)
        seeds = [100 * seed for seed in point["seeds"]]
        axes.plot([x] * len(seeds), seeds, "o", color=style.light, alpha=0.3, markersize=2.5, zorder=3)
    axes.plot(
        x, y, MARKERS[style.marker], markersize=area, markerfacecolor="white" if single else style.light,
        markeredgecolor=style.light if single else "white", markeredgewidth=1.4 if single else 0.7, zorder=4,
    )  # fmt: skip


def dress(axes: Axes, title: str, x_title: str, y_title: str) -> None:
    """Titles, a quiet grid, and a logarithmic x axis in SI prefixes."""
    axes.set_xscale("log")
    axes.set_xlabel(x_title, color=QUIET)
    axes.set_ylabel(y_title, color=QUIET)
    axes.set_title(title, loc="left", color=INK, fontsize=12)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=QUIET, length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def format_tick(value: float) -> str:
    return format_si(value) if value >= 1 else f"{value:g}"


def _add_legend(
    axes: Axes, styles: dict[str, FamilyStyle], areas: dict[int, float], points: list[dict[str, Any]]
) -> None:
    def mark(marker: str, size: float, colour: str, label: str, face: str | None = None) -> Line2D:
        shape: dict[str, Any] = {
            "linestyle": "",
            "marker": marker,
            "markersize": size,
            "markerfacecolor": face or colour,
        }
        return Line2D([], [], color=colour, label=label, **shape)

    entries = [mark(MARKERS[style.marker], 7, style.light, name) for name, style in list(styles.items())[:14]]
    if len(styles) > 14:
        entries.append(Line2D([], [], linestyle="", label=f"and {len(styles) - 14} more"))
    entries += [mark("o", area, QUIET, f"{format_si(size)} images") for size, area in areas.items()]
    entries.append(Line2D([], [], color=INK, linewidth=1.1, linestyle=(0, (1, 2.5)), label="Pareto front"))
    if any(point["n"] == 1 for point in points):
        single = "published" if all("group" in point for point in points) else "one seed"
        entries.append(mark("o", 7, QUIET, single, face="white"))
    if any(point["n"] > 1 for point in points):
        entries.append(mark("|", 11, QUIET, "± 1 std over seeds"))
    axes.legend(
        handles=entries, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelcolor=QUIET, fontsize=9
    )
