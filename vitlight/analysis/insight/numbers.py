"""The numbers of insights, as rows and as one JSON value."""

import math
from collections.abc import Sequence
from typing import Any

from vitlight.analysis.insight.insight import Insight

__all__ = ["ATTENTION_COLUMNS", "FIELD_COLUMNS", "as_json", "attention_rows", "field_rows", "scalars"]

ATTENTION_COLUMNS = ("model", "arch", "layer", "module", "head", "grid", "stride_px", "distance_px", "entropy_nats")
FIELD_COLUMNS = ("model", "arch", "stage", "depth", "stride_px", "radius_50_px", "radius_90_px")


def attention_rows(insights: Sequence[Insight]) -> list[dict[str, Any]]:
    """One row a model, layer and head."""
    rows: list[dict[str, Any]] = []
    for insight in insights:
        for study in insight.attention.layers if insight.attention is not None else ():
            layer = study.layer
            for place, head in enumerate(study.heads):
                values: tuple[Any, ...] = (
                    *(insight.name, insight.arch, layer.index, layer.name, head),
                    *("x".join(map(str, layer.grid)), layer.stride),
                    *(_number(study.distance[place]), _number(study.entropy[place])),
                )
                rows.append(dict(zip(ATTENTION_COLUMNS, values, strict=True)))
    return rows


def field_rows(insights: Sequence[Insight]) -> list[dict[str, Any]]:
    """One row a model and stage."""
    rows = []
    for insight in insights:
        for field in insight.fields:
            radii = _number(field.radius_50), _number(field.radius_90)
            values = insight.name, insight.arch, field.label, round(field.depth, 6), field.stride, *radii
            rows.append(dict(zip(FIELD_COLUMNS, values, strict=True)))
    return rows


def as_json(insight: Insight) -> dict[str, Any]:
    """All numbers but those of the maps."""
    model = {key: getattr(insight, key) for key in ("name", "arch", "source", "image_size", "num_images")}
    drop = {"model", "arch"}
    biases = [
        {
            "layer": bias.index,
            "module": bias.name,
            "stride_px": bias.stride,
            "largest": _number(bias.tables.abs().max()),
        }
        for bias in insight.biases
    ]
    return {
        **model,
        "missing": list(insight.missing),
        "readout": insight.attention.readout if insight.attention is not None else None,
        "attention": [{k: v for k, v in row.items() if k not in drop} for row in attention_rows([insight])],
        "receptive_field": [{k: v for k, v in row.items() if k not in drop} for row in field_rows([insight])],
        "component_shares": [] if insight.components is None else [_number(share) for share in insight.components[1]],
        "relative_biases": biases,
    }


def scalars(insight: Insight) -> dict[str, float]:
    """A few numbers that a curve over training can be made of, by `insight/NAME`: means over heads, of each layer, and the
    radii of each stage; what isn't finite is left out."""
    found: dict[str, float] = {}
    for study in insight.attention.layers if insight.attention is not None else ():
        found[f"insight/attention_distance_px/layer_{study.layer.index:02}"] = float(study.distance.nanmean())
        found[f"insight/attention_entropy_nats/layer_{study.layer.index:02}"] = float(study.entropy.mean())
    for field in insight.fields:
        label = field.label.replace(" ", "_")
        found[f"insight/receptive_radius_50_px/{label}"] = field.radius_50
        found[f"insight/receptive_radius_90_px/{label}"] = field.radius_90
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _number(value: Any) -> float | None:
    """Six significant digits; None for what is no number."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
