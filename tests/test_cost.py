import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.reference_libraries import reference
from vitlight.cost import (
    arch_forward_macs,
    arch_params,
    count_models,
    count_params,
    forward_macs,
    group_table,
    model_table,
    module_table,
    params_by_group,
    train_flops,
    training_cost,
)
from vitlight.cost.trace import build_on_meta
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
    assert model_table() == list(table.values()), "see the line above cost.archs.FILE for how to make it anew"


@pytest.mark.parametrize("arch", list_archs())
def test_fvcore_torch_and_the_table_agree(arch: str, table: dict[str, dict[str, object]]) -> None:
    image_size = default_image_size(arch)
    model = build_on_meta(arch, image_size).eval()
    macs = forward_macs(model, image_size)
    assert (count_params(model), macs) == (table[arch]["params"], table[arch]["forward_macs"])
    if count_params(model) < 5e7:
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


class Einsum(nn.Module):
    """A bias table spread over a grid by a product, as in timm's MaxViT; fvcore's own count of it is rounded."""

    def __init__(self) -> None:
        super().__init__()
        self.lookup = nn.Parameter(torch.zeros(7, 13, 13))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bnhw, hij -> bnwij", x, self.lookup)


def test_einsum_is_counted_exactly() -> None:
    assert forward_macs(Einsum(), 7, in_channels=3) == 3 * 7 * 7 * 13 * 13


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


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "tf_efficientnet_b0", "convnextv2_atto", "eca_nfnet_l0", "swin_tiny_patch4_window7_224"]
)
def test_networks_of_timm(name: str) -> None:
    """Grouped and strided convolutions, padding that depends on the size, kernels standardised by a batch norm, layer
    norms over channels, global response norms, biased window attention."""
    with torch.device("meta"):
        model = reference("timm").create_model(name).eval()
    side = model.default_cfg["input_size"][-1]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, side, side, device="meta"))
    assert 2 * forward_macs(model, side) == counter.get_total_flops() > 1e8


DETAILED = [
    *(("vit_nano1", {}), ("vit_nano1", {"pool": "map", "representation_layer": True})),
    *(("coatnet_nano1", {}), ("resnet_nano1", {}), ("coatnet_0", {}), ("bit_r50x1", {}), ("vit_r26_s32", {})),
]


@pytest.mark.parametrize(("arch", "options"), DETAILED)
def test_modules_and_groups_add_up_to_the_model(arch: str, options: dict[str, object]) -> None:
    image_size = default_image_size(arch)
    model = build_on_meta(arch, image_size, **options)
    rows = module_table(model, image_size)
    params, macs = count_params(model), forward_macs(model, image_size)
    assert (rows[0].module, rows[0].depth, rows[0].type) == ("", 0, type(model).__name__)
    assert (rows[0].params, rows[0].forward_macs, rows[0].share) == (params, macs, 1.0)
    assert sum(row.own_params for row in rows) == params
    assert sum(row.own_forward_macs for row in rows) == macs
    for row in rows:
        inside = row.module + "." if row.module else ""
        children = [each for each in rows if each.depth == row.depth + 1 and each.module.startswith(inside)]
        assert row.params == row.own_params + sum(child.params for child in children)
        assert row.forward_macs == row.own_forward_macs + sum(child.forward_macs for child in children)
    groups = {row.group: row for row in group_table(model, image_size)}
    assert sum(row.params for row in groups.values()) == sum(params_by_group(model).values()) == params
    assert sum(row.forward_macs for row in groups.values()) == macs
    assert "other" not in groups
    assert groups["norm"].forward_macs == 0


def test_groups_by_hand() -> None:
    width, mlp_dim, depth, tokens = 192, 768, 12, 197
    groups = {row.group: row for row in group_table(build_on_meta("vit_ti16", 224), 224)}
    assert {group: row.params for group, row in groups.items()} == {
        "embedding": 3 * 16 * 16 * width + width + width,
        "position": tokens * width,
        "attention": depth * (4 * width**2 + 4 * width),
        "mlp": depth * (2 * width * mlp_dim + width + mlp_dim),
        "norm": (2 * depth + 1) * 2 * width,
        "head": 1000 * width + 1000,
    }
    assert groups["attention"].forward_macs == depth * (4 * tokens * width**2 + 2 * tokens**2 * width)


class Twice(nn.Module):
    """One layer, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.first(x))


def test_a_shared_module_has_its_parameters_once_and_its_work_twice() -> None:
    rows = {row.module: row for row in module_table(Twice(), 8)}
    assert list(rows) == ["", "first"]
    assert rows["first"].own_params == 72
    assert rows["first"].own_forward_macs == 2 * 3 * 8 * 64


def test_recomputation_is_counted_apart() -> None:
    """Of a block, all but the last product is computed again: its result is what the next block got, and kept."""
    depth, width, mlp_dim, tokens = 3, 32, 64, 64
    model = build_model("vit_nano1", image_size=32)
    block = tokens * (4 * width**2 + width * mlp_dim) + 2 * tokens**2 * width
    plain, checkpointed = (training_cost(model, 32, 10, activation_checkpointing=on) for on in (False, True))
    assert plain == (train_flops(forward_macs(model, 32), 10), 0)
    assert checkpointed == (plain.train_flops, 2 * 10 * depth * block)
    assert not model.activation_checkpointing

    with pytest.raises(InputError, match="activation_checkpointing=True: Twice is not a model of build_model"):
        training_cost(Twice(), 8, 1, activation_checkpointing=True)
