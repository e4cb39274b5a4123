"""Small networks that were looked into, for the tests of what is written of them."""

from typing import Any

import torch

from vitlight.analysis.insight import Insight, inspect_network
from vitlight.models import build_model

__all__ = ["ARCHS", "look"]

ARCHS: dict[str, dict[str, Any]] = {
    "vit_nano1": {"pool": "cls", "posemb": "learned"},
    "coatnet_nano1": {},
    "resnet_nano1": {},
}


def look(arch: str, channels: int = 3, num_images: int = 5, **options: Any) -> Insight:
    """An insight into a fresh network whose attention is far from uniform, on images of bright squares."""
    torch.manual_seed(0)
    network = build_model(arch, image_size=28, num_classes=5, in_channels=channels, **ARCHS.get(arch, {}))
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "qkv.weight" in name or name.endswith("bias_table"):
                weight.mul_(5)
            elif not weight.any() and "norm" in name:
                weight.fill_(1)
    pixels = torch.randint(0, 90, (num_images, channels, 28, 28), dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        picture[:, 4 + i : 14 + i, 5 : 15 + 2 * i] += 150
    images = pixels / 127.5 - 1
    given = {"name": arch, "arch": arch, "source": f"a test's {arch}", "image_size": 28} | options
    return inspect_network(network, images, pixels, **given)
