"""Counting on shapes alone: a model on the meta device, operators that run on sizes, and multiply-adds by operator.

Two counters that share nothing but the shapes: fvcore's, over a recorded graph, and torch's own formulas, over the
operators as they run.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitlight.errors import InputError
from vitlight.models import build_model, set_activation_checkpointing

__all__ = [
    "ShapesOnly",
    "build_on_meta",
    "checkpoint_blocks",
    "fvcore_and_torch_macs",
    "macs_by_module",
    "meta_image",
    "to_meta",
]


def fvcore_and_torch_macs(meta: nn.Module, image: Tensor) -> tuple[int, int, list[str]]:
    """MACs of one forward pass by fvcore and by torch's formulas, and the operators that fvcore left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fvcore compiles a loss with torch.jit.script on import
        from fvcore.nn import FlopCountAnalysis

    with torch.no_grad(), ShapesOnly() as shapes, _TraceableConvolutions():
        analysis = FlopCountAnalysis(meta, image).set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.set_op_handle("aten::einsum", _einsum_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
    return (
        int(sum(by_operator[operator] for operator in _FVCORE_OPERATORS)),
        shapes.macs,
        sorted(analysis.unsupported_ops()),
    )


def macs_by_module(meta: nn.Module, image: Tensor) -> Counter[str]:
    """MACs of one forward pass by torch's formulas, each under the path of the innermost module that it ran in."""
    with torch.no_grad(), ShapesOnly() as shapes, _scopes(meta, shapes):
        meta(image)
    return shapes.macs_in


@contextmanager
def _scopes(model: nn.Module, shapes: "ShapesOnly") -> Iterator[None]:
    """Inside, `shapes` knows which module runs."""
    handles = []
    for path, module in model.named_modules():
        # `path` is bound now: the loop's variable moves on.
        handles.append(module.register_forward_pre_hook(lambda *_, path=path: shapes.scope.append(path)))
        handles.append(module.register_forward_hook(lambda *_: shapes.leave()))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# What fvcore calls the operators that are made of multiply-adds; it also counts norms, which are not.
_FVCORE_OPERATORS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", "scaled_dot_product_attention")


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore handler: q (..., N, d), k (..., M, d) and v (..., M, e) cost N * M * (d + e) for each leading index."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


def _einsum_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore handler, for two operands: the product of all sizes that the equation names. fvcore's own rounds it."""
    terms = inputs[0].toIValue().replace(" ", "").partition("->")[0].split(",")
    shapes = [value.type().sizes() for value in inputs[1].node().inputs()]
    sizes = {
        letter: size
        for term, shape in zip(terms, shapes, strict=True)
        for letter, size in zip(term, shape, strict=True)
    }
    return math.prod(sizes.values())


class _Layout(NamedTuple):
    """A tensor but for its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


def _layout(tensor: Tensor) -> _Layout:
    return _Layout(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)


def _empty(layout: _Layout) -> Tensor:
    return torch.empty_strided(layout.shape, layout.stride, dtype=layout.dtype, device=layout.device)


def _swap(output: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """An operator's output, which may be a list, with `function` applied to whatever in it is a `kind`."""
    if isinstance(output, kind):
        return function(output)
    return [_swap(item, kind, function) for item in output] if isinstance(output, list | tuple) else output


class ShapesOnly(TorchDispatchMode):
    """Runs operators on meta tensors, each once for given shapes, and adds up their MACs: `macs`, and `macs_in` by scope.

    Meta kernels are Python that reads sizes, and while a trace is being recorded a size is a tensor, which they don't
    expect. Tracing belongs to a thread, so the kernels run on another one.
    """

    _known: ClassVar[dict[Any, tuple[int, Any]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0
        self.macs_in: Counter[str] = Counter()
        self.scope = [""]

    def leave(self) -> None:
        """Forget the innermost scope, which `scope.append` entered."""
        self.scope.pop()

    def __enter__(self) -> Self:
        self._thread = ThreadPoolExecutor(1)
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        self._thread.shutdown()  # no thread stays behind for a loader's worker processes to trip over
        super().__exit__(*exception)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        key, has_meta = _signature((func, args, kwargs or {}))
        if not has_meta:
            return func(*args, **(kwargs or {}))
        if key not in self._known:
            self._known[key] = self._thread.submit(_run_and_count, func, args, kwargs or {}).result()
        macs, output = self._known[key]
        if macs:
            self.macs += macs
            self.macs_in[self.scope[-1]] += macs
        return _swap(output, _Layout, _empty)


def _signature(x: Any) -> tuple[Any, bool]:
    """A hashable stand-in for nested arguments, tensors replaced by their layouts; and whether any is on meta."""
    if isinstance(x, Tensor):
        return _layout(x), x.is_meta
    if isinstance(x, dict):
        x = tuple(x.items())
    if isinstance(x, list | tuple):
        items = [_signature(item) for item in x]
        return tuple(key for key, _ in items), any(is_meta for _, is_meta in items)
    return x, False


def _run_and_count(func: Any, args: Any, kwargs: Any) -> tuple[int, Any]:
    """MACs of one operator call, and its output with tensors replaced by their layouts."""
    aten = torch.ops.aten
    if func is aten._convolution.default:  # as _TraceableConvolutions calls it; it has no meta kernel of its own
        func, args = aten.convolution.default, args[:9]
    with torch.no_grad():
        output = func(*args, **kwargs)
    formula = flop_registry.get(func.overloadpacket)
    macs = formula(*args, **kwargs, out_val=output) // 2 if formula else 0
    return macs, _swap(output, Tensor, _layout)


class _TraceableConvolutions(TorchFunctionMode):
    """Calls convolutions by the one name under which a trace records them, which on meta they'd never come to have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CONVOLUTIONS:
            return _traceable_convolution(_CONVOLUTIONS[func], *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}  # and over how many dimensions


def _traceable_convolution(
    num_dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    if isinstance(padding, str):
        raise RuntimeError(f"a convolution with padding={padding!r} can't be traced on meta; give it in numbers")
    stride, padding, dilation = (
        x if isinstance(x, list | tuple) else (x,) * num_dims for x in (stride, padding, dilation)
    )
    flags = (False, False, True, True)  # benchmark, deterministic, cudnn_enabled, allow_tf32: without meaning on meta
    return torch._convolution(input, weight, bias, stride, padding, dilation, False, (0,) * num_dims, groups, *flags)


class _SkipInit(TorchFunctionMode):
    """Leaves out operations in place, of which a meta tensor keeps nothing; they are half the time of building one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and name != "requires_grad_":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def build_on_meta(arch: str, image_size: int, num_classes: int = 1000, **overrides: Any) -> nn.Module:
    """`build_model` without allocating anything, and without the time of initialising; arguments and errors as there."""
    with torch.device("meta"), _SkipInit():
        return build_model(arch, num_classes, image_size, **overrides)


def to_meta(model: nn.Module) -> nn.Module:
    """A copy of the model with parameters and buffers on meta."""
    twins: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=p.requires_grad) for p in model.parameters()
    }
    twins |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, twins)


def checkpoint_blocks(model: nn.Module, enabled: bool) -> None:
    """`set_activation_checkpointing`, where there is something to set. InputError for a model that isn't `build_model`'s."""
    if hasattr(model, "activation_checkpointing"):
        set_activation_checkpointing(model, enabled)
    elif enabled:
        raise InputError(f"activation_checkpointing=True: {type(model).__name__} is not a model of build_model")


def meta_image(model: nn.Module, image_size: int, in_channels: int | None = None, batch_size: int = 1) -> Tensor:
    """Images (B, C, H, W) on meta, with the channels of the model's config where it has one, else 3."""
    if in_channels is None:
        in_channels = getattr(getattr(model, "config", None), "in_channels", 3)
    return torch.empty(batch_size, in_channels, image_size, image_size, device="meta")
