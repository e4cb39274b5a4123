"""Parameters and multiply-adds of a model, and the FLOPs of training it; the convention is the package's."""

from typing import NamedTuple

from torch import nn

from vitlight.cost.recompute import recomputed_macs
from vitlight.cost.trace import build_on_meta, fvcore_and_torch_macs, meta_image, to_meta

__all__ = [
    "TrainingCost",
    "arch_forward_macs",
    "arch_params",
    "count_params",
    "forward_macs",
    "train_flops",
    "training_cost",
]


class TrainingCost(NamedTuple):
    """FLOPs of a training run: the nominal ones, which plots are made of, and apart from them those of work done twice."""

    train_flops: int
    recompute_flops: int


def count_params(model: nn.Module) -> int:
    """Parameters of the model, trainable or frozen, each shared one counted once; buffers are not counted."""
    return sum(parameter.numel() for parameter in model.parameters())


def train_flops(forward_macs: int, samples_seen: int) -> int:
    """FLOPs of training on `samples_seen` images: 3 x 2 x forward_macs x samples_seen, an exact integer."""
    return 3 * 2 * forward_macs * samples_seen


def training_cost(
    model: nn.Module, image_size: int, samples_seen: int, activation_checkpointing: bool = False
) -> TrainingCost:
    """`train_flops` of the model, and the FLOPs that activation checkpointing adds by running blocks again.

    The latter are counted, not estimated: the multiply-adds that a backward pass has more with checkpointing than
    without, stochastic depth off. They are a little less than the blocks' forward pass, because a block is run again
    only as far as its backward pass needs it. The model is left as it is. Errors as `forward_macs`.
    """
    nominal = train_flops(forward_macs(model, image_size), samples_seen)
    again = recomputed_macs(model, image_size) if activation_checkpointing else 0
    return TrainingCost(nominal, 2 * again * samples_seen)


def forward_macs(model: nn.Module, image_size: int, in_channels: int | None = None) -> int:
    """Multiply-adds of one forward pass of one image, by fvcore's FlopCountAnalysis, attention included.

    The model may be on any device, the meta device included, and is left as it is. `in_channels` is the model config's
    where it has one, else 3. The count is made a second time with torch's own formulas, and must come out the same.

    Raises InputError where the model doesn't take such an image; RuntimeError where the two counts differ, which means
    that the model has an operator that one of them doesn't know, and where a convolution pads by name ("same").
    """
    meta = to_meta(model).eval()
    by_fvcore, by_torch, left_out = fvcore_and_torch_macs(meta, meta_image(model, image_size, in_channels))
    if by_fvcore != by_torch:
        raise RuntimeError(
            f"fvcore counts {by_fvcore} MACs and torch {by_torch}; operators that fvcore left out: {', '.join(left_out)}"
        )
    return by_fvcore


def arch_forward_macs(arch: str, image_size: int, in_channels: int = 3, num_classes: int = 1000) -> int:
    """`forward_macs` of a named architecture, without allocating it. InputError as from `build_model`."""
    return forward_macs(build_on_meta(arch, image_size, num_classes, in_channels=in_channels), image_size, in_channels)


def arch_params(arch: str, image_size: int, in_channels: int = 3, num_classes: int = 1000) -> int:
    """`count_params` of a named architecture, without allocating it. InputError as from `build_model`."""
    return count_params(build_on_meta(arch, image_size, num_classes, in_channels=in_channels))
