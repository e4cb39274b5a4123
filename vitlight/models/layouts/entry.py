"""What a weight layout is made of: pairs of our tensors and another project's, and how the numbers move between them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Entry", "joined", "mapped", "same"]

Tensors = list[Tensor]


def _unchanged(tensors: Tensors) -> Tensors:
    return tensors


@dataclass(frozen=True)
class Entry:
    """One or several of our tensors and the tensors of the other project that hold the same numbers.

    `to_ours` takes the tensors named in `theirs`, in that order, and gives those named in `ours`; `to_theirs` is its
    exact inverse. Both only move numbers (views, transposes, concatenations), so they are linear, a gradient can be
    mapped like a weight, and a round trip is exact to the bit. They must work on the meta device too: that is how the
    expected shapes are found.
    """

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    to_ours: Callable[[Tensors], Tensors] = _unchanged
    to_theirs: Callable[[Tensors], Tensors] = _unchanged


def same(ours: str, theirs: str) -> Entry:
    """The same tensor under another name."""
    return Entry((ours,), (theirs,))


def mapped(ours: str, theirs: str, to_ours: Callable[[Tensor], Tensor], to_theirs: Callable[[Tensor], Tensor]) -> Entry:
    """One tensor on either side, in another shape: `mapped(a, b, torch.t, torch.t)` for a transposed matrix."""
    return Entry((ours,), (theirs,), lambda tensors: [to_ours(tensors[0])], lambda tensors: [to_theirs(tensors[0])])


def joined(ours: str, theirs: tuple[str, ...], dim: int = 0) -> Entry:
    """Our one tensor is their several of equal size, concatenated along `dim`: q, k and v, for one."""
    return Entry(
        (ours,),
        theirs,
        lambda tensors: [torch.cat(tensors, dim)],
        lambda tensors: list(tensors[0].chunk(len(theirs), dim)),
    )
