"""How much memory training a model takes, found on shapes alone: no weight or activation is allocated."""

from typing import Literal, get_args

import torch
from torch import nn

from vitlight.cost.lifetimes import DeviceType, MemoryEstimate, trace_step
from vitlight.cost.trace import build_on_meta, meta_image
from vitlight.errors import InputError

__all__ = ["MemoryEstimate", "Optimizer", "Precision", "estimate_memory", "largest_batch"]

Precision = Literal["32", "32-true", "bf16-mixed", "16-mixed", "bf16-true"]
Optimizer = Literal["adamw", "sgd"]

# Weights, and what autocast computes in; Lightning's names.
_DTYPES: dict[str, tuple[torch.dtype, torch.dtype | None]] = {
    "32": (torch.float32, None),
    "32-true": (torch.float32, None),
    "bf16-mixed": (torch.float32, torch.bfloat16),
    "16-mixed": (torch.float32, torch.float16),
    "bf16-true": (torch.bfloat16, None),
}
_MOST_IMAGES = 2**31 - 1
_NUM_STATES = {"adamw": 2, "sgd": 1}  # tensors a parameter: two moments; momentum


def estimate_memory(
    model: nn.Module | str,
    image_size: int,
    batch_size: int,
    precision: Precision = "32",
    optimizer: Optimizer = "adamw",
    activation_checkpointing: bool = False,
    device_type: DeviceType = "cpu",
    keep_gradients: bool = False,
) -> MemoryEstimate:
    """What one process takes for `batch_size` images of one forward and backward pass.

    They run once on fake tensors; optimizers are fused or otherwise work in place, and gradients are dropped after their
    step, as in `vitlight fit`. keep_gradients: they stand through the forward pass, as where several batches are
    accumulated, and under DDP, whose buckets hold them. `model` is an arch name, built with 1000 classes, or a
    module on any device, which is left as it is. On "cuda", tensors are of GPU allocations (512 bytes at least),
    autocast is the GPU's, and attention is a fused kernel; torch.compile keeps less than is counted here.

    Raises InputError for a precision, optimizer, device type or batch size that isn't one, where a batch norm would see
    one value a channel or a tensor is beyond what torch can address, and as `build_model`.
    """
    for name, value, options in (
        ("precision", precision, get_args(Precision)),
        ("optimizer", optimizer, get_args(Optimizer)),
        ("device_type", device_type, get_args(DeviceType)),
    ):
        if value not in options:
            raise InputError(f"{name}={value!r} is not one of {', '.join(options)}")
    if type(batch_size) is not int or not 1 <= batch_size <= _MOST_IMAGES:
        raise InputError(f"batch_size={batch_size!r} is not a whole number from 1 to {_MOST_IMAGES}")
    module = build_on_meta(model, image_size) if isinstance(model, str) else model
    weight_dtype, autocast_dtype = _DTYPES[precision]
    num_states = _NUM_STATES[optimizer]
    try:
        image_shape = tuple(meta_image(module, image_size, batch_size=batch_size).shape)
        return trace_step(
            module,
            image_shape,
            num_states,
            weight_dtype,
            autocast_dtype,
            activation_checkpointing,
            device_type,
            keep_gradients,
        )
    except RuntimeError as error:
        if "Storage size calculation overflowed" not in str(error):
            raise
        raise InputError(
            f"batch_size={batch_size} at image_size={image_size} makes a tensor of more than 2**63 bytes; "
            "it needs a smaller batch_size or image_size"
        ) from error
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            f"batch_size={batch_size} at image_size={image_size} leaves a batch norm one value a channel, "
            "of which it can't train; it needs a larger batch_size or image_size"
        ) from error


def largest_batch(
    model: nn.Module | str,
    image_size: int,
    memory_bytes: int,
    precision: Precision = "32",
    optimizer: Optimizer = "adamw",
    activation_checkpointing: bool = False,
    device_type: DeviceType = "cpu",
    keep_gradients: bool = False,
) -> int:
    """The most images a step whose estimated peak is at most `memory_bytes`; 0 where not one image fits.

    Leave room in `memory_bytes` for what `estimate_memory` doesn't count. Arguments and errors as there.
    """
    module = build_on_meta(model, image_size) if isinstance(model, str) else model

    def fits(batch_size: int) -> bool:
        estimate = estimate_memory(
            module,
            image_size,
            batch_size,
            precision,
            optimizer,
            activation_checkpointing,
            device_type,
            keep_gradients,
        )
        return estimate.peak_bytes <= memory_bytes

    if not fits(2):  # asked first: of one image, a batch norm over 1 x 1 positions can't train
        return int(fits(1))
    most, too_many = 2, 4
    while fits(too_many):
        most, too_many = too_many, 2 * too_many
    while too_many - most > 1:
        middle = (most + too_many) // 2
        most, too_many = (middle, too_many) if fits(middle) else (most, middle)
    return most
