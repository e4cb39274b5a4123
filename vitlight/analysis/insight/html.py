"""Pieces of the insight page: pictures that stand in it as data, tiles of them, and tables."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["data_uri", "field_tile", "subsection", "table", "tile", "tiles"]


def data_uri(picture: NDArray[np.uint8], is_photo: bool = False) -> str:
    """(H, W, 3), exactly as PNG; a photo as JPEG, which is a tenth of that."""
    buffer = io.BytesIO()
    kind = "jpeg" if is_photo else "png"
    Image.fromarray(picture).save(buffer, kind, **({"quality": 88} if is_photo else {"optimize": True}))
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def tile(picture: NDArray[np.uint8], caption: str = "", *, alt: str, is_photo: bool = False) -> str:
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    kind = "" if is_photo else ' class="grain"'
    height, width = picture.shape[:2]
    source = data_uri(picture, is_photo)
    return f'<figure><img{kind} src="{source}" width="{width}" height="{height}" alt="{escape(alt)}">{words}</figure>'


def tiles(members: Sequence[str], least: int, *, columns: int | None = None, label: str = "") -> str:
    """Side by side, each at least `least` pixels wide; in `columns`, which scroll where there is no room for them, or in as
    many as there is room for."""
    if columns is None:
        return f'<div class="tiles" style="--least: {least}px">{"".join(members)}</div>'
    inside = f'<div class="tiles fixed" style="--least: {least}px; --columns: {columns}">{"".join(members)}</div>'
    return f'<div class="sheet" tabindex="0" role="group" aria-label="{escape(label)}">{inside}</div>'


def field_tile(
    picture: NDArray[np.uint8],
    centre: tuple[float, float],
    radii: Sequence[float],
    caption: str,
    share: float,
    alt: str,
) -> str:
    """A receptive field with a ring for each radius; `share` of a tile's width is its own."""
    size = picture.shape[0]
    rings = "".join(
        f'<circle cx="{centre[1] + 0.5:g}" cy="{centre[0] + 0.5:g}" r="{radius:g}" stroke-width="{size / 110:g}"/>'
        for radius in radii
        if 0 < radius < 2 * size
    )
    image = f'<img class="grain" src="{data_uri(picture)}" width="{size}" height="{size}" alt="{escape(alt)}">'
    words = "".join(f"<span>{escape(line)}</span>" for line in caption.split("\n"))
    return (
        f'<figure><div class="ground"><div class="field" style="width: {100 * share:.4g}%">{image}'
        f'<svg viewBox="0 0 {size} {size}" aria-hidden="true">{rings}</svg></div></div>'
        f"<figcaption>{words}</figcaption></figure>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> str:
    """The first column names a row."""
    first, *others = header
    head = f'<th class="text">{escape(first)}</th>' + "".join(f"<th>{escape(name)}</th>" for name in others)
    body = "".join(
        f"<tr><th>{escape(row[0])}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in row[1:])}</tr>" for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(label)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def subsection(title: str, note: str, *content: str) -> str:
    """`note` is HTML."""
    return f'<div class="part"><h3>{escape(title)}</h3><p class="note">{note}</p>{"".join(content)}</div>'
