"""What every architecture must do, whatever its family."""

import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models import (
    BiT,
    BiTConfig,
    CoAtNet,
    arch_family,
    build_config,
    build_model,
    default_image_size,
    list_archs,
)

# Parameters at the default resolution, 3 channels and 1000 classes. resnet* equal torchvision's published counts.
PARAMS = {
    "vit_nano1": 60_264,
    "vit_nano2": 193_448,
    "vit_nano3": 661_096,
    "vit_nano4": 2_643_400,
    "vit_xs28": 5_615_336,
    "vit_xs16": 5_243_624,
    "vit_ti16": 5_717_416,
    "vit_s32": 22_878_952,
    "vit_s16": 22_050_664,
    "vit_s8": 22_055_272,
    "vit_m16": 38_837_736,
    "vit_b32": 88_224_232,
    "vit_b28": 87_682_792,
    "vit_b16": 86_567_656,
    "vit_b8": 86_576_872,
    "vit_so150m14": 131_066_840,
    "vit_l32": 306_535_400,
    "vit_l16": 304_326_632,
    "vit_so400m14": 413_597_656,
    "vit_h14": 632_045_800,
    "vit_giant14": 1_012_611_432,
    "vit_gigantic14": 1_844_440_680,
    "vit_e14": 3_807_214_312,
    "vit_r_ti16": 6_337_704,
    "vit_r26_s32": 36_431_912,
    "vit_r50_b32": 110_945_832,
    "vit_r50_b16": 98_659_112,
    "vit_r50_l32": 328_994_856,
    "vit_r50_l16": 316_483_624,
    "coatnet_nano1": 99_539,
    "coatnet_nano2": 381_724,
    "coatnet_nano3": 1_381_500,
    "coatnet_nano4": 5_477_180,
    "coatnet_0": 25_036_948,
    "coatnet_1": 42_225_904,
    "coatnet_2": 74_701_512,
    "coatnet_3": 167_003_704,
    "coatnet_4": 275_462_728,
    "coatnet_5": 687_053_336,
    "coatnet_6": 1_471_162_672,
    "coatnet_7": 2_441_973_112,
    "coatnet_0_cccc": 24_697_096,
    "coatnet_0_ccct": 24_673_768,
    "coatnet_0_cttt": 24_378_346,
    "coatnet_0_vitrel": 20_592_076,
    "coatnet_1_cccc": 42_330_328,
    "coatnet_1_ccct": 43_424_296,
    "coatnet_1_cttt": 42_673_480,
    "coatnet_1_vitrel": 40_260_490,
    "coatnet_2_cccc": 74_742_440,
    "coatnet_2_ccct": 76_725_352,
    "coatnet_2_cttt": 75_503_080,
    "coatnet_2_vitrel": 76_026_420,
    "coatnet_3_cccc": 166_770_184,
    "coatnet_3_ccct": 169_820_104,
    "coatnet_3_cttt": 163_525_852,
    "coatnet_3_vitrel": 169_589_744,
    "resnet_nano1": 179_672,
    "resnet_nano2": 564_120,
    "resnet_nano3": 1_687_656,
    "resnet_nano4": 6_756_104,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "wide_resnet50_2": 68_883_240,
    "wide_resnet101_2": 126_886_696,
    "bit_r50x1": 25_549_352,
    "bit_r50x2": 97_988_712,
    "bit_r50x3": 217_319_080,
    "bit_r101x1": 44_541_480,
    "bit_r101x3": 387_934_888,
    "bit_r152x1": 60_185_128,
    "bit_r152x2": 236_335_208,
    "bit_r152x4": 936_533_224,
    "bit_r200x3": 568_633_000,
}
LADDERS = [name for name in PARAMS if "_nano" in name]
SMALL = ["vit_nano1", "coatnet_nano1", "resnet_nano1", "bit"]


def small(name: str, image_size: int = 28, **overrides: object) -> nn.Module:
    """A model small enough to run; "bit" is a two-stage network of the smallest width."""
    if name == "bit":
        config = BiTConfig((1, 1), 1, image_size=image_size, num_classes=10, in_channels=1)
        return BiT(config)
    return build_model(name, 10, image_size, **{"in_channels": 1, **overrides})


def unzero(model: nn.Module) -> nn.Module:
    """The model with everything that starts at zero moved away from it, so that gradients and logits show through."""
    for parameter in model.parameters():
        if not parameter.detach().any():
            nn.init.normal_(parameter, std=0.5)
    return model


def test_every_architecture_has_its_count() -> None:
    assert list(PARAMS) == list_archs()


@pytest.mark.parametrize("arch", PARAMS)
def test_parameter_count_and_meta_build(arch: str) -> None:
    with torch.device("meta"):
        model = build_model(arch, image_size=default_image_size(arch))
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMS[arch]
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))


def test_families() -> None:
    families = {arch: arch_family(arch) for arch in list_archs()}
    assert families["vit_b16"] == "vit"
    assert families["coatnet_7"] == "coatnet"
    assert families["resnet50"] == families["bit_r101x3"] == families["resnet_nano2"] == "resnet"
    assert all(family == arch.split("_")[0] for arch, family in families.items() if arch[0] in "vc")


@pytest.mark.parametrize("arch", LADDERS)
@pytest.mark.parametrize("image_size", [28, 32, 48, 64])
def test_ladders_take_small_images(arch: str, image_size: int) -> None:
    with torch.device("meta"):
        logits = build_model(arch, 10, image_size, in_channels=1).eval()(torch.empty(2, 1, image_size, image_size))
    assert logits.shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_logits_are_float32_under_autocast_and_start_at_zero(name: str) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        logits = small(name)(torch.randn(2, 1, 28, 28))
    assert logits.dtype == torch.float32
    assert torch.equal(logits, torch.zeros(2, 10))  # so the first loss is ln(10)


@pytest.mark.parametrize("name", SMALL)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    torch.manual_seed(0)
    model = unzero(small(name))
    images = torch.randn(4, 1, 28, 28).to(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)(images).square().sum().backward()
    dead = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []


@pytest.mark.parametrize("name", SMALL)
def test_logits_do_not_depend_on_the_rest_of_the_batch(name: str) -> None:
    torch.manual_seed(0)
    model = unzero(small(name)).eval()
    images = torch.randn(5, 1, 28, 28)
    order = torch.tensor([3, 0, 4, 1, 2])
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(model(images[order]), logits[order], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(images[2:3]), logits[2:3], rtol=1e-4, atol=1e-4)
    assert logits.std(0).min() > 1e-3  # they do depend on the image


@pytest.mark.parametrize("name", SMALL[:3])
def test_drop_path_acts_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    plain, dropped = unzero(small(name)), small(name, drop_path_rate=0.9)
    dropped.load_state_dict(plain.state_dict())
    images = torch.randn(8, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), dropped.eval()(images))
        assert not torch.equal(dropped.train()(images), dropped.train()(images))


def drop_rates(model: nn.Module) -> Iterator[float]:
    return (module.rate for module in model.modules() if type(module).__name__ == "DropPath")


def test_drop_path_grows_linearly() -> None:
    assert list(drop_rates(build_model("vit_nano1", 10, 32, drop_path_rate=0.2))) == pytest.approx([0.0, 0.1, 0.2])
    rates = list(drop_rates(build_model("coatnet_nano2", 10, 32, drop_path_rate=0.3)))
    assert rates == pytest.approx([0.0, 0.15, 0.3])


def test_overrides_reach_the_config() -> None:
    model = build_model("coatnet_nano1", 10, 32, widths=[16, 16, 32, 64], downsample="depthwise", in_channels=4)
    assert isinstance(model, CoAtNet)
    assert model.config.widths == (16, 16, 32, 64)
    assert model.config.downsample == "depthwise"
    assert model(torch.zeros(1, 4, 32, 32)).shape == (1, 10)
    with pytest.raises(FrozenInstanceError):
        model.config.in_channels = 3


@pytest.mark.parametrize(
    ("arch", "overrides", "message"),
    [
        ("vit_b61", {}, "image_size=224 is not a multiple of the patch size 61; use 183 or 244"),
        ("vit_s16", {"image_size": 8}, "image_size=8 is not a multiple of the patch size 16; use 16"),
        ("vit_s16", {"image_size": 0}, "image_size=0 must be a whole number of at least 1"),
        ("vitb16", {}, "arch 'vitb16' is unknown; did you mean vit_b16"),
        ("coatnet_8", {}, "arch 'coatnet_8' is unknown; did you mean coatnet_"),
        ("bit_r50x5", {}, "arch 'bit_r50x5' is unknown; did you mean bit_r50x"),
        ("zzz", {}, "arch 'zzz' is unknown; `vitlight models` lists them"),
        ("vit_s16", {"drop_path": 0.1}, "vit_s16 has no setting 'drop_path'; did you mean drop_path_rate"),
        ("vit_s16", {"drop_path_rate": 1.0}, "drop_path_rate=1.0 must lie in [0, 1)"),
        ("vit_s16", {"pool": "avg"}, "pool='avg' must be one of 'cls', 'gap', 'map'"),
        ("vit_s16", {"num_heads": 5}, "width=384 is not a multiple of num_heads=5"),
        ("vit_s16", {"num_classes": 0}, "num_classes=0 must be a whole number of at least 1"),
        ("vit_s16", {"patch_size": [4]}, "patch_size=(4,) must be a whole number of at least 1"),
        ("vit_s16", {"layer_scale": True}, "layer_scale=True must be a finite number above 0"),
        ("vit_s16", {"layer_scale": 1e300}, "layer_scale=1e+300 must be a finite number above 0"),
        ("vit_s16", {"qk_norm": 1}, "qk_norm=1 must be true or false"),
        ("coatnet_0", {"relative_attention": "no"}, "relative_attention='no' must be true or false"),
        ("coatnet_0", {"hidden_head": 0}, "hidden_head=0 must be true or false"),
        ("coatnet_0", {"widths": [64, 96, 192, 384, 0]}, "must be made of whole numbers of at least 1"),
        ("bit_r50x1", {"weight_eps": "x"}, "weight_eps='x' must be a finite number above 0"),
        ("resnet50", {"depths": [3, 4, 6]}, "depths=(3, 4, 6), widths=(64, 128, 256, 512), strides=(1, 2, 2, 2) must"),
        ("resnet50", {"widths": 64}, "widths=64, strides=(1, 2, 2, 2) must be lists with one entry a stage"),
        ("coatnet_0", {"head_dim": 100}, "widths[3]=384 is not a multiple of head_dim=100"),
        ("coatnet_0", {"block_types": ["conv", "mbconv", "mlp", "transformer", "transformer"]}, "block_types[2]='mlp'"),
        ("bit_r50x1", {"num_groups": 48}, "num_groups=48 does not divide the width 64"),
    ],
)
def test_bad_input_is_one_line_that_names_it(arch: str, overrides: dict[str, object], message: str) -> None:
    with pytest.raises(InputError) as error:
        build_config(arch, **overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SMALL)
def test_images_of_another_size_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"images are \(2, 1, 32, 32\), but the model was built for \(B, 1, 28, 28\)"):
        small(name)(torch.zeros(2, 1, 32, 32))


def test_import_is_light() -> None:
    heavy = ("lightning", "wandb", "webdataset", "fvcore", "pandas", "torch._dynamo", "sympy")
    code = f"import sys, vitlight.models; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_any_patch_size_can_be_named() -> None:
    model = build_model("vit_ti56", 10)
    assert model.patch_embed.weight.shape == (192, 3, 56, 56)
    assert default_image_size("vit_ti56") == 224
    assert default_image_size("vit_so400m16") == 224
    assert default_image_size("vit_ti100") == 200


def mean_loss(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    return nn.functional.cross_entropy(model(images), labels).item()


@pytest.mark.parametrize("name", SMALL[:3])
def test_a_few_steps_learn(name: str) -> None:
    torch.manual_seed(0)
    model = small(name)
    images, labels = torch.randn(16, 1, 28, 28), torch.arange(16) % 10
    assert mean_loss(model, images, labels) == pytest.approx(math.log(10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    assert mean_loss(model, images, labels) < math.log(10) / 2


@pytest.mark.parametrize("name", ["vit_nano1", "coatnet_nano1"])
def test_nothing_writes_into_what_a_hook_has_seen(name: str) -> None:
    model = unzero(small(name)).eval()
    seen: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        module.register_forward_hook(lambda _module, _args, output: seen.append((output, output.clone())))
        module.register_full_backward_hook(lambda *_arguments: None)
    model(torch.randn(2, 1, 28, 28, requires_grad=True)).sum().backward()
    assert len(seen) > 20
    assert all(torch.equal(output, then) for output, then in seen)


def test_a_whole_number_is_a_layer_scale() -> None:
    assert build_model("vit_nano1", 10, 32, layer_scale=1).blocks[0].scale1.dtype == torch.float32
