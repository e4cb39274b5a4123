"""What is seen in one network as PNG figures, and the receptive fields of several on one scale."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vitlight.analysis.charts import FamilyStyle
from vitlight.analysis.figures import INK, MARKERS, QUIET, new_figure, save_figure
from vitlight.analysis.insight.filters import as_pictures
from vitlight.analysis.insight.insight import AttentionStudy, Insight
from vitlight.analysis.insight.pictures import heat, overlay, signed, similarity_sheet
from vitlight.analysis.insight.sheet import Tile, draw_sheet

__all__ = ["MOST_FILTERS", "write_comparison", "write_figures"]

MOST_FILTERS = 64
_MOST_HEADS = 12
_MOST_MAPS = 8
_GRID = "#e8e6e0"


def write_figures(insight: Insight, folder: Path, style: FamilyStyle) -> list[Path]:
    """PNGs of all that `insight` has into `folder`, which is there."""
    paths = []
    if insight.attention is not None:
        study = insight.attention
        for name, title in (("distance", "Mean attention distance (px)"), ("entropy", "Attention entropy (nats)")):
            figure = new_figure()
            axes = figure.add_subplot()
            _scatter_heads(axes, study, name, style)
            _dress(axes, f"{title}, {insight.name}", "attention layer", title)
            paths.append(save_figure(figure, folder / f"attention_{name}.png"))
        paths.append(save_figure(_attention_sheet(insight, study), folder / "attention_maps.png"))
    if insight.filters is not None and insight.components is not None:
        pictures = as_pictures(insight.filters.kernels[:MOST_FILTERS]).numpy()
        title = f"First filters, {insight.name}: {len(pictures)} of {len(insight.filters.kernels)}"
        paths.append(save_figure(_filter_sheet(list(pictures), title), folder / "filters.png"))
        components, shares = insight.components
        title = f"Principal components of the filters, {insight.name}"
        captions = [f"{100 * share:.1f} %" for share in shares.tolist()]
        sheet = _filter_sheet(list(as_pictures(components).numpy()), title, captions)
        paths.append(save_figure(sheet, folder / "components.png"))
    if insight.similarity is not None:
        title = f"Position embeddings: cosine similarity, {insight.name}"
        sheet = draw_sheet([[Tile(similarity_sheet(insight.similarity))]], 5.0, title=title)
        paths.append(save_figure(sheet, folder / "positions.png"))
    if insight.biases:
        paths.append(save_figure(_bias_sheet(insight), folder / "biases.png"))
    if insight.fields:
        paths.append(write_comparison([insight], folder / "receptive_fields.png"))
    return paths


def write_comparison(insights: Sequence[Insight], path: Path) -> Path:
    """Receptive fields, a row a network and a column a stage, all on one scale of pixels: as large as the largest image."""
    rows = [insight for insight in insights if insight.fields]
    largest = max(insight.image_size for insight in rows)
    tiles = [
        [
            Tile(
                heat(field.field.sqrt()),
                f"{field.label}\n{field.radius_50:.3g} / {field.radius_90:.3g} px",
                insight.image_size / largest,
            )
            for field in insight.fields
        ]
        for insight in rows
    ]
    return save_figure(draw_sheet(tiles, 1.3, [insight.name for insight in rows]), path)


def _scatter_heads(axes: Axes, study: AttentionStudy, name: str, style: FamilyStyle) -> None:
    for each in study.layers:
        values = getattr(each, name).tolist()
        axes.plot(
            [each.layer.index] * len(values), values, MARKERS[style.marker], markersize=5.5,
            markerfacecolor=style.light, markeredgecolor="white", markeredgewidth=0.6,
        )  # fmt: skip
    means = [float(getattr(each, name).nanmean()) for each in study.layers]
    axes.plot([each.layer.index for each in study.layers], means, color=INK, linewidth=1.1, label="mean over heads")
    axes.legend(frameon=False, labelcolor=QUIET, fontsize=8)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _attention_sheet(insight: Insight, study: AttentionStudy) -> Figure:
    """A row an image: it, its rollout, and the heads of the last layer that was asked for, or of the pooling head."""
    if study.pool_maps is not None:
        maps, what, heads = study.pool_maps, "pooling head", tuple(range(study.pool_maps.shape[1]))
    else:
        last = study.layers[-1]
        maps, what, heads = last.maps, f"layer {last.layer.index}", last.heads
    rows = []
    for i, picture in enumerate(insight.pictures):
        row = [Tile(picture.numpy(), "image")]
        row += [] if study.rollout is None else [Tile(overlay(picture, study.rollout[i]), "rollout")]
        named = zip(maps[i], heads, strict=True)
        row += [Tile(overlay(picture, values), f"{what}\nhead {head}") for values, head in named][:_MOST_MAPS]
        rows.append(row if i == 0 else [Tile(tile.picture) for tile in row])
    return draw_sheet(rows, 1.1)


def _bias_sheet(insight: Insight) -> Figure:
    """A row a layer and a column a head, of each layer at most twelve, each row on a scale of its own."""
    rows, names = [], []
    for bias in insight.biases:
        largest = float(bias.tables.abs().max())
        shown = enumerate(bias.tables[:_MOST_HEADS])
        rows.append([Tile(signed(table, largest), f"head {head}") for head, table in shown])
        names.append(f"layer {bias.index}\n± {largest:.2g}")
    return draw_sheet(rows, 0.9, names)


def _filter_sheet(pictures: Sequence[NDArray[np.uint8]], title: str, captions: Sequence[str] | None = None) -> Figure:
    tiles = [Tile(picture, captions[i] if captions is not None else "") for i, picture in enumerate(pictures)]
    columns = min(len(tiles), 14 if captions is not None else 16)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    return draw_sheet(rows, 0.5, title=title)


def _dress(axes: Axes, title: str, x_title: str, y_title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10)
    axes.set_xlabel(x_title, color=QUIET)
    axes.set_ylabel(y_title, color=QUIET)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=QUIET, length=0)
    axes.spines[:].set_visible(False)
