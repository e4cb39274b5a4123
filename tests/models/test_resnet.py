import pytest
import torch
from torch import nn

from vitlight.cost import forward_macs
from vitlight.errors import InputError
from vitlight.models import BiT, BiTConfig, ResNet, build_config, build_model, set_activation_checkpointing
from vitlight.models.bit import Block as BiTBlock
from vitlight.models.bit import StandardConv2d, StemPool, standardised
from vitlight.models.resnet import Block


def on_meta(arch: str, image_size: int = 224, **overrides: object) -> nn.Module:
    with torch.device("meta"):
        return build_model(arch, 1000, image_size, **overrides)


def tiny_bit(**overrides: float) -> BiT:
    """A two-stage network of the smallest width."""
    torch.manual_seed(0)
    return BiT(BiTConfig((1, 2), 1, image_size=32, num_classes=10, **overrides))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arch", "millions", "gmacs"),
    # torchvision's model table; the deeper ones, the wide ones and BiT are in test_published.py
    [("resnet18", 11.690, 1.814), ("resnet34", 21.798, 3.664)],
)
def test_published_sizes(arch: str, millions: float, gmacs: float) -> None:
    model = on_meta(arch)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=6e-4)
    assert forward_macs(model, 224) / 1e9 == pytest.approx(gmacs, abs=6e-4)


def test_the_middle_of_a_wide_bottleneck_is_twice_as_wide() -> None:
    model = on_meta("wide_resnet50_2")
    assert isinstance(model, ResNet)
    assert [conv.weight.shape[:2] for conv in model.stages[0][1].convs] == [(128, 256), (128, 128), (256, 128)]


def test_a_basic_block_has_no_bottleneck_to_widen() -> None:
    with pytest.raises(InputError, match="bottleneck_factor=2 has no meaning with block_type='basic'; set it to 1"):
        build_config("resnet18", bottleneck_factor=2)


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


def test_a_kernel_is_standardised_in_its_own_memory_format() -> None:
    torch.manual_seed(0)
    kernel = torch.randn(8, 6, 3, 3)
    first = standardised(kernel, 1e-10)
    last = standardised(kernel.contiguous(memory_format=torch.channels_last), 1e-10)
    assert first.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, first)


def test_weight_eps_reaches_every_convolution() -> None:
    convolutions = [m for m in tiny_bit(weight_eps=1e-3).modules() if isinstance(m, StandardConv2d)]
    assert len(convolutions) == 1 + 3 * 3 + 2
    assert {convolution.eps for convolution in convolutions} == {1e-3}
    kernel = torch.tensor([-1e-2, 1e-2]).view(1, 2, 1, 1)  # of variance 1e-4
    torch.testing.assert_close(standardised(kernel, 1e-3), kernel / 1.1e-3**0.5)
    with pytest.raises(InputError, match="weight_eps=0 must be a finite number above 0"):
        build_config("bit_r50x1", weight_eps=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("side", [5, 6])
def test_the_stem_pools_over_a_border_of_zeros(side: int, memory_format: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = -torch.rand(2, 4, side, side).contiguous(memory_format=memory_format)
    out = StemPool()(x)
    expected = torch.nn.functional.max_pool2d(torch.nn.functional.pad(x.contiguous(), (1, 1, 1, 1)), 3, 2)
    assert torch.equal(out, expected)
    assert not out[:, :, 0].any()
    assert out[:, :, 1, 1].max() < 0
    assert out.is_contiguous(memory_format=memory_format)


def blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, Block | BiTBlock)]


@pytest.mark.parametrize("name", ["resnet", "bit"])
def test_a_block_is_its_shortcut_where_dropped_and_leaves_its_input_alone(name: str) -> None:
    torch.manual_seed(0)
    model = tiny_bit() if name == "bit" else build_model("resnet_nano3", 10, 32, zero_init_residual=False)
    block = blocks(model)[-1]
    assert isinstance(block, Block | BiTBlock)
    block.drop_path.rate = 0.5
    x = torch.randn(4, 512 if name == "bit" else 192, 4, 4)
    before = x.clone()
    shortcut = x.relu() if name == "resnet" else x
    is_dropped = (block(x) == shortcut).flatten(1).all(1)
    assert is_dropped.sum() == 2
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", ["resnet", "bit"])
def test_checkpointing_changes_neither_gradients_nor_statistics(name: str) -> None:
    torch.manual_seed(0)
    images, states = torch.randn(4, 3, 32, 32), []
    calls: list[nn.Module] = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = tiny_bit() if name == "bit" else build_model("resnet_nano3", 10, 32, zero_init_residual=False)
        nn.init.normal_(model.head.weight)  # type: ignore[arg-type]
        set_activation_checkpointing(model, enabled)
        for block in blocks(model):
            block.register_forward_pre_hook(lambda module, _: calls.append(module))
        model(images).square().sum().backward()
        states.append((model.state_dict(), {n: p.grad for n, p in model.named_parameters()}))
        assert len(calls) == (3 if enabled else 1) * len(blocks(model))  # one of the first model, two of the second
    (plain, plain_gradients), (again, gradients) = states
    assert all(torch.equal(again[n], tensor) for n, tensor in plain.items())
    for n, gradient in plain_gradients.items():
        torch.testing.assert_close(gradients[n], gradient)


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
