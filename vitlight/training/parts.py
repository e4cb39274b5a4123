"""Tensors that are split over ranks by their first dimension (FSDP2), seen from one rank."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.tensor
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["empty_like_part", "is_split_as", "local_part", "mean_of_parts", "split_as", "whole_norms", "zeros_as_part"]


def local_part(tensor: Tensor) -> Tensor:
    """This rank's rows of a split tensor, in the same memory; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_split_as(weight: Tensor | None, shape: Sequence[int]) -> bool:
    """Whether what belongs to `weight` and has this shape is split where `weight` is: it has all of its rows."""
    return isinstance(weight, DTensor) and len(shape) == weight.ndim > 0 and shape[0] == weight.shape[0]


def split_as(weight: Tensor | None, value: Any) -> Any:
    """A whole tensor that belongs to `weight`, in the parts that `weight` is in; anything else as it is. Called by all."""
    if isinstance(value, DTensor) or not isinstance(value, Tensor) or not is_split_as(weight, value.shape):
        return value
    assert isinstance(weight, DTensor)
    return distribute_tensor(value.contiguous().to(weight.device), weight.device_mesh, weight.placements)


def empty_like_part(weight: Tensor | None, whole: Tensor) -> Tensor:
    """Room for `whole`, of which only shape and dtype count: in parts where it is split as `weight` is, else on the CPU."""
    if not is_split_as(weight, whole.shape):
        return torch.empty_like(whole, device="cpu")
    assert isinstance(weight, DTensor)
    return torch.distributed.tensor.empty(
        whole.shape, dtype=whole.dtype, device_mesh=weight.device_mesh, placements=weight.placements
    )


def zeros_as_part(weight: Tensor, shape: Sequence[int]) -> Tensor:
    """Zeros of `weight`'s dtype and device, in parts where this shape is split as `weight` is."""
    if not is_split_as(weight, shape):
        return torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    assert isinstance(weight, DTensor)
    return torch.distributed.tensor.zeros(
        shape, dtype=weight.dtype, device_mesh=weight.device_mesh, placements=weight.placements
    )


def whole_norms(parts: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Euclidean norms (n,) of n tensors that are all split as `weight` is, or not, given this rank's parts; one exchange for
    all. Called by all ranks."""
    norms = torch.stack(torch._foreach_norm(list(parts)))
    if not isinstance(weight, DTensor):
        return norms
    squares = norms.float().square()
    dist.all_reduce(squares, group=weight.device_mesh.get_group())
    return squares.sqrt()


def mean_of_parts(part: Tensor, dim: int, weight: Tensor) -> Tensor:
    """Mean over one dimension, which is kept, of a tensor that is split as `weight` is, or not, given this rank's part.
    Where that is over the rows of a split tensor all ranks get the same. Called by all."""
    if dim or not isinstance(weight, DTensor) or part.shape[0] == weight.shape[0] == 1:
        return part.mean(dim, keepdim=True)
    total = part.sum(dim, keepdim=True)
    dist.all_reduce(total, group=weight.device_mesh.get_group())
    return total / weight.shape[0]
