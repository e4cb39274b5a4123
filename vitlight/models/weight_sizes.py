"""The sizes that a model must have so that weights fit it, read from the shapes of their tensors."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitlight.models import TimmModel, build_model, default_image_size
from vitlight.models.layouts import Layout
from vitlight.models.weights import find_layout

__all__ = ["sizes_in"]

# The layers that see the image, one a family; a hybrid's patch embedding sees the maps of its backbone.
_FIRST = ("backbone.stem.weight", "stem.0.weight", "patch_embed.weight")


def sizes_in(
    state: Mapping[str, Tensor],
    layout: str,
    arch: str,
    options: Mapping[str, Any],
    usual_size: int | None = None,
) -> dict[str, int]:
    """num_classes, in_channels and image_size as the tensors' shapes tell; where they don't tell the last one it is
    `usual_size`, None: the arch's own.

    layout: as in `load_weights`. InputError for an unknown arch or option, and for names of another layout or of none.
    """
    own_size = default_image_size(arch)
    with torch.device("meta"):
        model = build_model(arch, image_size=own_size, **options)
    sizes = {"image_size": own_size if usual_size is None else usual_size}
    if isinstance(model, TimmModel):
        return sizes | _sizes_in_timm(state, model)
    found = _found(dict(state), find_layout(state, layout), model)
    first = next((found[name] for name in _FIRST if name in found), None)
    if first is not None:
        sizes["in_channels"] = first.shape[1]
    for name, tensor in found.items():
        if name == "head.weight":
            sizes["num_classes"] = tensor.shape[0]
        elif name == "posemb":
            config: Any = model.config
            grid = math.isqrt(tensor.shape[1])  # a row of the class token's changes nothing
            sizes["image_size"] = grid * (own_size // config.grid)
    tables = [name for name in found if name.endswith(".bias_table")]
    if tables:
        config = model.config
        stage = int(tables[0].split(".")[1]) + 1  # the stem is stage 0 of the config
        grid = (found[tables[0]].shape[1] + 1) // 2
        is_own = grid == config.grids[stage]  # several image sizes have one grid: the arch's own, or the largest
        sizes["image_size"] = own_size if is_own else grid * math.prod(config.strides[: stage + 1])
    return sizes


def _sizes_in_timm(state: Mapping[str, Tensor], model: TimmModel) -> dict[str, int]:
    """timm says of each of its models which layers are the first and the last, one or several."""
    sizes = {}
    config: Any = model.network.pretrained_cfg
    for size, key, dim in (("num_classes", "classifier", 0), ("in_channels", "first_conv", 1)):
        named = config.get(key)
        layer = named if isinstance(named, str) else named[0] if named else ""
        tensor = state.get(f"{layer}.weight", state.get(f"network.{layer}.weight"))
        if tensor is not None and tensor.ndim > dim:
            sizes[size] = tensor.shape[dim]
    return sizes


def _found(state: dict[str, Tensor], layout: Layout, model: nn.Module) -> dict[str, Tensor]:
    """Our tensors whose shapes follow from the sizes, at the source's sizes, as far as the source has them."""
    if (canonical := getattr(layout, "canonical", None)) is not None:
        state = canonical(state, model)
    ours = model.state_dict()
    found: dict[str, Tensor] = {}
    for entry in layout.entries(model):
        if not any(name in ("head.weight", "posemb", *_FIRST) or name.endswith(".bias_table") for name in entry.ours):
            continue
        theirs = [state[name] for name in entry.theirs if name in state]
        expected = entry.to_theirs([ours[name] for name in entry.ours])
        if [tensor.ndim for tensor in theirs] == [tensor.ndim for tensor in expected]:
            found |= zip(entry.ours, entry.to_ours(theirs), strict=True)
    return found
