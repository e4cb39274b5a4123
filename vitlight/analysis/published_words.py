"""How papers write models, families and pretraining data, in this project's words."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

__all__ = [
    "PRETRAIN_IMAGES",
    "family_of_arch",
    "flops_per_mac",
    "known_sizes",
    "name_arch",
    "name_family",
    "name_pretrain_data",
]

_TABLE = Path(__file__).parents[1] / "models" / "table.json"

# Distinct images. ImageNet-1k: its training set. ImageNet-21k: image-net.org's release of 2011. JFT-300M: 303M after
# Dosovitskiy et al. (arXiv 2010.11929), section 4.1. JFT-3B: "nearly 3 billion", Zhai et al. (arXiv 2106.04560).
PRETRAIN_IMAGES = {
    "imagenet1k": 1_281_167,
    "imagenet21k": 14_197_122,
    "jft300m": 303_000_000,
    "jft3b": 3_000_000_000,
}
# The largest data first: "ImageNet-21K 90 ep -> ImageNet-1K" was pretrained on ImageNet-21k.
_PRETRAIN_DATA = (
    ("jft300m_unlabelled", r"jft-?300m unlabelled"),
    ("jft4b", r"jft-?4b"),
    ("jft3b", r"jft-?3b"),
    ("jft1b", r"jft-?1b"),
    ("jft300m", r"jft-?300m"),
    ("jft30m", r"jft-?30m"),
    ("instagram3.6b", r"swag|ig 3\.6b"),
    ("imagenet21k", r"(imagenet|in|\bi)-?2[12]k|\b2[12]k\b"),
    ("imagenet12k", r"(imagenet|in)-?12k"),
    ("imagenet1k", r"(imagenet|in|\bi)-?1k|\b1k\b"),
)
_FAMILIES = {
    "bit/resnet-v2": "bit",
    "resnet-v1": "resnet",
    "resnet-v2": "resnet",
    "efficientnet-v2": "efficientnetv2",
}
_VIT_SIZES = {"s": "xs", "g": "giant", "G": "gigantic"}  # the others are our names in capitals
_ARCHS = (
    (r"(?:ViT-)?(?P<size>Ti|S|s|M|B|L|H|g|G)/(?P<patch>\d+)", "vit_{size}{patch}"),
    (r"(?P<size>SoViT-\d+m)/(?P<patch>\d+)", "vit_{size}{patch}"),
    (r"R(?P<depth>\d*)\+(?P<size>Ti|S|B|L)/(?P<patch>\d+)", "vit_r{depth}_{size}{patch}"),
    (r"R50x1\+ViT-(?P<size>B|L)/(?P<patch>\d+)", "vit_r50_{size}{patch}"),
    (r"CoAtNet-(?P<depth>\d)", "coatnet_{depth}"),
    (r"(?:BiT-[SML][- ])?R(?P<depth>\d+)x(?P<width>\d)(?: \(1000-class head\))?", "bit_r{depth}x{width}"),
    (r"ResNet(?P<depth>\d+)x(?P<width>\d)(?: \(BiT\))?", "bit_r{depth}x{width}"),
    (r"torchvision ResNet(?P<depth>\d+)(?: .*)?", "resnet{depth}"),
    (r"torchvision Wide_ResNet(?P<depth>\d+)_2(?: .*)?", "wide_resnet{depth}_2"),
    (r"torchvision ViT_(?P<size>[BLH])_(?P<patch>\d+)(?: .*)?", "vit_{size}{patch}"),
    (r"timm (?P<name>\S+)", "timm:{name}"),
)


def name_pretrain_data(text: str) -> str | None:
    """`imagenet1k`, `imagenet21k`, `jft300m`, ...: the largest data that the text says a model has seen; None for none."""
    lowered = text.lower()
    return next((name for name, pattern in _PRETRAIN_DATA if re.search(pattern, lowered)), None)


def name_family(text: str) -> str:
    """A published family in the words of `family`: lower case, `coatnet`, `vit`, `resnet`, `bit`, `efficientnetv2`, ..."""
    lowered = text.strip().lower()
    return _FAMILIES.get(lowered, lowered)


def name_arch(variant: str) -> str | None:
    """The `arch` that builds a published model: `vit_l16` for `L/16` and `ViT-L/16`, `timm:NAME` for `timm NAME`; None
    where there is none of that very shape. `s` is Zhai et al.'s size of 256 (arXiv 2106.04560, Table 2), our `xs`."""
    for pattern, arch in _ARCHS:
        match = re.fullmatch(pattern, variant.strip())
        if match is None:
            continue
        parts = match.groupdict()
        if size := parts.get("size"):
            parts["size"] = _VIT_SIZES.get(size, size.removeprefix("SoViT-").lower())
            if size.startswith("SoViT"):
                parts["size"] = "so" + parts["size"]
        name = arch.format(**parts)
        return name if name.startswith("timm:") or name in known_sizes() else None
    return None


@cache
def known_sizes() -> dict[str, dict[str, Any]]:
    """arch -> params, forward_macs, image_size and family of every listed architecture, with 1000 classes."""
    return {row["arch"]: row for row in json.loads(_TABLE.read_text())}


def family_of_arch(arch: str) -> str | None:
    """The `family` of any arch, without building it; of timm's and unknown models their name's leading letters."""
    if arch in known_sizes():
        return str(known_sizes()[arch]["family"])
    leading = re.match(r"[A-Za-z]+", arch.removeprefix("timm:"))
    if leading is None:
        return None
    return "resnet" if re.match(r"bit_r\d", arch) else leading[0].lower()


def flops_per_mac(convention: str) -> int | None:
    """1 where a source calls multiply-adds FLOPs (`MACs`), 2 where it counts both (`2xMACs`, `FLOPs`), None where its
    words say neither."""
    words = re.sub(r"[\s×*]", lambda found: "x" if found[0].strip() else "", convention.strip().lower())
    if re.search(r"2x?g?macs?", words) or re.match(r"(about)?g?flops?", words):
        return 2
    return 1 if re.match(r"(about)?(g?macs?|multiply-adds?|madds?)", words) else None
