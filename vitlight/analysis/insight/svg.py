"""The insight page's charts: SVG that stands in the page, in its colours, and needs no script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from matplotlib.ticker import MaxNLocator

__all__ = ["Dot", "Series", "chart"]

_WIDTH, _HEIGHT = 420, 268
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 12, 12, 40
# Corners of a marker's shape, in degrees from the top; a circle has none.
_CORNERS = {
    "square": (45, 135, 225, 315),
    "triangle": (0, 120, 240),
    "diamond": (0, 90, 180, 270),
    "pentagon": (0, 72, 144, 216, 288),
    "wedge": (60, 180, 300),
}


@dataclass(frozen=True)
class Dot:
    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Series:
    """Dots of one `colour` (a CSS value) and `shape`, and a line through places (x, y), dashed or not."""

    colour: str
    shape: str
    dots: Sequence[Dot] = ()
    line: Sequence[tuple[float, float]] = field(default=())
    dashed: bool = False


def chart(
    series: Sequence[Series], x_title: str, y_title: str, label: str, x_range: tuple[float, float], whole: bool = False
) -> str:
    """From 0 up; `label` says in a sentence what is drawn, for who can't see it. whole: x counts things. What isn't
    finite is left out."""
    tops = [
        y for each in series for y in (*(dot.y for dot in each.dots), *(y for _, y in each.line)) if math.isfinite(y)
    ]
    y_ticks = list(MaxNLocator(nbins=5).tick_values(0, max(tops, default=1) or 1))
    high = max(y_ticks)
    low_x, high_x = x_range if x_range[1] > x_range[0] else (x_range[0] - 0.5, x_range[0] + 0.5)
    pad = 0.04 * (high_x - low_x)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - low_x + pad) / (high_x - low_x + 2 * pad) * (_WIDTH - _LEFT - _RIGHT)
        up = y / high * (_HEIGHT - _TOP - _BOTTOM)
        return round(_LEFT + right, 1), round(_HEIGHT - _BOTTOM - up, 1)

    parts = []
    for tick in y_ticks:
        _, y = place(low_x, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{tick:g}</text>')
    for tick in MaxNLocator(nbins=8, integer=whole, steps=[1, 2, 5, 10]).tick_values(low_x, high_x):
        if low_x - 1e-9 <= tick <= high_x + 1e-9:
            x, _ = place(tick, 0)
            parts.append(f'<text x="{x}" y="{_HEIGHT - _BOTTOM + 17}" text-anchor="middle">{tick:g}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{_HEIGHT - 5}" text-anchor="middle">{escape(x_title)}</text>')
    for each in series:
        style = f'style="--colour: {each.colour}"'
        at = [place(x, y) for x, y in each.line if math.isfinite(y)]
        if len(at) > 1:
            dash = ' stroke-dasharray="5 4"' if each.dashed else ""
            path = "L".join(f"{x},{y}" for x, y in at)
            parts.append(f'<path class="curve" {style}{dash} d="M{path}"/>')
        for dot in each.dots:
            if math.isfinite(dot.y):
                shape = _mark(each.shape, *place(dot.x, dot.y))
                parts.append(f'<g class="point" {style}>{shape}<title>{escape(dot.title)}</title></g>')
    return (
        f'<figure class="plot"><figcaption>{escape(y_title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg></figure>'
    )


def _mark(shape: str, x: float, y: float, radius: float = 4.2) -> str:
    if shape not in _CORNERS:
        return f'<circle cx="{x}" cy="{y}" r="{radius}"/>'
    wide = 1.22 * radius
    turns = [math.radians(corner) for corner in _CORNERS[shape]]
    points = " ".join(f"{x + wide * math.sin(turn):.1f},{y - wide * math.cos(turn):.1f}" for turn in turns)
    return f'<polygon points="{points}"/>'
