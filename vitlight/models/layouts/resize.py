"""Position embeddings and relative bias tables of another resolution, brought to the model's.

Shape letters: N tokens, D width, G patches along one side, H tokens along one side.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vitlight.errors import InputError

__all__ = ["Grids", "can_be_resized", "resize", "resize_bias_table", "resize_position_embedding"]

# (rows, columns) before and after.
Grids = tuple[tuple[int, int], tuple[int, int]]


def can_be_resized(name: str) -> bool:
    """Whether our tensor of that name depends on the resolution."""
    return name == "posemb" or name.endswith("bias_table")


def resize(name: str, tensor: Tensor, shape: torch.Size) -> tuple[Tensor, Grids]:
    """Our tensor `name` at the resolution of `shape`, and the grids before and after."""
    if name == "posemb":
        before, after = (_split_rows(num_rows)[1] for num_rows in (tensor.shape[1], shape[1]))
        return resize_position_embedding(tensor, shape[1]), ((before, before), (after, after))
    return resize_bias_table(tensor, *shape[1:]), ((tensor.shape[1], tensor.shape[2]), (shape[1], shape[2]))


def _split_rows(num_rows: int) -> tuple[int, int]:
    """(rows of the class token, patches along one side) of a table of that many rows; InputError if neither fits.

    G^2 and G^2 + 1 are never both squares, so the number alone says whether the class token has a row.
    """
    side = math.isqrt(num_rows)
    num_class_rows = num_rows - side**2
    if num_class_rows > 1:
        raise InputError(
            f"a position embedding of {num_rows} rows is no square grid of patches, with or without a class token; "
            "only square images can be resized"
        )
    return num_class_rows, side


def resize_position_embedding(posemb: Tensor, num_rows: int) -> Tensor:
    """(1, N, D) to (1, num_rows, D), bicubic and antialiased in float32, as timm's `resample_abs_pos_embed` does.

    The class token's row is kept as it is. InputError where a grid is not square or only one side has that row.
    """
    num_class_rows, side = _split_rows(posemb.shape[1])
    wanted_class_rows, wanted_side = _split_rows(num_rows)
    if num_class_rows != wanted_class_rows:
        having, lacking = ("weights", "model") if num_class_rows else ("model", "weights")
        raise InputError(
            f"the class token has a position in the {having} and none in the {lacking}; change posemb_on_class_token "
            "or class_token"
        )
    class_rows, patches = posemb.split([num_class_rows, side**2], dim=1)
    grid = patches.float().unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, G, G)
    grid = F.interpolate(grid, size=(wanted_side, wanted_side), mode="bicubic", antialias=True, align_corners=False)
    resized = grid.permute(0, 2, 3, 1).flatten(1, 2).to(posemb.dtype)
    return torch.cat([class_rows, resized], dim=1)


def resize_bias_table(table: Tensor, height: int, width: int) -> Tensor:
    """(heads, 2H-1, 2W-1) to (heads, height, width), bilinear in float32 (CoAtNet, appendix A.1).

    The corners are aligned: rows are the displacements -(H-1) .. H-1, so displacement 0 stays in the middle and the
    largest displacements, from one edge of the image to the other, stay at the ends.
    """
    if table.shape[1] % 2 == 0 or table.shape[2] % 2 == 0:
        raise InputError(f"a relative bias table of {tuple(table.shape[1:])} has no middle; its sides must be odd")
    resized = F.interpolate(table.float()[None], size=(height, width), mode="bilinear", align_corners=True)[0]
    return resized.to(table.dtype)
