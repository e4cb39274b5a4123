"""The effective receptive field (Luo et al. 2016, arXiv 1701.04128): the pixels that a unit in the middle really depends on.

Of each stage's output the unit at the centre of the map is taken, its channels summed, and the sum's gradient computed with
respect to the image. The field is the absolute value of that gradient, summed over the colours, scaled to sum to 1 for
each image, and then the mean over the images. (Gradients of a trained network depend on the image and have either sign;
absolute values keep images from cancelling each other.) Radii are about the field's own centre of mass: how far a unit's
place lies from that of its cell depends on how each convolution is padded.

Shape letters: B images, C channels, H W pixels, N tokens, D width.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitlight.analysis.insight.capture import plain_network, still
from vitlight.models.bit import BiT
from vitlight.models.coatnet import CoAtNet
from vitlight.models.resnet import ResNet
from vitlight.models.vit import ViT

__all__ = ["ReceptiveField", "Stage", "effective_receptive_fields", "mass_radius", "stages"]

_MOST_STAGES = 7  # of a ViT's blocks, evenly spread
_PART = 8  # images at once


@dataclass(frozen=True)
class Stage:
    """A module whose output is looked at. `stride`: pixels between neighbouring units; `grid`: rows and columns of them;
    depth: from 0, the image, to 1, the last stage, by the blocks before it. channels_last: its output is (B, H, W, D), or
    (B, N, D) where `num_prefix` tokens (None for maps) come before the grid. num_channels: D, where an output that isn't
    (B, D, H, W) shows only by its shape."""

    label: str
    module: nn.Module
    stride: int
    depth: float
    channels_last: bool = False
    num_prefix: int | None = None
    grid: tuple[int, int] | None = None
    num_channels: int | None = None


@dataclass(frozen=True)
class ReceptiveField:
    """field: (H, W), sums to 1. centre: its centre of mass, row and column in pixels. radius_50, radius_90:
    pixels round it that hold such a share of the field."""

    label: str
    stride: int
    depth: float
    field: Tensor
    centre: tuple[float, float]
    radius_50: float
    radius_90: float


def stages(network: nn.Module) -> list[Stage]:
    """Where the receptive field is measured: after the stem and each stage of a CoAtNet, ResNet or BiT, after the patch
    embedding and the blocks of a ViT (seven of them where there are more), and where timm says its models' stages end."""
    network = plain_network(network)
    if isinstance(network, ViT):
        config = network.config
        grid, prefix = (config.grid, config.grid), config.num_prefix_tokens
        first = Stage("patches", network.patch_embed, config.stride, 0.0, True, 0, grid)
        return [first, *_token_stages(list(network.blocks), config.stride, prefix, grid)]
    if isinstance(network, CoAtNet | ResNet | BiT):
        strides = _strides(network)
        depths = [0, *(len(cast(nn.ModuleList, stage)) for stage in network.stages)]
        done = [sum(depths[: i + 1]) / sum(depths) for i in range(len(depths))]
        modules: list[nn.Module] = [network.stem, *(cast(nn.ModuleList, stage)[-1] for stage in network.stages)]
        last = [isinstance(network, CoAtNet) and kind == "transformer" for kind in _kinds(network)]
        labels = ["stem", *(f"stage {i}" for i in range(1, len(modules)))]
        return [Stage(*each) for each in zip(labels, modules, strides, done, last, strict=True)]
    return _timm_stages(cast(Any, network).network)


def _token_stages(blocks: list[nn.Module], stride: int, prefix: int, grid: tuple[int, int]) -> list[Stage]:
    count = len(blocks)
    last = min(count, _MOST_STAGES) - 1
    chosen = sorted({round(i * (count - 1) / max(last, 1)) for i in range(last + 1)})
    return [Stage(f"block {i}", blocks[i], stride, (i + 1) / count, True, prefix, grid) for i in chosen]


def _kinds(network: CoAtNet | ResNet | BiT) -> Sequence[str]:
    return network.config.block_types if isinstance(network, CoAtNet) else ["conv"] * (1 + len(network.stages))


def _strides(network: CoAtNet | ResNet | BiT) -> list[int]:
    """After the stem and each stage."""
    if isinstance(network, CoAtNet):
        steps: list[int] = list(network.config.strides)
    elif isinstance(network, ResNet):
        stem = 4 if network.config.stem == "imagenet" else network.config.stem_stride
        steps = [stem, *network.config.strides]
    else:
        steps = [4, 1, *(2 for _ in network.config.depths[1:])]
    total = 1
    return [total := total * step for step in steps]


def _timm_stages(inner: Any) -> list[Stage]:
    named = dict(inner.named_modules())
    if type(inner).__name__ == "VisionTransformer":
        grid, stride = tuple(inner.patch_embed.grid_size), inner.patch_embed.patch_size[0]
        return _token_stages(list(inner.blocks), stride, inner.num_prefix_tokens, grid)
    info = [entry for entry in getattr(inner, "feature_info", []) if isinstance(entry, dict)]
    entries = [entry for entry in info if entry.get("module") in named]
    # Swin, MambaOut and others say so; of SAM and VOLO the shapes alone tell.
    last = getattr(inner, "output_fmt", None) == "NHWC"
    return [
        Stage(
            *(entry["module"], named[entry["module"]], entry["reduction"], (i + 1) / len(entries), last),
            num_channels=entry.get("num_chs"),
        )
        for i, entry in enumerate(entries)
    ]


def effective_receptive_fields(network: nn.Module, images: Tensor) -> list[ReceptiveField]:
    """One field a stage for images (B, C, H, W), as the network takes them. Leaves the network and its gradients as
    they are.

    Memory: a forward pass that is kept for the gradient, of eight images at a time. A stage that gives no map (of some of
    timm's models) is left out.
    """
    network = plain_network(network)
    looked_at = stages(network)
    sums: dict[int, Tensor] = {}
    wanted = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        for part in images.split(_PART):
            for i, field in _fields_of(network, looked_at, part).items():
                sums[i] = sums[i] + field if i in sums else field
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
    found = []
    for i, total in sorted(sums.items()):
        stage, field = looked_at[i], total / len(images)
        centre = _centre_of_mass(field)
        radii = [mass_radius(field, centre, share) for share in (0.5, 0.9)]
        found.append(ReceptiveField(stage.label, stage.stride, stage.depth, field, centre, *radii))
    return found


def _centre_of_mass(field: Tensor) -> tuple[float, float]:
    """Row and column; NaN where all is 0."""
    whole = field.double()
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in field.shape)
    total = whole.sum()
    return float((whole.sum(1) @ rows) / total), float((whole.sum(0) @ columns) / total)


def _fields_of(network: nn.Module, looked_at: Sequence[Stage], images: Tensor) -> dict[int, Tensor]:
    """By stage: the field of its middle unit, summed over these images, (H, W)."""
    outputs: dict[int, Tensor] = {}

    def keep(i: int) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                outputs[i] = output

        return hook

    images = images.detach().clone().requires_grad_()
    with still(network), torch.enable_grad(), ExitStack() as stack:
        for i, stage in enumerate(looked_at):
            stack.callback(stage.module.register_forward_hook(keep(i)).remove)
        network(images)
    found = {}
    for i, output in outputs.items():
        values = _middle(output, looked_at[i])
        if values is None:
            continue
        (gradient,) = torch.autograd.grad(values.sum(), images, retain_graph=True)
        size = gradient.abs().sum(1).cpu().double()  # (B, H, W); on the host: Apple's GPUs have no float64
        size = size / size.sum((1, 2), keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        found[i] = size.sum(0).float()
    return found


def _middle(output: Tensor, stage: Stage) -> Tensor | None:
    """Channels (B, D) of the middle unit, of an even number the one after the middle; None where there is no map."""
    if stage.num_prefix is not None and stage.grid is not None:
        row, column = stage.grid[0] // 2, stage.grid[1] // 2
        return output[:, stage.num_prefix + row * stage.grid[1] + column]
    if output.ndim != 4:
        return None
    is_last = stage.channels_last or output.shape[1] != stage.num_channels == output.shape[3]
    maps = output.permute(0, 3, 1, 2) if is_last else output
    return maps[:, :, maps.shape[2] // 2, maps.shape[3] // 2]


def mass_radius(field: Tensor, centre: tuple[float, float], share: float) -> float:
    """The smallest radius in pixels, round `centre` (row, column; pixel middles are whole numbers), of a disk that
    holds this share of a field (H, W) of entries of at least 0; NaN where all are 0. A pixel is in the disk if its
    middle is."""
    rows = torch.arange(field.shape[0], dtype=torch.float64)[:, None] - centre[0]
    columns = torch.arange(field.shape[1], dtype=torch.float64)[None, :] - centre[1]
    distance, order = (rows.square() + columns.square()).sqrt().flatten().sort()
    held = field.double().flatten()[order].cumsum(0)
    if not held[-1] > 0:
        return float("nan")
    return float(distance[int(torch.searchsorted(held, share * held[-1] * (1 - 1e-12)))])
