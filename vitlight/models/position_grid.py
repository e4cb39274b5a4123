"""Fixed position embeddings at another image size than the network was trained at.

"sincos2d" is computed for a model's grid of patches and lies in no checkpoint. On a larger grid its coordinates would go
on where training ended; taken between those of the trained grid, each position keeps what it meant.
"""

from collections.abc import Mapping
from typing import Any

from vitlight.models import build_config
from vitlight.models.vit_config import ViTConfig

__all__ = ["fixed_position_grid", "keep_position_grid"]


def fixed_position_grid(arch: str, options: Mapping[str, Any] | None, image_size: int) -> int | None:
    """Patches along one side over which the coordinates of a network's fixed position embeddings run; None where it has
    none. InputError as in `build_model`."""
    config = build_config(arch, image_size=image_size, **(options or {}))
    if not isinstance(config, ViTConfig) or config.posemb != "sincos2d":
        return None
    return config.posemb_grid or config.grid


def keep_position_grid(
    arch: str, options: Mapping[str, Any] | None, image_size: int, trained: Mapping[str, Any]
) -> dict[str, Any] | None:
    """`options` of a network at `image_size` that takes over the weights of a run, whose experiment.yaml is `trained`: with
    `posemb_grid`, where its position embeddings are fixed and the run had another grid. Where `posemb_grid` is given, that
    holds. InputError as in `build_model`."""
    kept = None if options is None else dict(options)
    if (options or {}).get("posemb_grid") is not None:
        return kept
    grid = fixed_position_grid(arch, options, image_size)
    if grid is None:
        return kept
    model = trained["model"]
    trained_grid = fixed_position_grid(model["arch"], model.get("model_options"), trained["data"]["image_size"])
    return kept if trained_grid in (None, grid) else {**(options or {}), "posemb_grid": trained_grid}
