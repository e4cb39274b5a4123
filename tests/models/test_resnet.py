import pytest
import torch
from torch import nn

from vitlight.cost import forward_macs
from vitlight.models import ResNet, build_model
from vitlight.models.bit import StandardConv2d
from vitlight.models.resnet import Block


def on_meta(arch: str, image_size: int = 224, **overrides: object) -> nn.Module:
    with torch.device("meta"):
        return build_model(arch, 1000, image_size, **overrides)


@pytest.mark.parametrize(
    ("arch", "gmacs"),
    # torchvision's model table
    [("resnet18", 1.814), ("resnet34", 3.664), ("resnet50", 4.089), ("resnet101", 7.801), ("resnet152", 11.514)],
)
def test_published_macs(arch: str, gmacs: float) -> None:
    assert forward_macs(on_meta(arch), 224) / 1e9 == pytest.approx(gmacs, abs=6e-4)


@pytest.mark.parametrize(
    ("arch", "image_size", "millions", "gmacs"),
    # timm's results table, whose GMACs also hold norms and weight standardisation: 0.6 to 3.5 % above matrix products
    [
        ("bit_r50x1", 224, 25.55, 4.23),
        ("bit_r50x3", 448, 217.32, 145.7),
        ("bit_r101x1", 224, 44.54, 8.04),
        ("bit_r101x3", 448, 387.93, 280.33),
        ("bit_r152x2", 448, 236.34, 184.99),
        ("bit_r152x4", 480, 936.53, 844.84),
    ],
)
def test_published_bit(arch: str, image_size: int, millions: float, gmacs: float) -> None:
    model = on_meta(arch, image_size)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
    assert 0.965 < forward_macs(model, image_size) / 1e9 / gmacs < 1


def test_residual_branches_start_at_zero_unless_told() -> None:
    for zero_init_residual in (True, False):
        model = build_model("resnet_nano3", 10, 32, zero_init_residual=zero_init_residual)
        scales = {block.norms[-1].weight.abs().sum().item() for block in model.modules() if isinstance(block, Block)}
        assert scales == ({0.0} if zero_init_residual else {96.0, 192.0})


def test_bottleneck_strides_in_its_3x3() -> None:
    model = on_meta("resnet50")
    assert isinstance(model, ResNet)
    first = model.stages[1][0]
    assert [conv.stride for conv in first.convs] == [(1, 1), (2, 2), (1, 1)]


def test_standardised_kernels_have_mean_0_and_variance_1() -> None:
    torch.manual_seed(0)
    conv = StandardConv2d(3, 8, 3)
    nn.init.normal_(conv.weight, mean=5, std=3)
    x = torch.randn(2, 3, 6, 6)
    mean = conv.weight.mean((1, 2, 3), keepdim=True)
    variance = conv.weight.var((1, 2, 3), unbiased=False, keepdim=True)
    expected = nn.functional.conv2d(x, (conv.weight - mean) / torch.sqrt(variance + 1e-10), padding=1)
    torch.testing.assert_close(conv(x), expected, rtol=1e-4, atol=1e-4)


def test_small_stem_and_grids() -> None:
    model = build_model("resnet_nano1", 10, 28, in_channels=1)
    assert isinstance(model, ResNet)
    assert model.stem(torch.zeros(2, 1, 28, 28)).shape == (2, 16, 14, 14)
    assert model.features(torch.zeros(2, 1, 28, 28)).shape == (2, 80, 4, 4)
    assert model.eval()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_imagenet_stem_and_grids() -> None:
    with torch.device("meta"):
        for arch, width in (("resnet18", 512), ("bit_r50x2", 4096)):
            features = build_model(arch).features(torch.empty(1, 3, 224, 224))
            assert features.shape == (1, width, 7, 7)
