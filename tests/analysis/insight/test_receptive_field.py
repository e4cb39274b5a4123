"""Effective receptive fields: gradients that are known, and disks of known mass."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from tests.reference_libraries import reference
from vitlight.analysis.insight.receptive_field import effective_receptive_fields, mass_radius, stages
from vitlight.models import build_model


def images(size: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def awake(network: nn.Module) -> nn.Module:
    """Weights that start at zero, and would stop all gradients, become random."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if not weight.any() and not name.startswith("head"):
                weight.normal_()
    return network.eval()


def test_a_stems_field_is_what_its_kernel_sees() -> None:
    network: Any = awake(build_model("resnet_nano1", image_size=28))
    stem = network.stem[0]
    with torch.no_grad():
        stem.weight.zero_()
        stem.weight[:, 0] = torch.arange(9.0).view(3, 3)
        stem.weight[:, 1] = -1
    network.stem[2] = nn.Identity()  # a ReLU passes some channels in some images
    found = effective_receptive_fields(network, images(28))[0]
    row = column = 14  # unit 7 of 14, at stride 2, padded by 1: pixels 13 to 15
    expected = torch.arange(9.0).view(3, 3) + 1  # what both channels have together
    torch.testing.assert_close(found.field[13:16, 13:16], expected / expected.sum())
    assert float(found.field[row - 1 : row + 2, column - 1 : column + 2].sum()) == pytest.approx(1)
    assert found.label == "stem" and found.stride == 2 and found.depth == 0


def test_fields_grow_with_depth_and_stay_inside_what_is_possible() -> None:
    network = awake(build_model("resnet_nano2", image_size=32))
    fields = effective_receptive_fields(network, images(32))
    assert [(field.label, field.stride) for field in fields] == [("stem", 2), ("stage 1", 4), ("stage 2", 8)]
    reach = []
    for field in fields:
        assert float(field.field.sum()) == pytest.approx(1, rel=1e-5)
        rows = field.field.sum(1).nonzero()
        reach.append(int(rows.max() - rows.min()) + 1)
    # A 3x3 kernel over units that lie s pixels apart adds 2 s: s is 1 in the stem, then 2 and 4, then 4 and 8.
    assert reach[:2] == [3, 3 + 2 * 2 + 2 * 4]
    assert 15 < reach[2] <= 32
    assert fields[0].radius_50 < fields[1].radius_50 < fields[2].radius_50


def test_a_patch_sees_itself_and_attention_sees_everything() -> None:
    network = awake(build_model("vit_nano1", image_size=28))
    patches, *blocks = effective_receptive_fields(network, images(28))
    assert (patches.label, patches.stride) == ("patches", 4)
    rows = patches.field.sum(1) @ torch.arange(28.0)
    assert patches.centre == pytest.approx((float(rows), float(patches.field.sum(0) @ torch.arange(28.0))), rel=1e-5)
    assert all(12 < place < 15 for place in patches.centre) and patches.radius_90 < 4
    inside = patches.field[12:16, 12:16]
    assert float(inside.sum()) == pytest.approx(1) and bool((inside > 0).all())
    assert [block.label for block in blocks] == ["block 0", "block 1", "block 2"]
    assert [block.depth for block in blocks] == pytest.approx([1 / 3, 2 / 3, 1])
    assert all(bool((block.field > 0).all()) for block in blocks)


def test_coatnet_sees_everything_from_its_first_transformer_on() -> None:
    network = awake(build_model("coatnet_nano1", image_size=28))
    fields = effective_receptive_fields(network, images(28))
    assert [field.stride for field in fields] == [2, 4, 4, 8]
    # Squeeze-and-excitation means over the whole map, too: a stem alone sees a part.
    assert [bool((field.field > 0).all()) for field in fields] == [False, True, True, True]


def test_the_network_is_left_as_it_was() -> None:
    network = awake(build_model("coatnet_nano1", image_size=28)).train()
    network.head.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given = images(28)
    effective_receptive_fields(network, given)
    assert network.training and not given.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.grad is None for weight in network.parameters())
    frozen = {name for name, weight in network.named_parameters() if not weight.requires_grad}
    assert frozen == {"head.weight", "head.bias"}


def test_the_mean_over_images_is_that_of_their_fields() -> None:
    network = awake(build_model("coatnet_nano1", image_size=28))
    given = images(28, 9)  # more than go through at once
    together = effective_receptive_fields(network, given)[-1].field
    apart = [effective_receptive_fields(network, image[None])[-1].field for image in given]
    torch.testing.assert_close(together, torch.stack(apart).mean(0), rtol=1e-4, atol=1e-9)


def test_deep_vits_show_seven_blocks_and_hybrids_their_patches() -> None:
    with torch.device("meta"):
        labels = [stage.label for stage in stages(build_model("vit_s16"))]
        assert labels == ["patches", *(f"block {i}" for i in (0, 2, 4, 6, 7, 9, 11))]
        hybrid = stages(build_model("vit_r_ti16"))[0]
    assert (hybrid.stride, hybrid.grid) == (32, (7, 7))
    with torch.device("meta"):
        assert [stage.stride for stage in stages(build_model("bit_r50x1"))] == [4, 4, 8, 16, 32]
        assert [stage.stride for stage in stages(build_model("resnet50"))] == [4, 4, 8, 16, 32]


def test_timms_networks_have_the_stages_that_timm_names() -> None:
    reference("timm")
    convnext = awake(build_model("timm:convnext_atto", image_size=64))
    fields = effective_receptive_fields(convnext, images(64, 1))
    assert [(field.label, field.stride) for field in fields] == [(f"stages.{i}", 4 * 2**i) for i in range(4)]
    vit = awake(build_model("timm:vit_tiny_patch16_224"))
    fields = effective_receptive_fields(vit, images(224, 1))
    assert fields[-1].label == "block 11" and bool((fields[-1].field > 0).all())


def test_swins_maps_have_their_channels_last() -> None:
    reference("timm")
    sizes = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4}
    swin = awake(build_model("timm:swin_tiny_patch4_window7_224", image_size=64, options=sizes))
    first, second = effective_receptive_fields(swin, images(64))
    # Unit 8 of 16 is in the shifted window of units 6 to 9, and these are in the windows 4 to 7 and 8 to 11.
    for seen in (first.field.sum(1), first.field.sum(0)):
        assert seen.nonzero().flatten().tolist() == list(range(4 * 4, 12 * 4))
    # The unit's own pixels, 32 to 35 and 32 to 39, have most of the field at initialisation.
    for field, stride, middle in ((first, 4, 33.5), (second, 8, 35.5)):
        assert field.stride == stride and field.centre == pytest.approx((middle, middle), abs=2)
        assert abs(field.centre[0] - field.centre[1]) < 1
        assert stride / 4 < field.radius_50 < 4 and field.radius_50 < field.radius_90 < 16


def test_sams_shape_says_where_its_channels_are() -> None:
    reference("timm")
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 2, "neck_chans": 16, "window_size": 2}
    sam = awake(build_model("timm:samvit_base_patch16", image_size=64, options=sizes))
    for field in effective_receptive_fields(sam, images(64, 1)):  # unit 2 of 4 is in the window of units 2 and 3
        for seen in (field.field.sum(1), field.field.sum(0)):
            assert seen.nonzero().flatten().tolist() == list(range(32, 64))


def test_a_disk_of_known_mass_has_its_radius() -> None:
    point = torch.zeros(9, 9)
    point[2, 6] = 3.0
    assert mass_radius(point, (2, 6), 0.9) == 0
    assert mass_radius(point, (2, 2), 0.5) == 4
    cross = torch.zeros(9, 9)
    for row, column in ((4, 4), (4, 5), (3, 4), (5, 4), (4, 3)):
        cross[row, column] = 0.1
    cross[0, 4] = 0.5
    assert [mass_radius(cross, (4, 4), share) for share in (0.1, 0.11, 0.5, 0.51, 1.0)] == [0, 1, 1, 4, 4]
    assert math.isnan(mass_radius(torch.zeros(3, 3), (1, 1), 0.5))


def test_a_uniform_field_has_half_of_its_mass_within_the_disk_of_half_its_area() -> None:
    size = 201
    radius = mass_radius(torch.ones(size, size), ((size - 1) / 2,) * 2, 0.5)
    assert radius == pytest.approx(size * math.sqrt(0.5 / math.pi), rel=0.01)
