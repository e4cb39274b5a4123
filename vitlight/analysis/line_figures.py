"""The report's curves and laws as PNG figures: a panel a family."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vitlight.analysis.charts import FamilyStyle, family_styles
from vitlight.analysis.curves import Curve
from vitlight.analysis.figures import MARKERS, QUIET, dress, new_figure, save_figure

__all__ = ["write_line_figures"]

_MOST_PANELS = 6


def write_line_figures(curves: Sequence[Curve], fits: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """sample_efficiency.png where there are `curves`, laws.png where there are `drawn_fits`, into `folder`."""
    paths = []
    styles = family_styles([*(curve.family for curve in curves), *(fit["family"] for fit in fits)])
    if curves:
        families = [family for family in styles if any(curve.family == family for curve in curves)][:_MOST_PANELS]
        figure, panels = _panels(len(families))
        for family, axes in zip(families, panels, strict=True):
            _draw_curves(axes, family, [curve for curve in curves if curve.family == family], styles[family])
        paths.append(save_figure(figure, folder / "sample_efficiency.png"))
    if fits:
        figure, panels = _panels(len(fits[:_MOST_PANELS]))
        for fit, axes in zip(fits[:_MOST_PANELS], panels, strict=True):
            _draw_fit(axes, fit, styles[fit["family"]])
        paths.append(save_figure(figure, folder / "laws.png"))
    return paths


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    figure = new_figure()
    columns = min(count, 3)
    rows = -(-count // columns)
    figure.set_size_inches(8 * max(columns, 1) / 2 if columns > 1 else 8, 4.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    panels = [axes for row in grid for axes in row]
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _draw_curves(axes: Axes, family: str, curves: Sequence[Curve], style: FamilyStyle) -> None:
    dress(axes, family, "samples seen", "top-1 accuracy (%)")
    sizes = sorted({curve.params or 0 for curve in curves})
    for curve in curves:
        strength = 0.35 + 0.65 * (sizes.index(curve.params or 0) + 1) / len(sizes)
        y = [100 * value for value in curve.top1]
        axes.plot(curve.samples_seen, y, color=style.light, alpha=strength, linewidth=1.4)
    largest = max(curves, key=lambda curve: (curve.top1[-1], curve.arch))
    axes.annotate(largest.arch, (largest.samples_seen[-1], 100 * largest.top1[-1]), color=QUIET, ha="right", fontsize=9)


def _draw_fit(axes: Axes, fit: dict[str, Any], style: FamilyStyle) -> None:
    dress(axes, fit["title"], fit["axis"], "error (1 − top-1)")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:.2g}")
    axes.tick_params(axis="y", which="minor", labelsize=8)
    num_ranks = max(1, fit["num_ranks"])
    for curve in fit["curves"]:
        strength = 0.35 + 0.65 * (curve["rank"] + 1) / num_ranks
        axes.fill_between(curve["x"], curve["low"], curve["high"], color=style.light, alpha=0.13, linewidth=0)
        axes.plot(
            curve["x"], curve["y"], color=style.light, alpha=strength, linewidth=1.3, label=curve["label"] or None
        )
    for point in fit["points"]:
        held = point["predicted"] is not None
        if held:
            axes.plot([point["x"]] * 2, [point["y"], point["predicted"]], color=QUIET, linewidth=0.8)
            axes.plot(point["x"], point["predicted"], "_", color=QUIET, markersize=7)
        axes.plot(
            point["x"], point["y"], MARKERS[style.marker], markersize=4.5, markeredgecolor=style.light,
            markerfacecolor="white" if held else style.light, markeredgewidth=1.1,
        )  # fmt: skip
    if any(curve["label"] for curve in fit["curves"]):
        axes.legend(frameon=False, labelcolor=QUIET, fontsize=8)
