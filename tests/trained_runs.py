"""Tiny trained models: runs, and files of weights whose logits are known."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.conftest import fit_args as fit_args_fixture
from vitlight.cli import main
from vitlight.models import build_model

__all__ = ["TINY_VIT", "random_model", "random_pixels", "train_tiny"]

TINY_VIT = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2, "posemb": "learned", "pool": "cls"}


def train_tiny(shards: Path, root: Path, *more: str, options: dict[str, Any] | None = None) -> Path:
    """The directory of a finished run in `root`, of a tiny ViT unless `more` says otherwise."""
    args = fit_args_fixture.__wrapped__(shards, root)  # the fixture's function, for another scope
    if options is not None:
        args.append(f"--model.model_options={json.dumps(options)}")
    assert main([*args, *more]) == 0
    (run,) = (root / "runs" / "tiny").iterdir()
    return run


def random_model(arch: str, num_classes: int, image_size: int, **options: Any) -> nn.Module:
    """With a classifier that isn't zero, and batch norms whose statistics are not those of no image."""
    torch.manual_seed(0)
    model = build_model(arch, num_classes, image_size, **options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("head.", "network.head.", "network.fc.", "network.classifier.")):
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.8, 1.2)
    return model.eval()


def random_pixels(count: int, channels: int, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)
