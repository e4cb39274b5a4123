import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitlight.cost import (
    arch_forward_macs,
    arch_params,
    count_models,
    count_params,
    forward_macs,
    model_table,
    train_flops,
)
from vitlight.errors import InputError
from vitlight.models import arch_family, build_model, default_image_size, list_archs


@pytest.fixture(scope="module")
def table() -> dict[str, dict[str, object]]:
    return {row["arch"]: row for row in count_models()}


def test_table_has_every_architecture_at_its_own_resolution(table: dict[str, dict[str, object]]) -> None:
    assert list(table) == list_archs()
    assert table["vit_b16"] == {
        "arch": "vit_b16",
        "family": "vit",
        "params": 86_567_656,
        "forward_macs": 17_563_828_224,
        "image_size": 224,
        "reason": None,
    }
    assert {row["image_size"] for arch, row in table.items() if "_nano" in arch} == {32}
    assert all(row["family"] == arch_family(arch) and row["reason"] is None for arch, row in table.items())


def test_the_kept_table_is_what_is_counted(table: dict[str, dict[str, object]]) -> None:
    assert model_table() == list(table.values()), "see the line above cost._TABLE for how to make it anew"


@pytest.mark.parametrize("arch", list_archs())
def test_fvcore_torch_and_the_table_agree(arch: str, table: dict[str, dict[str, object]]) -> None:
    image_size = default_image_size(arch)
    macs = arch_forward_macs(arch, image_size)
    assert macs == table[arch]["forward_macs"]
    with torch.device("meta"):
        model = build_model(arch, image_size=image_size).eval()
    assert count_params(model) == table[arch]["params"]
    if count_params(model) < 1e9:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, image_size, image_size, device="meta"))
        assert counter.get_total_flops() == 2 * macs


def test_vit_by_hand() -> None:
    # 196 patches and a class token; per block 12 D^2 a token in linear layers, and 2 D a pair of tokens in attention.
    patches, tokens, width = 196, 197, 768
    linear = 12 * tokens * 12 * width**2
    attention = 12 * 2 * tokens**2 * width
    expected = patches * 3 * 16 * 16 * width + linear + attention + 1000 * width
    assert arch_forward_macs("vit_b16", 224) == expected == 17_563_828_224


@pytest.mark.parametrize(
    ("arch", "image_size", "gflops"),
    # Scaling ViT, Table 2: 2 x MACs, with attention pooling in place of the class token
    [
        ("vit_ti16", 384, 9.5),
        ("vit_b16", 224, 35.1),
        ("vit_b16", 384, 111.3),
        ("vit_l16", 384, 382.8),
        ("vit_giant14", 224, 533.1),
        ("vit_gigantic14", 378, 2859.9),  # printed for 384, which holds no more than 27 patches of 14 a side either
    ],
)
def test_scaling_vit_flops(arch: str, image_size: int, gflops: float) -> None:
    with torch.device("meta"):
        model = build_model(arch, 1000, image_size, pool="map")
    assert 2 * forward_macs(model, image_size) / 1e9 == pytest.approx(gflops, rel=0.01)


@pytest.mark.parametrize(
    ("arch", "epochs", "exaflops"),
    # ViT paper, Table 6: training compute on JFT's 303 million images at 224 pixels
    [("vit_b16", 7, 224), ("vit_l16", 7, 783), ("vit_l16", 14, 1567), ("vit_h14", 14, 4262)],
)
def test_train_flops_give_the_vit_papers_compute(
    arch: str, epochs: int, exaflops: float, table: dict[str, dict[str, int]]
) -> None:
    assert train_flops(table[arch]["forward_macs"], epochs * 303_000_000) / 1e18 == pytest.approx(exaflops, rel=0.025)


def test_train_flops_is_exact_beyond_floats() -> None:
    assert train_flops(17_563_828_224, 3 * 10**11 + 1) == 6 * 17_563_828_224 * (3 * 10**11 + 1)
    assert isinstance(train_flops(1, 1), int)


@pytest.mark.parametrize("num_classes", [10, 1000])
def test_ladders_match_rung_by_rung(num_classes: int) -> None:
    rungs = []
    for rung in (1, 2, 3, 4):
        macs = [
            arch_forward_macs(f"{family}_nano{rung}", 32, num_classes=num_classes)
            for family in ("vit", "coatnet", "resnet")
        ]
        assert max(macs) / min(macs) <= 1.1, f"rung {rung}: {macs}"
        rungs.append(sum(macs) / 3)
    assert rungs[0] == pytest.approx(2.5e6, rel=0.05)
    assert all(3.8 < high / low < 4.4 for low, high in itertools.pairwise(rungs))


class Convolutions(nn.Module):
    """A grouped, strided convolution on 8 x 8, a dilated one, and a linear layer without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4)
        self.dilated = nn.Conv2d(8, 6, 3, dilation=2)
        self.linear = nn.Linear(6, 5, bias=False)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(self.grouped(x), (1, 1, 1, 1))  # (B, 8, 6, 6)
        return self.linear(self.dilated(x).mean((2, 3)) * self.scale)


def test_convolutions_by_hand_and_the_model_is_left_alone() -> None:
    model = Convolutions().train()
    expected = 8 * 1 * 9 * 4 * 4 + 6 * 8 * 9 * 2 * 2 + 6 * 5
    assert forward_macs(model, 8, in_channels=4) == expected
    assert model.training
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert forward_macs(model.to("meta"), 8, in_channels=4) == expected


def test_real_and_meta_models_cost_the_same_and_channels_come_from_the_config() -> None:
    model = build_model("coatnet_nano1", 10, 28, in_channels=1)
    assert forward_macs(model, 28) == arch_forward_macs("coatnet_nano1", 28, in_channels=1, num_classes=10)
    assert count_params(model) == arch_params("coatnet_nano1", 28, in_channels=1, num_classes=10)
    with pytest.raises(InputError, match="built for"):
        forward_macs(model, 32)


def test_shared_parameters_are_counted_once() -> None:
    first = nn.Linear(3, 3)
    assert count_params(nn.Sequential(first, nn.ReLU(), first)) == 12


class Conv1d(nn.Module):
    def __init__(self, padding: int | str) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 3, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.flatten(2))


def test_one_dimensional_convolution() -> None:
    assert forward_macs(Conv1d(padding=1), 4, in_channels=3) == 16 * 4 * 3 * 3
    with pytest.raises(RuntimeError, match="padding='same' can't be traced"):
        forward_macs(Conv1d(padding="same"), 4, in_channels=3)


class Baddbmm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(x[0], x[0], x[0])


def test_an_operator_that_one_count_misses_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"fvcore counts 0 MACs and torch 192.*aten::baddbmm"):
        forward_macs(Baddbmm(), 4, in_channels=3)  # 3 products of 4 x 4 matrices


def test_table_at_another_resolution_says_who_can_not() -> None:
    rows = {row["arch"]: row for row in model_table(64)}
    assert rows["vit_h14"]["forward_macs"] is None
    assert rows["vit_h14"]["reason"] == "image_size=64 is not a multiple of the patch size 14; use 56 or 70"
    assert rows["resnet50"]["image_size"] == 64
    assert rows["resnet50"]["forward_macs"] == arch_forward_macs("resnet50", 64)
    with pytest.raises(InputError, match="image_size=0"):
        arch_forward_macs("resnet50", 0)
