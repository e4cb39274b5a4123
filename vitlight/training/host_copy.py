"""A copy of a training state in the host's memory, which the training may go on changing."""

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

__all__ = ["HostCopy"]


class HostCopy:
    """Copies nested dicts, lists and tuples of tensors and plain values. The memory is used again for the next copy, so
    at most one is in use at a time; that of tensors on a CUDA device is pinned, and torch rounds each such block up to a
    power of two."""

    def __init__(self) -> None:
        self._buffers: dict[Any, Tensor] = {}
        self._used: dict[Any, Tensor] = {}

    @torch.no_grad()
    def take(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` as it is now; the copy before this one is overwritten. Waits for what the CUDA devices have queued."""
        self._used = {}
        copied: dict[str, Any] = self._copy(state, ())
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self._buffers = self._used
        return copied

    def _copy(self, value: Any, place: tuple[Any, ...]) -> Any:
        if type(value) in (Tensor, torch.nn.Parameter):
            return value if value.is_meta else self._copy_tensor(value.detach(), place)
        if type(value) in (dict, OrderedDict):
            copied = type(value)((name, self._copy(item, (*place, name))) for name, item in value.items())
            if type(value) is OrderedDict:
                vars(copied).update(copy.deepcopy(vars(value)))  # the versions of a state dict's modules
            return copied
        if type(value) in (list, tuple):
            return type(value)(self._copy(item, (*place, position)) for position, item in enumerate(value))
        return copy.deepcopy(value)

    def _copy_tensor(self, tensor: Tensor, place: tuple[Any, ...]) -> Tensor:
        key = (place, tensor.dtype, tensor.shape, tensor.stride())
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        self._used[key] = buffer
        return buffer.copy_(tensor, non_blocking=tensor.is_cuda)
