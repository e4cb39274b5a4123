"""law.json, and a figure of each law: what was read, the curve with its bands, and the runs held out."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from vitlight.analysis.law_fits import Answer, Law
from vitlight.analysis.quantities import format_si
from vitlight.analysis.whole_files import replace_whole

__all__ = ["draw_law", "write_laws"]

_INK, _QUIET, _GRID, _RUN = "#1d2126", "#5b636d", "#e8e6e0", "#2a6fb0"
_DPI = 180
_MOST_CURVES = 8
_PLACES = 80


def write_laws(answer: Answer, folder: Path) -> list[Path]:
    """Write law.json and, for each law, law.png and law.svg (law_NAME where there are several); each replaced whole."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(answer.as_json(), indent=1) + "\n"
    paths = [replace_whole(folder / "law.json", lambda beside: beside.write_text(text, encoding="utf-8"))]
    for law in answer.laws:
        stem = "law" if len(answer.laws) == 1 else "law_" + re.sub(r"[^A-Za-z0-9]+", "_", law.members.name).strip("_")
        figure = draw_law(law, answer)
        for suffix in ("png", "svg"):
            # No date and no version, so that the same law gives the same file.
            metadata = {"Software": None} if suffix == "png" else {"Date": None}
            save = partial(figure.savefig, format=suffix, metadata=metadata)
            paths.append(replace_whole(folder / f"{stem}.{suffix}", save))
    return paths


def draw_law(law: Law, answer: Answer) -> Figure:
    """Error against compute, or against images seen with a curve for each size, both axes logarithmic.

    The inner band holds the curve, the outer one a new run. Hollow points were held out.
    """
    figure = Figure(figsize=(8, 5), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if law.fit.form.axes == ("compute",):
        _draw_compute(axes, law)
        _dress(axes, _axis_title(answer.question.x))
    else:
        _draw_sizes(axes, law, answer.question.size)
        _dress(axes, "images seen")
    axes.set_ylabel(law.record["meaning"].partition(";")[0].removeprefix("E: "), color=_QUIET)
    title = f"{law.members.name}: {law.record['formula_with_numbers']}"
    axes.set_title(title, loc="left", color=_INK, fontsize=8, wrap=True)
    return figure


def _axis_title(column: str) -> str:
    return f"{column} (FLOP = half a MAC)" if column == "train_flops" else column


def _draw_compute(axes: Axes, law: Law) -> None:
    points, level = law.fit.points, law.fit.level
    places = _reach(points.compute, [place["compute"] for place in law.places if "compute" in place])
    low, high = law.fit.prediction_band(level, compute=places)
    axes.fill_between(places, low, high, color=_INK, alpha=0.07, linewidth=0, label=f"{100 * level:g} %: a new run")
    low, high = law.fit.band(level, compute=places)
    axes.fill_between(places, low, high, color=_INK, alpha=0.16, linewidth=0, label=f"{100 * level:g} %: the law")
    axes.plot(places, law.fit.predict(compute=places), color=_INK, linewidth=1.4)
    if law.held_out is not None:
        axes.plot(
            places,
            law.held_out.fit.predict(compute=places),
            "--",
            color=_QUIET,
            linewidth=1.1,
            label="fitted without those",
        )
    held = law.is_held_out
    axes.plot(
        points.compute[~held], points.error[~held], "o", color=_RUN, markersize=5, markeredgecolor="white", label="run"
    )
    axes.plot(
        points.compute[held],
        points.error[held],
        "o",
        color=_RUN,
        markersize=6,
        markerfacecolor="white",
        label="held out",
    )
    axes.legend(frameon=False, fontsize=8, labelcolor=_QUIET)


def _draw_sizes(axes: Axes, law: Law, size: str) -> None:
    """A curve for each size, at most _MOST_CURVES of them, spread over the sizes; repeats as of the size's own runs."""
    points = law.fit.points
    sizes = np.unique(points.params)
    kept = np.unique(np.linspace(0, len(sizes) - 1, min(len(sizes), _MOST_CURVES)).round().astype(int))
    colours = colormaps["viridis"](np.linspace(0.9, 0.0, len(kept)))
    places = _reach(points.samples, [place["samples"] for place in law.places if "samples" in place])
    unique = {}
    if "unique_samples" in law.fit.form.axes:
        unique["unique_samples"] = np.minimum(places, points.unique_samples.max())
    for colour, number in zip(colours, sizes[kept], strict=True):
        low, high = law.fit.band(law.fit.level, params=number, samples=places, **unique)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(places, law.fit.predict(params=number, samples=places, **unique), color=colour, linewidth=1.2)
        of_size = points.params == number
        held = law.is_held_out[of_size]
        x, y = points.samples[of_size], points.error[of_size]
        axes.plot(x[~held], y[~held], "o", color=colour, markersize=5, markeredgecolor="white", zorder=3)
        axes.plot(x[held], y[held], "o", color=colour, markersize=6, markerfacecolor="white", zorder=3)
        axes.plot([], [], "o-", color=colour, markersize=5, label=format_si(number))
    if law.is_held_out.any():
        axes.plot([], [], "o", color=_QUIET, markersize=6, markerfacecolor="white", label="held out")
    axes.legend(
        title=f"{size}, law's {100 * law.fit.level:g} % band", title_fontsize=8, fontsize=8, labelcolor=_QUIET,
        frameon=False, loc="center left", bbox_to_anchor=(1.01, 0.5),
    )  # fmt: skip


def _reach(measured: NDArray[np.float64], asked: list[float]) -> NDArray[np.float64]:
    """From the least to the most that was measured or asked for, with a little room."""
    ends = np.array([*measured, *asked])
    return np.geomspace(ends.min() / 1.3, ends.max() * 1.3, _PLACES)


def _dress(axes: Axes, title: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(title, color=_QUIET)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_QUIET, length=0)
    axes.spines[:].set_visible(False)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_si(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
