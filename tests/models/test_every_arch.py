"""What holds for each listed architecture at its own widths: deep ones are cut to a block or two a stage, images small."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from vitlight.models import (
    BiT,
    BiTConfig,
    CoAtNet,
    CoAtNetConfig,
    ResNet,
    ResNetConfig,
    ViT,
    ViTConfig,
    build_config,
    default_image_size,
    list_archs,
)

NUM_CLASSES = 7


def small(arch: str) -> nn.Module:
    """The architecture at its own widths, with few blocks and the smallest image that leaves it a grid; on meta."""
    config = build_config(arch, NUM_CLASSES, default_image_size(arch))
    with torch.device("meta"):
        match config:
            case ViTConfig():
                return ViT(replace(config, depth=min(config.depth, 2), image_size=2 * config.stride))
            case CoAtNetConfig():
                depths = (config.depths[0], *(1 for _ in config.depths[1:]))
                return CoAtNet(replace(config, depths=depths, image_size=64))
            case ResNetConfig():
                return ResNet(replace(config, depths=tuple(min(depth, 2) for depth in config.depths), image_size=64))
            case BiTConfig():
                return BiT(replace(config, depths=tuple(1 for _ in config.depths), image_size=64))
    raise AssertionError(arch)


def filled(model: nn.Module) -> nn.Module:
    """The model on the CPU with random weights, none of them zero; filling is quicker than initialising."""
    model = model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        is_scale = parameter.ndim == 1 and name.endswith("weight")
        noise = parameter.detach().uniform_(-1, 1, generator=generator)
        noise.mul_(0.1 if parameter.ndim == 1 else (3 / max(parameter[0].numel(), 1)) ** 0.5).add_(float(is_scale))
    for name, buffer in model.named_buffers():
        if "displacements" in name:
            side = int(buffer.numel() ** 0.25)
            buffer.random_(0, (2 * side - 1) ** 2, generator=generator)
        else:
            buffer.fill_(1.0 if name.endswith("running_var") else 0.0)
    return model


@pytest.mark.parametrize("arch", list_archs())
def test_output_gradients_and_the_order_of_a_batch(arch: str) -> None:
    model = filled(small(arch))
    size = model.config.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        logits = model.eval()(images)
        torch.testing.assert_close(model(images[order]), logits[order], rtol=1e-4, atol=1e-4)
    assert logits.shape == (3, NUM_CLASSES)
    assert torch.isfinite(logits).all()
    assert (logits.std(0) > 0).all(), "the images make no difference"
    loss: Tensor = model.train()(images).square().sum()
    loss.backward()
    dead = [
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
    ]
    assert dead == []
