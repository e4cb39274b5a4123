"""What attention weights say: how far they reach, how spread they are, and where they lead through all layers.

Weights are softmaxed, (..., H, Q, K): head, query, key; each row sums to 1. With `num_prefix` tokens (class token,
registers) before the patches, those come first among queries and keys, and the patches follow row by row.

Shape letters: H heads, Q queries, K keys, N tokens.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Fusion", "Rollout", "attention_distance", "attention_entropy", "patch_distances", "rollout"]

Fusion = Literal["mean", "min", "max"]
Grid = tuple[int, int]


def patch_distances(grid: Grid, patch_size: float) -> Tensor:
    """Pixels between the centres of any two patches of a grid (rows, columns), (N, N) float32."""
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1) * patch_size
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist")


def attention_distance(weights: Tensor, grid: Grid, patch_size: float, num_prefix: int = 0) -> Tensor:
    """Mean attention distance of each head, (..., H) in pixels: the distance between the centres of a query's patch and of
    the patches it looks at, weighted by its attention, averaged over the queries (Dosovitskiy et al. 2020, arXiv 2010.11929,
    appendix D.7, which calls it an analogue of a receptive field's size).

    weights: (..., H, Q, K) with Q = K = num_prefix + rows * columns. The paper doesn't say what becomes of the class token,
    which has no place in the image. Here it is left out as a query and as a key, as registers are: what a patch gives to
    patches is scaled to sum to 1. A query that gives them nothing at all is in no mean; where all do, the distance is NaN.
    """
    num_patches = grid[0] * grid[1]
    assert weights.shape[-1] == weights.shape[-2] == num_prefix + num_patches, "tokens are prefix and grid"
    among_patches = weights[..., num_prefix:, num_prefix:]
    given = among_patches.sum(-1)  # (..., H, Q)
    reached = torch.einsum("...qk,qk->...q", among_patches, patch_distances(grid, patch_size).to(weights))
    return (reached / given).nanmean(-1)


def attention_entropy(weights: Tensor) -> Tensor:
    """Entropy of each head, (..., H) in nats: of each query's distribution over all keys, averaged over the queries. From 0
    (one key gets everything) to ln K (all get the same)."""
    return torch.special.entr(weights).sum(-1).mean(-1)


class Rollout:
    """Attention rollout (Abnar and Zuidema 2020, arXiv 2005.00928), layer after layer, of a batch of B images.

    Each layer mixes tokens by 0.5 A + 0.5 I, the second half for the shortcut, with A fused over the heads and each row
    scaled to sum to 1; `matrix` (B, N, M) is the product so far: how much of each token now comes from each of the M tokens
    of the first layer. Between stages of a CoAtNet, where a pooling leaves fewer tokens, a token stands for the mean of
    those in its window: exact for average pooling, and for max pooling its best guess without looking at the values.
    """

    def __init__(self, fusion: Fusion = "mean") -> None:
        self.fusion = fusion
        self.matrix: Tensor | None = None
        self._grid: Grid | None = None

    def add(self, weights: Tensor, grid: Grid | None = None) -> None:
        """The next layer's weights (B, H, N, N). grid: of its tokens, where that may differ from the layer before's."""
        fused = _fuse(weights, self.fusion)
        mixing = 0.5 * fused + 0.5 * torch.eye(fused.shape[-1]).to(fused)
        mixing = mixing / mixing.sum(-1, keepdim=True)
        if self.matrix is None:
            self.matrix = mixing
        else:
            if self._grid is not None and grid is not None and grid != self._grid:
                self.matrix = _pool_rows(self.matrix, self._grid, grid)
            self.matrix = mixing @ self.matrix
        self._grid = grid

    def from_token(self, token: int, num_prefix: int) -> Tensor:
        """What one token takes from each patch of the first layer, (B, M - num_prefix)."""
        assert self.matrix is not None, "a layer was added"
        return self.matrix[:, token, num_prefix:]

    def from_patches(self, num_prefix: int, share: Tensor | None = None) -> Tensor:
        """What a pool over the patches takes from each patch of the first layer, (B, M - num_prefix). share (B, patches):
        of each patch in the pool; None for the mean."""
        assert self.matrix is not None, "a layer was added"
        among_patches = self.matrix[:, num_prefix:, num_prefix:]
        return among_patches.mean(1) if share is None else torch.einsum("bn,bnm->bm", share, among_patches)


def rollout(layers: list[Tensor], fusion: Fusion = "mean") -> Tensor:
    """The whole product of `Rollout`, (B, N, N), for weights (B, H, N, N) of layers with the same tokens, first to last."""
    assert layers, "there is a layer"
    product = Rollout(fusion)
    for weights in layers:
        product.add(weights)
    assert product.matrix is not None
    return product.matrix


def _fuse(weights: Tensor, fusion: Fusion) -> Tensor:
    """(B, H, N, N) to (B, N, N)."""
    if fusion == "mean":
        return weights.mean(1)
    return weights.amin(1) if fusion == "min" else weights.amax(1)


def _pool_rows(matrix: Tensor, before: Grid, after: Grid) -> Tensor:
    """(B, N, M) to (B, N', M): rows averaged over the windows in which a grid is pooled, the last one cut off at the
    edge."""
    stride = tuple(math.ceil(old / new) for old, new in zip(before, after, strict=True))
    maps = matrix.mT.unflatten(-1, before)  # (B, M, rows, columns)
    pooled = F.avg_pool2d(maps, stride, ceil_mode=True, count_include_pad=False)
    assert pooled.shape[-2:] == after, "grids of consecutive stages"
    return pooled.flatten(2).mT
