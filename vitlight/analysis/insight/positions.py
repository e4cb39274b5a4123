"""How alike the position embeddings of two patches are."""

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.analysis.insight.capture import plain_network
from vitlight.models.vit import ViT

__all__ = ["position_embedding", "position_similarity"]


def position_embedding(network: nn.Module) -> tuple[Tensor, tuple[int, int]] | None:
    """Table (rows * columns, D), float32 on the CPU, and grid (rows, columns) of what a ViT, ours or timm's, adds to its
    patches; a class token's row is left out. None where nothing is added."""
    network = plain_network(network)
    grid: tuple[int, int] | None
    if isinstance(network, ViT):
        table = getattr(network, "posemb", None)
        grid = (network.config.grid, network.config.grid)
    else:
        inner = cast(Any, getattr(network, "network", None))
        table = getattr(inner, "pos_embed", None)
        grid = getattr(getattr(inner, "patch_embed", None), "grid_size", None)
    if not isinstance(table, Tensor) or table.ndim != 3 or grid is None:
        return None
    num_patches = grid[0] * grid[1]
    if table.shape[1] < num_patches:
        return None
    return table[0, -num_patches:].detach().float().cpu(), grid


def position_similarity(embedding: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine similarity of each patch's embedding with every other's, (rows, columns, rows, columns): [i, j] is the map for
    the patch in row i, column j. embedding: (rows * columns, D)."""
    unit = F.normalize(embedding, dim=-1)
    return (unit @ unit.mT).unflatten(1, grid).unflatten(0, grid)
