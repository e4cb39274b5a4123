"""What a model costs: parameters, multiply-adds of a forward pass, FLOPs of a training run.

The convention, stated here and used everywhere:

* A MAC is one multiply-add. A FLOP is half a MAC, so a forward pass is 2 x forward_macs FLOPs.
* `forward_macs` is for one image in evaluation mode, and counts matrix products and convolutions only: linear layers,
  convolutions, and both products of attention (queries with keys, weights with values). Biases, norms, weight
  standardisation, activations, softmax, pooling, position embeddings and relative biases are not counted.
* A backward pass costs two forward passes, so `train_flops` = 3 x 2 x forward_macs x samples_seen.

Papers differ: CoAtNet, EfficientNet and timm print MACs and call them FLOPs; Scaling ViT and SoViT print 2 x MACs.

Everything is counted on shapes alone, on the meta device: no weight or activation is allocated.
"""

import copy
import json
import math
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from vitlight.errors import InputError
from vitlight.models import arch_family, build_model, default_image_size, list_archs

__all__ = [
    "arch_forward_macs",
    "arch_params",
    "count_models",
    "count_params",
    "forward_macs",
    "model_table",
    "train_flops",
]


# Made anew by: python -c "from vitlight import cost; cost._TABLE.write_text(cost.dump_table(cost.count_models()))"
_TABLE = Path(__file__).parent / "models" / "table.json"


def dump_table(rows: list[dict[str, Any]]) -> str:
    """JSON with a line a row, so that a change of one architecture is a change of one line."""
    return "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"


def count_params(model: nn.Module) -> int:
    """Parameters of the model, trainable or frozen, each shared one counted once; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def train_flops(forward_macs: int, samples_seen: int) -> int:
    """FLOPs of training on `samples_seen` images: 3 x 2 x forward_macs x samples_seen, an exact integer."""
    return 3 * 2 * forward_macs * samples_seen


def forward_macs(model: nn.Module, image_size: int, in_channels: int | None = None) -> int:
    """Multiply-adds of one forward pass of one image, by fvcore's FlopCountAnalysis, attention included.

    The model may be on any device, the meta device included, and is left as it is. `in_channels` is the model config's
    where it has one, else 3. The count is made a second time with torch's own formulas, and must come out the same.

    Raises InputError where the model doesn't take such an image; RuntimeError where the two counts differ, which means
    that the model has an operator that one of them doesn't know, and where a convolution pads by name ("same").
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fvcore compiles a loss with torch.jit.script on import
        from fvcore.nn import FlopCountAnalysis

    meta = _to_meta(model).eval()
    image = _meta_image(model, image_size, in_channels)
    with torch.no_grad(), _ShapesOnly() as shapes, _TraceableConvolutions():
        analysis = FlopCountAnalysis(meta, image).set_op_handle("aten::scaled_dot_product_attention", _attention_macs)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        by_operator = analysis.by_operator()
    counted = int(sum(by_operator[operator] for operator in _FVCORE_OPERATORS))
    if counted != shapes.macs:
        raise RuntimeError(
            f"fvcore counts {counted} MACs and torch {shapes.macs}; operators that fvcore left out: "
            f"{', '.join(sorted(analysis.unsupported_ops()))}"
        )
    return counted


def arch_forward_macs(arch: str, image_size: int, in_channels: int = 3, num_classes: int = 1000) -> int:
    """`forward_macs` of a named architecture, without allocating it. InputError as from `build_model`."""
    return forward_macs(_build_on_meta(arch, image_size, in_channels, num_classes), image_size, in_channels)


def arch_params(arch: str, image_size: int, in_channels: int = 3, num_classes: int = 1000) -> int:
    """`count_params` of a named architecture, without allocating it. InputError as from `build_model`."""
    return count_params(_build_on_meta(arch, image_size, in_channels, num_classes))


def model_table(image_size: int | None = None) -> list[dict[str, Any]]:
    """One row for each listed architecture: arch, family, params, forward_macs, image_size and reason.

    At `image_size`, or at each architecture's own default resolution (224 or the multiple of the patch below it; 32 for
    the ladders). Where an architecture can't take `image_size`, params and forward_macs are None and `reason` says why;
    else `reason` is None. 1000 classes and 3 channels. The default table was counted when the architectures were last
    changed and is kept beside them (a test holds it equal to `count_models`); any other takes seconds to count.
    """
    return json.loads(_TABLE.read_text()) if image_size is None else count_models(image_size)


def count_models(image_size: int | None = None) -> list[dict[str, Any]]:
    """`model_table`, counted now, with torch's formulas alone and each operator run once for a given shape; a test holds
    it equal to `forward_macs`."""
    shapes = _ShapesOnly()
    rows = []
    for arch in list_archs():
        side = default_image_size(arch) if image_size is None else image_size
        row = {"arch": arch, "family": arch_family(arch), "params": None, "forward_macs": None, "image_size": side}
        try:
            model = _build_on_meta(arch, side).eval()
        except InputError as error:
            rows.append(row | {"reason": str(error)})
            continue
        image = _meta_image(model, side, None)
        shapes.macs = 0
        with torch.no_grad(), shapes:
            model(image)
        rows.append(row | {"params": count_params(model), "forward_macs": shapes.macs, "reason": None})
    return rows


# What fvcore calls the operators that are made of multiply-adds; it also counts norms, which are not.
_FVCORE_OPERATORS = ("conv", "linear", "addmm", "matmul", "bmm", "einsum", "scaled_dot_product_attention")


def _attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    """fvcore handler: q (..., N, d), k (..., M, d) and v (..., M, e) cost N * M * (d + e) for each leading index."""
    q, k, v = (value.type().sizes() for value in inputs[:3])
    return math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


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


class _ShapesOnly(TorchDispatchMode):
    """Runs operators on meta tensors, each once for given shapes, and adds up their MACs in `macs`.

    Meta kernels are Python that reads sizes, and while a trace is being recorded a size is a tensor, which they don't
    expect. Tracing belongs to a thread, so the kernels run on another one.
    """

    _known: ClassVar[dict[Any, tuple[int, Any]]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

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
        self.macs += macs
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


def _build_on_meta(arch: str, image_size: int, in_channels: int = 3, num_classes: int = 1000) -> nn.Module:
    with torch.device("meta"), _SkipInit():
        return build_model(arch, num_classes, image_size, in_channels=in_channels)


def _to_meta(model: nn.Module) -> nn.Module:
    """A copy of the model with parameters and buffers on meta."""
    twins: dict[int, Any] = {
        id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in model.parameters()
    }
    twins |= {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    return copy.deepcopy(model, twins)


def _meta_image(model: nn.Module, image_size: int, in_channels: int | None) -> Tensor:
    if in_channels is None:
        in_channels = getattr(getattr(model, "config", None), "in_channels", 3)
    return torch.empty(1, in_channels, image_size, image_size, device="meta")
