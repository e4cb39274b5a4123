"""The insight page's parts on attention: how far, how spread, and where on the images."""

import math
from collections.abc import Sequence
from html import escape

from torch import Tensor

from vitlight.analysis.charts import FamilyStyle
from vitlight.analysis.insight.html import subsection, table, tile, tiles
from vitlight.analysis.insight.insight import AttentionStudy, Insight
from vitlight.analysis.insight.pictures import overlay
from vitlight.analysis.insight.svg import Dot, Series, chart

__all__ = ["attention_parts", "distance_dots", "legend"]

_MOST_HEADS = 8
_MOST_LAYERS = 12
_PHOTO_SIDE = 112  # pixels; smaller images are shown pixel by pixel
_UNITS = {"distance": "px", "entropy": "nats"}
_TITLES = {"distance": "Mean attention distance of each head (px)", "entropy": "Attention entropy of each head (nats)"}


def attention_parts(insight: Insight, study: AttentionStudy, colour: str, style: FamilyStyle) -> list[str]:
    """Sections of the page."""
    layers = study.layers
    x_range = (layers[0].layer.index, layers[-1].layer.index)
    charts = []
    for name in ("distance", "entropy"):
        series = [
            distance_dots(insight, study, name, colour, style),
            Series("var(--ink)", "circle", line=_means(study, name)),
        ]
        label = f"{_TITLES[name]}, a dot a head, against the layer; the line is the mean over heads."
        charts.append(chart(series, "attention layer", _TITLES[name], label, x_range, whole=True))
    num_tokens = layers[-1].layer.num_tokens
    left_out = " Class token and registers are left out." if layers[0].layer.num_prefix else ""
    note = (
        "Distance: between the centres of a query's patch and of those it looks at, weighted by its attention, mean over "
        f"queries and images.{left_out} Entropy: of what a query gives to all tokens; giving the same to all "
        f"{num_tokens} of the last layer is {math.log(num_tokens):.2f} nats. A dot is a head, the line their mean."
    )
    return [
        subsection("How far attention reaches", note, f'<div class="pair">{"".join(charts)}</div>', _numbers(study)),
        *_maps(insight, study),
    ]


def distance_dots(
    insight: Insight, study: AttentionStudy, name: str, colour: str, style: FamilyStyle, relative: bool = False
) -> Series:
    """A dot a layer and head. relative: x is from 0, the first layer, to 1, and a line is their mean."""
    last = max(study.layers[-1].layer.index, 1)
    dots = []
    for each in study.layers:
        x = each.layer.index / last if relative else each.layer.index
        for head, value in zip(each.heads, getattr(each, name).tolist(), strict=True):
            words = f"{insight.name}, layer {each.layer.index}, head {head}: {value:.4g} {_UNITS[name]}"
            dots.append(Dot(x, value, words))
    return Series(colour, style.marker, dots, _means(study, name, last) if relative else ())


def _means(study: AttentionStudy, name: str, last: int = 1) -> list[tuple[float, float]]:
    """Over heads, by layer / last."""
    return [(each.layer.index / last, float(getattr(each, name).nanmean())) for each in study.layers]


def legend(names: Sequence[tuple[str, str]]) -> str:
    """Names with their colours."""
    items = "".join(
        f'<li><span class="swatch" style="--colour: {colour}"></span>{escape(name)}</li>' for name, colour in names
    )
    return f'<ul class="legend">{items}</ul>'


def _numbers(study: AttentionStudy) -> str:
    rows = []
    for each in study.layers:
        distance, entropy = each.distance, each.entropy
        known = distance[~distance.isnan()]
        spread = f"{known.min():.4g} to {known.max():.4g}" if len(known) else "–"
        size = "x".join(map(str, each.layer.grid))
        cells = (str(each.layer.index), each.layer.name, size, str(len(each.heads)), _mean(known), spread)
        rows.append((*cells, f"{entropy.mean():.4g}", f"{entropy.min():.4g} to {entropy.max():.4g}"))
    header = ("layer", "module", "grid", "heads", "distance, px", "over heads", "entropy, nats", "over heads")
    return f'<details class="numbers"><summary>Numbers</summary>{table(header, rows, "attention by layer")}</details>'


def _mean(values: Tensor) -> str:
    return f"{values.mean():.4g}" if len(values) else "–"


_FROM = {
    "class token": "the class token",
    "mean over patches": "the mean over patches, which the classifier sees,",
    "pooling head": "the attention pooling head",
}


def _maps(insight: Insight, study: AttentionStudy) -> list[str]:
    if not len(insight.pictures):
        return []
    maps = study.pool_maps if study.pool_maps is not None else study.layers[-1].maps
    heads = list(range(maps.shape[1])) if study.pool_maps is not None else list(study.layers[-1].heads)
    where = "the pooling head" if study.pool_maps is not None else f"layer {study.layers[-1].layer.index}"
    count = min(len(heads), _MOST_HEADS)
    members = []
    for i, picture in enumerate(insight.pictures):
        members.append(tile(picture.numpy(), "image", alt=f"image {i}", is_photo=len(picture) >= _PHOTO_SIDE))
        if study.rollout is not None:
            members.append(
                tile(overlay(picture, study.rollout[i]), "rollout", alt=f"rollout over image {i}", is_photo=True)
            )
        for place in range(count):
            words = f"head {heads[place]}"
            members.append(
                tile(overlay(picture, maps[i, place]), words, alt=f"{where}, {words}, image {i}", is_photo=True)
            )
    columns = 1 + (study.rollout is not None) + count
    rolled = (
        f" Rollout: what {_FROM[study.readout]} takes from each patch through all layers, each counted as half attention "
        f"({study.fusion} over heads) and half shortcut."
        if study.rollout is not None
        else ""
    )
    more = f", the first {count} of {len(heads)}" if count < len(heads) else ""
    shown = (
        f"Heads: what {_FROM['pooling head']} gives to each patch{more}."
        if study.pool_maps is not None
        else f"Heads: what {_FROM[study.readout]} gives to each patch in {where}{more}."
    )
    note = f"Each map is brightest at its own largest value.{rolled} {shown}"
    return [
        subsection(
            "Attention over images",
            note,
            tiles(members, 72, columns=columns, label="attention over images"),
            _every_layer(insight, study),
        )
    ]


def _every_layer(insight: Insight, study: AttentionStudy) -> str:
    """The mean over heads of each layer, for a few images; of a deep network's layers twelve, evenly spread."""
    layers = study.layers
    if len(layers) < 2:
        return ""
    count = min(len(layers), _MOST_LAYERS)
    picked = [layers[round(i * (len(layers) - 1) / (count - 1))] for i in range(count)]
    members = []
    for i, picture in enumerate(insight.pictures):
        for each in picked:
            words = f"layer {each.layer.index}"
            mixed = overlay(picture, each.maps[i].mean(0))
            members.append(tile(mixed, words, alt=f"{words}, image {i}", is_photo=True))
    sheet = tiles(members, 72, columns=count, label="attention by layer over images")
    return f"<details><summary>Mean over heads, layer by layer</summary>{sheet}</details>"
