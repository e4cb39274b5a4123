"""timm's names (read in timm 1.0.31), which DeiT shares for its ViTs and torchvision for its ResNets.

ViT and hybrids: `vision_transformer`, `vision_transformer_hybrid`; ResNet: `resnet`; BiT: `resnetv2_*_bit`; CoAtNet:
`coatnet_N_224` of `maxxvit`; a `timm:` model has timm's own names, whatever they are.

What neither a name nor a shape can show must be set alike on both sides:

* timm's BiT standardises kernels with eps 1e-8 (`weight_eps`);
* timm's CoAtNets have `coatnet.TIMM_OPTIONS`;
* the GroupNorms of timm's hybrids have eps 1e-5 (`backbone_norm_eps`), ours 1e-6, like Google's, whose weights they are;
* timm of today has no `pre_logits`, the representation layer of a ViT: one can be read from older files, not written.
"""

import math
import re
from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.bit import BiT
from vitlight.models.coatnet import CoAtNet, CoAtNetConfig
from vitlight.models.external import TimmModel
from vitlight.models.layouts.entry import Entry, mapped, same
from vitlight.models.resnet import ResNet
from vitlight.models.vit import ViT, sincos2d

__all__ = ["NAME", "check_writable", "entries", "ignored", "recognises"]

NAME = "timm"

# Indices into the bias tables, which older files hold beside them.
ignored = (r".*\.relative_position_index",)

_THEIRS = re.compile(r"patch_embed\.proj\.weight|layer1\.0\.conv1\.weight|stages\.\d+\.blocks\..*")

# Our names and timm's; the first pattern that fits the beginning of a name is used.
Renaming = tuple[tuple[str, str], ...]

_VIT: Renaming = (
    (r"patch_embed\.", "patch_embed.proj."),
    (r"class_token", "cls_token"),
    (r"registers", "reg_token"),
    (r"posemb", "pos_embed"),
    (r"blocks\.(\d+)\.scale([12])", r"blocks.\1.ls\2.gamma"),
    (r"attention_pool\.probe", "attn_pool.latent"),
    (r"attention_pool\.", "attn_pool."),
    (r"representation\.", "pre_logits.fc."),
    (r"backbone\.stages\.(\d+)\.(\d+)\.shortcut\.", r"patch_embed.backbone.stages.\1.blocks.\2.downsample.conv."),
    (r"backbone\.stages\.(\d+)\.(\d+)\.shortcut_norm\.", r"patch_embed.backbone.stages.\1.blocks.\2.downsample.norm."),
    (r"backbone\.stages\.(\d+)\.(\d+)\.", r"patch_embed.backbone.stages.\1.blocks.\2."),
    (r"backbone\.stem\.", "patch_embed.backbone.stem.conv."),
    (r"backbone\.stem_norm\.", "patch_embed.backbone.stem.norm."),
)
# A hybrid of the stem alone has no modules around it in timm.
_STEM_ONLY: Renaming = (
    (r"backbone\.stem\.", "patch_embed.backbone.conv."),
    (r"backbone\.stem_norm\.", "patch_embed.backbone.norm."),
)
_NORM_AFTER_POOL: Renaming = ((r"norm\.", "fc_norm."),)

_BIT: Renaming = (
    (r"stem\.0\.", "stem.conv."),
    (r"stages\.(\d+)\.(\d+)\.shortcut\.", r"stages.\1.blocks.\2.downsample.conv."),
    (r"stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"head\.", "head.fc."),
)

_COATNET: Renaming = (
    (r"stem\.0\.", "stem.conv1."),
    (r"stem\.1\.", "stem.norm1."),
    (r"stem\.3\.", "stem.conv2."),
    (r"norm\.", "head.norm."),
    (r"hidden\.", "head.pre_logits.fc."),
    (r"head\.", "head.fc."),
)
_MBCONV: Renaming = (
    (r"norm1\.", "pre_norm."),
    (r"expand\.", "conv1_1x1."),
    (r"norm2\.", "norm1."),
    (r"depthwise\.", "conv2_kxk."),
    (r"norm3\.", "norm2."),
    (r"project\.", "conv3_1x1."),
    (r"shortcut\.", "shortcut.expand."),
)
_TRANSFORMER: Renaming = (
    (r"bias_table", "attn.rel_pos.relative_position_bias_table"),
    (r"shortcut\.", "shortcut.expand."),
)
_STRIDING: Renaming = ((r"norm1\.", "norm1.norm."),)


def recognises(names: Collection[str]) -> bool:
    """Whether one of timm's ViTs, ResNets, BiTs or CoAtNets has such names."""
    return any(_THEIRS.fullmatch(name) for name in names)


def entries(model: nn.Module) -> list[Entry]:
    """Every tensor of `model` and timm's that holds it. InputError for a model or an option that timm doesn't have."""
    match model:
        case ViT():
            return _vit(model)
        case ResNet():
            return _resnet(model)
        case BiT():
            return _bit(model)
        case CoAtNet():
            return _coatnet(model)
        case TimmModel():
            return [same(name, name.removeprefix("network.")) for name in model.state_dict()]
    raise InputError(f"layout='timm' has no names for {type(model).__name__}; use layout='vitlight'")


def check_writable(model: nn.Module) -> None:
    """InputError for a ViT with a representation layer, which timm of today drops when it loads a checkpoint."""
    if isinstance(model, ViT) and model.config.representation_layer:
        raise InputError("layout 'timm' can't be written with representation_layer=True: timm 1.0.31 has no such layer")


def _renamed(name: str, renaming: Renaming) -> str:
    for pattern, replacement in renaming:
        theirs, count = re.subn("^" + pattern, replacement, name)
        if count:
            return theirs
    return name


def _refuse(allowed: bool, rule: str, **option: Any) -> None:
    if not allowed:
        [(name, value)] = option.items()
        raise InputError(
            f"{name}={value!r} has no counterpart in layout='timm', {rule}; set {name}, or keep layout='vitlight'"
        )


# ViT ----------------------------------------------------------------------------------------------------------------


def _vit(model: ViT) -> list[Entry]:
    config = model.config
    _refuse(
        not (config.num_registers and "class_token" in model.state_dict() and config.posemb_on_class_token)
        or config.posemb == "none",
        "whose registers have no positions only where the class token has none",
        posemb_on_class_token=config.posemb_on_class_token,
    )
    renaming = _VIT
    if config.norm_position == "after_pool":
        renaming = _NORM_AFTER_POOL + renaming
    names = list(model.state_dict())
    if not any(name.startswith("backbone.stages.") for name in names):
        renaming = _STEM_ONLY + renaming
    result = [same(name, _renamed(name, renaming)) for name in names]
    if config.posemb == "sincos2d":
        result.append(_fixed_posemb(model.get_buffer("posemb")))
    return result


def _fixed_posemb(table: Tensor) -> Entry:
    """timm has no fixed embedding: ours is written as if it were learned, and what is read must be a fixed one too."""

    def to_ours(theirs: list[Tensor]) -> list[Tensor]:
        num_rows, width = theirs[0].shape[1:]
        side = math.isqrt(num_rows)
        fixed = F.pad(sincos2d(side, width), (0, 0, num_rows - side**2, 0))
        if not torch.allclose(theirs[0].float().cpu(), fixed, atol=1e-2):  # a bfloat16 file rounds by up to 4e-3
            raise InputError(
                "pos_embed holds a learned position embedding, and posemb='sincos2d' has a fixed one; "
                "build the model with posemb='learned'"
            )
        return []

    return Entry((), ("pos_embed",), to_ours, lambda _: [table])


# Convolutional networks ---------------------------------------------------------------------------------------------


def _resnet(model: ResNet) -> list[Entry]:
    config = model.config
    _refuse(config.stem == "imagenet", "which has only the 7x7 stem", stem=config.stem)
    _refuse(len(config.depths) == 4, "which has four stages", depths=config.depths)
    return [same(name, _resnet_name(name)) for name in model.state_dict()]


def _resnet_name(name: str) -> str:
    """Stages and convolutions are counted from 1 there."""
    part, *rest = name.split(".")
    if part == "head":
        return ".".join(["fc", *rest])
    if part == "stem":
        return ".".join([{"0": "conv1", "1": "bn1"}[rest[0]], *rest[1:]])
    stage, block, kind, index, *leaf = rest
    place = (
        f"downsample.{index}" if kind == "shortcut" else f"{ {'convs': 'conv', 'norms': 'bn'}[kind] }{int(index) + 1}"
    )
    return ".".join([f"layer{int(stage) + 1}", block, place, *leaf])


def _bit(model: BiT) -> list[Entry]:
    _refuse(model.config.num_groups == 32, "whose GroupNorm has 32 groups", num_groups=model.config.num_groups)
    as_conv = {"head.weight"}
    return [(_as_conv if name in as_conv else same)(name, _renamed(name, _BIT)) for name in model.state_dict()]


def _as_conv(ours: str, theirs: str) -> Entry:
    """A matrix (D_out, D_in) that is a 1x1 convolution there."""
    return mapped(ours, theirs, lambda kernel: kernel.flatten(1), lambda matrix: matrix[..., None, None])


# CoAtNet ------------------------------------------------------------------------------------------------------------


def _coatnet(model: CoAtNet) -> list[Entry]:
    config = model.config
    names = list(model.state_dict())
    _refuse(len(config.widths) == 5, "which has a stem and four stages", widths=config.widths)
    _refuse(config.depths[0] == 2, "whose stem has two convolutions", depths=config.depths)
    _refuse(set(config.strides) == {2}, "whose stages all have stride 2", strides=config.strides)
    position = "after_pool" if config.hidden_head else "before_pool"
    _refuse(
        config.norm_position == position,
        f"whose norm stands {position} with hidden_head={config.hidden_head}",
        norm_position=config.norm_position,
    )
    return [_coatnet_entry(name, config) for name in names]


def _coatnet_entry(name: str, config: CoAtNetConfig) -> Entry:
    match = re.fullmatch(r"stages\.(\d+)\.(\d+)\.(.*)", name)
    if match is None:
        if name.startswith("norm.") and not config.hidden_head:
            return same(name, name)
        return same(name, _renamed(name, _COATNET))
    stage, block, inner = int(match[1]), int(match[2]), match[3]
    width_in, width = config.widths[stage : stage + 2]
    _refuse(
        not (inner.startswith("shortcut.") and width_in == width),
        f"which projects a shortcut only where the width changes, and stage {stage} is {width} wide like the one before",
        shortcut_projection=config.shortcut_projection,
    )
    prefix = f"stages.{stage}.blocks.{block}."
    if config.block_types[stage + 1] == "mbconv":
        theirs = prefix + _renamed(inner, _MBCONV)
        return (_as_conv if inner in ("se.fc1.weight", "se.fc2.weight") else same)(name, theirs)
    theirs = prefix + _renamed(inner, _TRANSFORMER + (_STRIDING if block == 0 else ()))
    if inner == "bias_table":
        return _bias_table(name, theirs)
    if inner in ("attn.qkv.weight", "attn.qkv.bias"):
        return _rows_by_head(name, theirs, width // config.head_dim)
    is_matrix = inner.endswith(".weight") and not inner.startswith("norm")
    return (_as_conv if is_matrix else same)(name, theirs)


def _rows_by_head(ours: str, theirs: str, num_heads: int) -> Entry:
    """Our rows are q, k, v, each over all heads; there they are head by head, each with its q, k, v."""

    def to_ours(tensor: Tensor) -> Tensor:
        rows = tensor.unflatten(0, (num_heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        return rows.flatten(1) if rows.ndim > 1 else rows

    def to_theirs(tensor: Tensor) -> Tensor:
        rows = tensor.unflatten(0, (3, num_heads, -1)).transpose(0, 1).flatten(0, 2)
        return rows[..., None, None] if rows.ndim > 1 else rows

    return mapped(ours, theirs, to_ours, to_theirs)


def _bias_table(ours: str, theirs: str) -> Entry:
    """(heads, 2H-1, 2W-1) by displacement from query to key; there (places, heads), from key to query."""

    def to_ours(table: Tensor) -> Tensor:
        side = math.isqrt(len(table))
        if side**2 != len(table):
            raise InputError(f"{theirs} has {len(table)} places, which is no square")
        return table.unflatten(0, (side, side)).permute(2, 0, 1).flip(1, 2)

    return mapped(ours, theirs, to_ours, lambda table: table.flip(1, 2).permute(1, 2, 0).flatten(0, 1))
