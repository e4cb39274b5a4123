"""Models of timm by name: built, checked, trained and counted as our own."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tests.reference_libraries import reference
from vitlight.cost import count_params, forward_macs
from vitlight.errors import InputError
from vitlight.models import (
    TimmConfig,
    TimmModel,
    arch_family,
    build_config,
    build_model,
    default_image_size,
    external,
    list_archs,
    set_activation_checkpointing,
)

# Whole models of a few hundred thousand parameters, one of each kind that the paper's CNNs are compared with.
TINY = ["timm:test_efficientnet", "timm:test_convnext", "timm:test_nfnet"]


@pytest.fixture(autouse=True)
def timm() -> Any:
    return reference("timm")


def small(arch: str, **overrides: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(arch, 10, 32, **overrides)


def test_config_says_what_was_built() -> None:
    model = small("timm:test_efficientnet", in_channels=1, drop_path_rate=0.25, options={"global_pool": "max"})
    assert isinstance(model, TimmModel)
    assert model.config == TimmConfig(
        "test_efficientnet", 32, 1, 10, drop_path_rate=0.25, options={"global_pool": "max"}
    )
    rates = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2])
    assert model.network.global_pool.pool_type == "max"
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arch", "family", "image_size"),
    [
        ("timm:efficientnet_b0", "efficientnet", 224),
        ("timm:tf_efficientnetv2_s", "efficientnetv2", 300),
        ("timm:convnextv2_atto", "convnextv2", 224),
        ("timm:dm_nfnet_f0", "nfnet", 192),
        ("timm:resnext50_32x4d", "resnext", 224),
        ("timm:wide_resnet50_2", "resnet", 224),
        ("timm:vit_small_patch16_384", "vit", 384),
    ],
)
def test_family_and_resolution(arch: str, family: str, image_size: int) -> None:
    assert arch_family(arch) == family
    assert default_image_size(arch) == image_size


@pytest.mark.parametrize(
    ("arch", "millions", "gmacs"),
    [
        ("timm:efficientnet_b0", 5.288_548, 0.39),  # arXiv 1905.11946, Table 2: 5.3M, 0.39B
        ("timm:convnext_tiny", 28.589_128, 4.47),  # arXiv 2201.03545, Table 9: 29M, 4.5G; timm's results: 28.59, 4.47
        ("timm:resnext50_32x4d", 25.028_904, 4.23),  # torchvision's model table
    ],
)
def test_published_sizes(timm: Any, arch: str, millions: float, gmacs: float) -> None:
    with torch.device("meta"):
        model = build_model(arch)
        theirs = timm.create_model(arch.removeprefix("timm:"))
    assert count_params(model) == sum(parameter.numel() for parameter in theirs.parameters()) == millions * 1e6
    assert forward_macs(model, 224) / 1e9 == pytest.approx(gmacs, rel=0.012)  # printed with two digits


def test_nfnet_is_counted_without_its_weight_standardisation() -> None:
    with torch.device("meta"):
        model = build_model("timm:dm_nfnet_f0", image_size=192)
    assert count_params(model) == 71_489_284
    assert 0.96 < forward_macs(model, 192) / 7.21e9 < 1  # timm's results: 71.49M, 7.21 GMACs, standardisation included


def test_resolution_reaches_models_that_are_built_for_one() -> None:
    model = small("timm:test_vit")
    assert model.network.pos_embed.shape[1] == 1 + (32 // 16) ** 2


@pytest.mark.parametrize("arch", TINY)
def test_a_step_is_timms_own(timm: Any, arch: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(arch.removeprefix("timm:"), num_classes=10)
    ours = small(arch)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    losses = []
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        losses.append(nn.functional.cross_entropy(model(images), labels).item())
    assert losses[0] == losses[1]
    assert all(torch.equal(a, b) for a, b in zip(theirs.parameters(), ours.parameters(), strict=True))


def test_logits_are_float32_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert small("timm:test_convnext")(torch.zeros(1, 3, 32, 32)).dtype == torch.float32


@pytest.mark.parametrize("arch", TINY[:2])
def test_checkpointing_changes_neither_gradients_nor_statistics(arch: str) -> None:
    images = torch.randn(4, 3, 32, 32)
    plain, checkpointed, off = small(arch), small(arch), small(arch)
    set_activation_checkpointing(checkpointed, True)
    set_activation_checkpointing(off, True)
    set_activation_checkpointing(off, False)
    for _ in range(2):
        for model in (plain, checkpointed, off):
            model(images).square().sum().backward()
    for model in (checkpointed, off):
        assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in plain.state_dict().items())
        for ours, other in zip(plain.parameters(), model.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(other.grad, ours.grad)


def test_checkpointing_computes_twice() -> None:
    calls = []
    model = small("timm:test_efficientnet")
    set_activation_checkpointing(model, True)
    model.network.blocks[-1][-1].register_forward_hook(lambda *_: calls.append(None), always_call=True)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert model.activation_checkpointing
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("arch", "overrides", "message"),
    [
        ("timm:efficientnet_b00", {}, "; did you mean efficientnet_b0"),
        ("timm:", {}, "arch 'timm:' is unknown to timm"),
        ("timm:resnet50.a1_in1k", {}, "names weights, 'a1_in1k'; use timm:resnet50, which starts from fresh ones"),
        ("timm:test_vit", {"depth": 3}, "timm:test_vit has no setting 'depth'; it has image_size"),
        ("timm:test_vit", {"name": "resnet50"}, "timm:test_vit has no setting 'name'"),
        ("timm:test_vit", {"drop_rate": 2}, "drop_rate=2 must lie in [0, 1)"),
        ("timm:test_vit", {"options": {"in_chans": 1}}, "options has 'in_chans', which vitlight calls in_channels"),
        ("timm:test_vit", {"options": 3}, "options=3 must be arguments of timm's constructor by name"),
        ("timm:test_resnet", {"options": {"foo": 1}}, "timm:test_resnet has no setting 'foo'; leave it out"),
        ("timm:vgg11", {"drop_path_rate": 0.1}, "timm:vgg11 has no setting 'drop_path_rate'; leave it out"),
        ("timm:test_resnet", {"options": {"global_pool": "x"}}, "timm:test_resnet can't be built at image_size=224: "),
    ],
)
def test_bad_input_is_one_line_that_names_it(arch: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error, torch.device("meta"):
        build_model(arch, **overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_without_a_rate_is_built_where_none_is_asked_for() -> None:
    with torch.device("meta"):
        assert count_params(build_model("timm:vgg11")) == 132_863_336


def test_no_checkpointing_is_said() -> None:
    with torch.device("meta"):
        model = build_model("timm:vgg11")
    with pytest.raises(InputError, match="timm:vgg11 has no activation checkpointing; leave it off"):
        set_activation_checkpointing(model, True)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"the model was built for \(B, 3, 32, 32\)"):
        small("timm:test_resnet")(torch.zeros(1, 3, 64, 64))


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"need timm; pip install 'vitlight\[timm\]'"):
        build_config("timm:resnet50")


def test_names_of_timm_are_not_listed_and_timm_is_not_imported() -> None:
    assert not [arch for arch in list_archs() if ":" in arch]
    assert external.resolve("resnet50") is None
    code = "import sys, vitlight.models as m; m.build_config('vit_s16'); print('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
