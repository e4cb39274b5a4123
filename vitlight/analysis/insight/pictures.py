"""Maps as pictures: colours, and maps laid over the image they are of. All uint8 (H, W, 3)."""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import colormaps
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["DIVERGING", "HEAT", "SIMILARITY", "Picture", "heat", "overlay", "signed", "similarity_sheet"]

Picture = NDArray[np.uint8]

HEAT, DIVERGING, SIMILARITY = "inferno", "RdBu_r", "viridis"
_MOST_TILES = 7  # of a similarity sheet along one side: figure 7 of the ViT paper
_GAP = 1


def heat(values: Tensor, highest: float | None = None) -> Picture:
    """Values (H, W) of at least 0 from black, 0, to bright, `highest` or the largest of them."""
    top = float(values.max()) if highest is None else highest
    return _coloured(values / top if top > 0 else values, HEAT)


def signed(values: Tensor, largest: float) -> Picture:
    """Values (H, W) from blue, -largest, over white, 0, to red."""
    return _coloured(0.5 + 0.5 * values / largest if largest > 0 else torch.full_like(values, 0.5), DIVERGING)


def overlay(picture: Tensor, values: Tensor, strength: float = 0.62) -> Picture:
    """A map (h, w) of at least 0, brightest at its own largest value, over the image (S, S, 3) it is of, in grey; of
    both, no side is shorter than 112 pixels."""
    size = picture.shape[0]
    factor = max(1, -(-112 // size))
    grey = picture.float().mean(2).repeat_interleave(factor, 0).repeat_interleave(factor, 1)
    smooth = F.interpolate(values[None, None].float(), (size * factor,) * 2, mode="bilinear", align_corners=False)[0, 0]
    coloured = torch.from_numpy(heat(smooth).astype(np.float32))
    mixed = (1 - strength) * grey[:, :, None] + strength * coloured
    return mixed.round().to(torch.uint8).numpy()


def similarity_sheet(similarity: Tensor) -> Picture:
    """Maps (h, w, h, w) as a sheet of maps, in the order of the patches, from -1 to 1; of a larger grid seven evenly spread
    rows and columns."""
    rows, columns = (_spread(side) for side in similarity.shape[:2])
    tiles = []
    for i in rows:
        line = [_framed(_coloured(0.5 + 0.5 * similarity[i, j], SIMILARITY)) for j in columns]
        tiles.append(np.concatenate(line, axis=1))
    sheet: Picture = np.concatenate(tiles, axis=0)[:-_GAP, :-_GAP]
    return sheet


def _framed(tile: Picture) -> Picture:
    """At least 28 pixels a side, and white on the right and below."""
    factor = max(1, -(-28 // max(tile.shape[:2])))
    return np.pad(tile.repeat(factor, 0).repeat(factor, 1), ((0, _GAP), (0, _GAP), (0, 0)), constant_values=255)


def _spread(count: int) -> list[int]:
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, _MOST_TILES)).tolist()})


def _coloured(shares: Tensor, name: str) -> Picture:
    """Values (H, W) in [0, 1] through a colour map."""
    rgba = colormaps[name](shares.clamp(0, 1).double().numpy(), bytes=True)
    picture: Picture = np.ascontiguousarray(rgba[:, :, :3])
    return picture
