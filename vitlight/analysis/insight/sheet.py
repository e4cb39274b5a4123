"""Small pictures in rows and columns as one figure. A panel of matplotlib for each would take 60 ms of a core apiece."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from vitlight.analysis.figures import INK, QUIET

__all__ = ["Tile", "draw_sheet"]

_DPI = 160
_GAP = 0.08  # inches
_LINE = 0.125  # of a caption
_POINTS = 7


@dataclass(frozen=True)
class Tile:
    """picture: (H, W, 3) uint8; caption: lines above it; share: of the tile's side that it takes, in the middle of black."""

    picture: NDArray[np.uint8]
    caption: str = ""
    share: float = 1.0


def draw_sheet(
    rows: Sequence[Sequence[Tile]], side: float, names: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """side: of a tile, in inches. names: of the rows, on the left."""
    columns = max(len(row) for row in rows)
    left = _GAP + (0.0 if names is None else 0.062 * max(len(line) for name in names for line in name.split("\n")))
    top = _GAP + (0.0 if title is None else 0.24)
    tall = [max(tile.caption.count("\n") + bool(tile.caption) for tile in row) * _LINE for row in rows]
    width = max(left + columns * (side + _GAP), 0.075 * len(title or ""))
    height = top + sum(tall) + len(rows) * (side + _GAP)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    if title is not None:
        axes.text(_GAP, 0.06, title, fontsize=9, color=INK, va="top")
    y = top
    for i, (row, captions) in enumerate(zip(rows, tall, strict=True)):
        y += captions
        if names is not None:
            axes.text(_GAP, y + side / 2, names[i], fontsize=_POINTS, color=INK, va="center")
        for j, tile in enumerate(row):
            x = left + j * (side + _GAP)
            if tile.share < 1:
                axes.add_patch(Rectangle((x, y), side, side, color="black", linewidth=0))
            inset = side * (1 - tile.share) / 2
            place = (x + inset, x + side - inset, y + side - inset, y + inset)
            axes.imshow(tile.picture, extent=place, interpolation="nearest", aspect="auto")
            axes.text(x + side / 2, y - 0.03, tile.caption, fontsize=_POINTS, color=QUIET, ha="center", va="bottom")
        y += side + _GAP
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure
