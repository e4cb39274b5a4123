"""Published model sizes (published.csv), which of our models each names, and what other counters count."""

import csv
import re
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vitlight.cost.trace import ShapesOnly, build_on_meta, meta_image
from vitlight.models.bit import StandardConv2d
from vitlight.models.coatnet import TIMM_OPTIONS
from vitlight.models.hybrid import SameConv2d


@dataclass(frozen=True)
class Published:
    """A row; numbers as printed, "" where nothing is. `flops_counted_by` is whose counter, see test_published.py."""

    family: str
    variant: str
    resolution: str
    params_M: str
    flops_G: str
    flops_convention: str
    flops_counted_by: str
    train_epochs: str
    train_exaflops: str
    source: str


def read_rows() -> list[Published]:
    with (Path(__file__).parent / "published.csv").open(newline="") as file:
        return [Published(**row) for row in csv.DictReader(file)]


_PLAIN = {"pool": "gap", "posemb": "sincos2d", "representation_layer": True}
_DEIT3 = {"layer_scale": 1e-6, "posemb_on_class_token": False}
_DEPTHWISE = {"downsample": "depthwise"}

_VITS = ("Ti/16", "S/32", "S/16", "S/8", "B/32", "B/28", "B/16", "L/32", "L/16", "L/14", "H/14")
_TIMM_SIZES = {"tiny": "ti", "small": "s", "medium": "m", "base": "b", "large": "l"}
_BIT_SIZES = ("50x1", "50x2", "50x3", "101x1", "101x3", "152x1", "152x2", "152x4", "200x3")
_BIT_NAMES = (
    *("ResNet{} (BiT)", "R{} (1000-class head)", "resnetv2_{}_bit"),
    *("BiT-S R{}", "BiT-M R{}", "BiT-L R{}", "BiT-M-R{}", "BiT-M-R{} distilled"),
)

# What a table prints -> our arch and settings. Of the names of timm and torchvision, what stands before resolution and
# weights: "timm vit_tiny_patch16_384.augreg_in21k_ft_in1k" is looked up as "vit_tiny_patch16".
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"CoAtNet-{i}": (f"coatnet_{i}", {}) for i in range(8)},
    **{f"CoAtNet-{i} strided-DConv": (f"coatnet_{i}", _DEPTHWISE) for i in range(4)},
    **{f"CoAtNet-4 +PT-RA{more}": ("coatnet_4", {}) for more in ("", "-E150")},
    **{f"coatnet_{i}": (f"coatnet_{i}", TIMM_OPTIONS) for i in range(6)},
    **{f"ViT-{size}": (f"vit_{size.lower().replace('/', '')}", {}) for size in _VITS},
    **{f"ViT_{size.replace('/', '_')}": (f"vit_{size.lower().replace('/', '')}", {}) for size in _VITS},
    "ViT-s/28": ("vit_xs28", {}),
    "ViT-g/14": ("vit_giant14", {}),
    "ViT-G/14": ("vit_gigantic14", {}),
    "SoViT-400m/14": ("vit_so400m14", {"pool": "map"}),
    "ViT-S/16 plain (GAP, sincos2d, tanh-MLP head)": ("vit_s16", _PLAIN),
    **{f"DeiT-{size}/16": (f"vit_{size.lower()}16", {}) for size in ("Ti", "B")},
    **{f"DeiT-III ViT-{size}/16": (f"vit_{size.lower()}16", _DEIT3) for size in "SMBL"},
    **{
        f"vit_{name}_patch{patch}": (f"vit_{size}{patch}", {})
        for name, size in _TIMM_SIZES.items()
        for patch in (8, 16, 32)
    },
    **{f"deit_{name}_patch16": (f"vit_{size}16", {}) for name, size in _TIMM_SIZES.items()},
    **{f"deit3_{name}_patch16": (f"vit_{size}16", _DEIT3) for name, size in _TIMM_SIZES.items()},
    "deit3_huge_patch14": ("vit_h14", _DEIT3),
    **{name: ("vit_r_ti16", {}) for name in ("R+Ti/16", "vit_tiny_r_s16_p8")},
    **{name: ("vit_r26_s32", {}) for name in ("R26+S/32", "vit_small_r26_s32")},
    **{name: ("vit_r50_b16", {}) for name in ("R50+B/16", "vit_base_r50_s16")},
    "R50+L/32": ("vit_r50_l32", {}),
    "R50x1+ViT-B/32": ("vit_r50_b32", {}),
    **{f"{name}{depth}": (f"resnet{depth}", {}) for name in ("resnet", "ResNet") for depth in (50, 101, 152)},
    **{f"ResNet-{depth} (BN), JFT": (f"resnet{depth}", {}) for depth in (50, 101, 152)},
    "ResNet-50 (NFNet-paper baseline)": ("resnet50", {}),
    **{f"Wide_ResNet{depth}_2": (f"wide_resnet{depth}_2", {}) for depth in (50, 101)},
    **{pattern.format(size): (f"bit_r{size}", {}) for pattern in _BIT_NAMES for size in _BIT_SIZES},
    "ResNet-50 GN+WS": ("bit_r50x1", {}),
}

# Rows of models that we don't have, by what their key begins with, and why.
_EXCLUDED = {
    "DeiT's distillation token has a head of its own": (
        "deit_tiny_d",
        "deit_small_d",
        "deit_base_d",
        "DeiT-S d",
        "DeiT-B d",
    ),
    "timm's own network: expansion from the input width, SiLU, average pooling": (
        "coatnet_0_rw",
        "coatnet_1_rw",
        "coatnet_2_rw",
    ),
    "timm's own network: as above, smaller or with batch norm everywhere": ("coatnet_nano_rw", "coatnet_bn_0_rw"),
    "timm's own network: the bias comes from an MLP": ("coatnet_rmlp_",),
    "timm's own network: ConvNeXt blocks in place of MBConv": ("coatnext_",),
    "timm's own network: ResNet-D stem": ("resnetv2_50d_",),
    "ResNet-v2 with batch norm": ("resnetv2_101", "ResNet-50 BN"),
    "ResNet-v2 with group norm but no weight standardisation": ("ResNet-50 GN",),
    "no size printed, and no ResNet-v1 of depth 200 in the v1 paper": ("ResNet-200 (BN), JFT",),
    "squeeze-and-excitation, ResNet-D stem and other depths": ("ResNet-RS-",),
}
EXCLUDED = {start: reason for reason, starts in _EXCLUDED.items() for start in starts}


def key(variant: str) -> str:
    """What stands in MODELS or EXCLUDED for a printed name."""
    if variant.startswith("timm "):
        return re.sub(r"_(224|384)$", "", variant.removeprefix("timm ").partition(".")[0])
    return variant.removeprefix("torchvision ").partition(" IMAGENET1K")[0] if "torchvision" in variant else variant


def excluded(variant: str) -> str | None:
    """Why we have no such model; None where we have."""
    if key(variant) in MODELS:
        return None
    reasons = [reason for start, reason in EXCLUDED.items() if key(variant).startswith(start)]
    assert reasons, f"{variant} is neither in MODELS nor in EXCLUDED"
    return reasons[0]


class Counts(NamedTuple):
    """Of one image. `head` and `pool` are the parameters of the classifier and of attention pooling."""

    params: int
    head: int
    pool: int
    macs: int
    fvcore_norms: int
    padding_macs: int


@cache
def count(arch: str, overrides: tuple[tuple[str, Any], ...], resolution: int) -> Counts:
    """A patch that doesn't divide the resolution leaves out what is over: 384 px hold no more than 27 patches of 14."""
    model = build_on_meta(arch, _divisible(arch, resolution), **dict(overrides)).eval()
    with torch.no_grad(), ShapesOnly() as shapes, _OtherCounts() as others:
        model(meta_image(model, _divisible(arch, resolution)))
    params = Counter({name: p.numel() for name, p in model.named_parameters()})
    head = sum(n for name, n in params.items() if name.startswith("head."))
    pool = sum(n for name, n in params.items() if name.startswith("attention_pool."))
    standardised = [m.weight for m in model.modules() if isinstance(m, StandardConv2d | SameConv2d)]
    norms = others.norms + 4 * sum(weight.numel() for weight in standardised)
    return Counts(params.total(), head, pool, shapes.macs, norms, others.padding_macs)


def _divisible(arch: str, resolution: int) -> int:
    patch = re.fullmatch(r"vit_[a-z0-9]*[a-z](14|28)", arch)
    return resolution // int(patch[1]) * int(patch[1]) if patch else resolution


class _OtherCounts(TorchDispatchMode):
    """What fvcore guesses for norms (5 operations an element; 2 for a batch norm in evaluation), and the multiply-adds of
    convolutions with padding, which XLA leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = 0
        self.padding_macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        aten = torch.ops.aten
        if func in (aten.native_layer_norm.default, aten.native_group_norm.default):
            self.norms += 5 * args[0].numel()
        elif func in (aten.native_batch_norm.default, aten.cudnn_batch_norm.default) and args[5] is False:
            self.norms += 2 * args[0].numel()
        elif func is aten.convolution.default:
            images, weight, _, stride, padding = args[:5]
            taps = inside = 1
            for axis in (0, 1):
                side, out, kernel = images.shape[axis + 2], output.shape[axis + 2], weight.shape[axis + 2]
                taps *= out * kernel
                starts = (o * stride[axis] - padding[axis] for o in range(out))
                inside *= sum(max(0, min(start + kernel, side) - max(start, 0)) for start in starts)
            self.padding_macs += weight.shape[0] * weight.shape[1] * (taps - inside)
        return output
