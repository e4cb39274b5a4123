"""One training step on tensors without memory, and how many bytes real ones would take at each moment of it."""

import copy
import itertools
import weakref
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from vitlight.cost.gpu_rules import GpuRules
from vitlight.cost.trace import checkpoint_blocks

__all__ = ["DeviceType", "MemoryEstimate", "Phase", "trace_step"]

DeviceType = Literal["cpu", "cuda"]
Phase = Literal["forward", "backward"]

_BLOCK_BYTES = {"cpu": 64, "cuda": 512}  # what the device's allocator rounds up to


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that tensors take while a model trains, from the second step on.

    `activations` is what the forward pass leaves behind for the backward one, autocast's copies of the weights
    included. `peak_bytes` is the most at one moment, which lies in the pass that `peak_phase` names; the parts need not
    add up to it, as gradients grow while activations are dropped. What the process itself takes, and the workspaces
    inside a kernel (cuDNN, cuBLAS, oneDNN), are not counted.
    """

    params: int
    buffers: int
    gradients: int
    optimizer_state: int
    input: int
    activations: int
    peak_bytes: int
    peak_phase: Phase


def trace_step(
    model: nn.Module,
    image_shape: tuple[int, ...],
    num_states: int,
    weight_dtype: torch.dtype,
    autocast_dtype: torch.dtype | None,
    activation_checkpointing: bool,
    device_type: DeviceType,
    keep_gradients: bool,
) -> MemoryEstimate:
    """Forward and backward; the optimizer works in place, and then gradients are dropped unless `keep_gradients`.

    The model's own code runs, on fakes of its tensors: torch's kernels and autograd see shapes and types, and hold and
    drop them as they would real ones. `num_states` tensors of each trained parameter's shape are the optimizer's.
    """
    # A torch without CUDA can't run autograd on fakes of a GPU: there they are of no device, and GpuRules decides.
    fakes = torch.device("meta") if device_type == "cuda" else FakeTensorMode()
    rules = GpuRules(autocast_dtype) if device_type == "cuda" else _autocast(autocast_dtype)
    with fakes, _Lifetimes(_BLOCK_BYTES[device_type]) as memory:
        twin = _fake_copy(model, weight_dtype)
        checkpoint_blocks(twin, activation_checkpointing)
        trained = [parameter for parameter in twin.parameters() if parameter.requires_grad]
        network = memory.current
        buffers = sum(memory.rounded(buffer.untyped_storage().nbytes()) for buffer in twin.buffers())
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        gradients = memory.current - network
        if not keep_gradients:
            for parameter in trained:
                parameter.grad = None
        sizes = [memory.current]
        states = [torch.empty_like(parameter) for parameter in trained for _ in range(num_states)]
        sizes.append(memory.current)
        images = torch.empty(image_shape)
        labels = torch.zeros(image_shape[0], dtype=torch.long)
        sizes.append(memory.current)
        with rules:
            loss = F.cross_entropy(twin(images.to(weight_dtype)).float(), labels)
        sizes.append(memory.current)
        memory.phase = "backward"
        # Blocks that are computed again follow the rules, too.
        with GpuRules(autocast_dtype, keep_casts=False) if device_type == "cuda" else nullcontext():
            _backward(loss)
        del states
    optimizer_state, inputs, activations = (after - before for before, after in itertools.pairwise(sizes))
    return MemoryEstimate(
        network - buffers,
        buffers,
        gradients,
        optimizer_state,
        inputs,
        activations,
        memory.peak,
        memory.peak_phase,
    )


def _backward(loss: Tensor) -> None:
    """As loss.backward(), which would suspend torch function modes while it runs."""
    torch.autograd.Variable._execution_engine.run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _fake_copy(model: nn.Module, weight_dtype: torch.dtype) -> nn.Module:
    """The model in training mode, every parameter and buffer a fake, those of real numbers `weight_dtype`."""

    def fake(tensor: Tensor) -> Tensor:
        dtype = weight_dtype if tensor.is_floating_point() else tensor.dtype
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype)

    twins: dict[int, Any] = {id(p): nn.Parameter(fake(p), requires_grad=p.requires_grad) for p in model.parameters()}
    twins |= {id(buffer): fake(buffer) for buffer in model.buffers()}
    return copy.deepcopy(model, twins).train()


class _Lifetimes(TorchDispatchMode):
    """Follows every storage that an operator gives, from there to where nobody holds it any more."""

    def __init__(self, block_bytes: int) -> None:
        super().__init__()
        self.block_bytes = block_bytes
        self.phase: Phase = "forward"
        self.current = 0
        self.peak = 0
        self.peak_phase: Phase = "forward"
        self._alive: dict[int, weakref.ref[Any]] = {}

    def rounded(self, num_bytes: int) -> int:
        return -(-num_bytes // self.block_bytes) * self.block_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.0  # a draw of stochastic depth: the larger of the two numbers of samples that it may keep
        output = func(*args, **(kwargs or {}))
        for item in output if isinstance(output, tuple | list) else (output,):
            if isinstance(item, Tensor):
                self._follow(item.untyped_storage())
        return output

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._alive:
            return
        num_bytes = self.rounded(storage.nbytes())
        self._alive[key] = weakref.ref(storage, partial(self._end, key, num_bytes))
        self.current += num_bytes
        if self.current > self.peak:
            self.peak, self.peak_phase = self.current, self.phase

    def _end(self, key: int, num_bytes: int, _: object) -> None:
        del self._alive[key]
        self.current -= num_bytes
