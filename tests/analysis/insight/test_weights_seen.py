"""First filters, their components, position embeddings and relative biases."""

from typing import Any

import pytest
import torch

from tests.reference_libraries import reference
from vitlight.analysis.insight.biases import relative_biases
from vitlight.analysis.insight.filters import as_pictures, first_filters, principal_components
from vitlight.analysis.insight.pictures import heat, overlay, signed, similarity_sheet
from vitlight.analysis.insight.positions import position_embedding, position_similarity
from vitlight.models import build_model
from vitlight.models.coatnet_blocks import displacements


@pytest.mark.parametrize(
    ("arch", "layer", "shape", "stride"),
    [
        ("vit_nano1", "patch_embed", (32, 3, 4, 4), 4),
        ("coatnet_nano1", "stem.0", (16, 3, 3, 3), 2),
        ("resnet_nano1", "stem.0", (16, 3, 3, 3), 2),
        ("bit_r50x1", "stem.0", (64, 3, 7, 7), 2),
        ("vit_r_ti16", "backbone.stem", (64, 3, 7, 7), 2),
    ],
)
def test_first_filters_are_those_that_see_the_image(arch: str, layer: str, shape: tuple[int, ...], stride: int) -> None:
    network = build_model(arch, image_size=32)
    found = first_filters(network)
    assert found is not None
    assert (found.layer, tuple(found.kernels.shape), found.stride) == (layer, shape, stride)
    if arch.startswith(("bit", "vit_r")):  # as they are applied: standardised
        torch.testing.assert_close(found.kernels.flatten(1).mean(1), torch.zeros(64), atol=1e-5, rtol=0)
        torch.testing.assert_close(found.kernels.flatten(1).var(1, unbiased=False), torch.ones(64), atol=1e-3, rtol=0)
    else:
        assert torch.equal(found.kernels, network.get_submodule(layer).weight)


def test_first_filters_of_timms_models() -> None:
    reference("timm")
    found = first_filters(build_model("timm:convnext_atto", image_size=32))
    assert found is not None
    assert (found.layer, found.stride) == ("network.stem.0", 4)


def test_components_are_the_directions_kernels_were_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(27, 2, generator=generator))[0].T
    amounts = torch.randn(200, 2, generator=generator) * torch.tensor([5.0, 1.0])
    amounts -= amounts.mean(0)
    amounts[:, 1] -= amounts[:, 0] * (amounts[:, 0] @ amounts[:, 1]) / amounts[:, 0].square().sum()
    kernels = (amounts @ directions + 3.0).view(200, 3, 3, 3)
    components, shares = principal_components(kernels, 5)
    assert components.shape == (5, 3, 3, 3)
    for i in range(2):
        assert abs(float(components[i].flatten() @ directions[i])) == pytest.approx(1, abs=1e-4)
        assert components[i].flatten()[components[i].abs().argmax()] > 0
    variances = amounts.square().sum(0)
    expected = [*(variances / variances.sum()).tolist(), 0, 0, 0]
    assert shares.tolist() == pytest.approx(expected, abs=1e-5)


def test_components_are_no_more_than_kernels_can_have() -> None:
    components, shares = principal_components(torch.randn(4, 1, 3, 3))
    assert len(components) == 3
    assert float(shares.sum()) == pytest.approx(1)
    assert principal_components(torch.ones(4, 1, 3, 3))[1].tolist() == [0, 0, 0]


def test_kernels_as_pictures_keep_zero_grey_and_channels_apart() -> None:
    kernels = torch.zeros(2, 3, 2, 2)
    kernels[0, 0, 0, 0], kernels[0, 2, 1, 1] = 0.5, -0.5
    kernels[1, 1, 0, 1] = 1e-6  # each on its own scale
    pictures = as_pictures(kernels)
    assert pictures[0, 0, 0].tolist() == [255, 128, 128]
    assert pictures[0, 1, 1].tolist() == [128, 128, 0]
    assert pictures[1, 0, 1].tolist() == [128, 255, 128]
    grey = as_pictures(torch.tensor([[[[1.0, -1.0], [0.0, 0.5]]]]))
    assert grey[0, :, :, 0].tolist() == [[255, 0], [128, 191]]
    assert torch.equal(grey[..., 0], grey[..., 2])


def test_similarity_is_a_cosine_by_place() -> None:
    table = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
    found = position_similarity(table, (2, 3))
    assert found.shape == (2, 3, 2, 3)
    a, b = table[1 * 3 + 2], table[0 * 3 + 1]
    assert float(found[1, 2, 0, 1]) == pytest.approx(float(a @ b / a.norm() / b.norm()), rel=1e-5)
    assert [float(found[i, j, i, j]) for i in range(2) for j in range(3)] == pytest.approx([1] * 6)


def test_fixed_sine_embeddings_are_alike_by_displacement_alone() -> None:
    read = position_embedding(build_model("vit_nano1", image_size=28))
    assert read is not None
    found = position_similarity(*read)
    torch.testing.assert_close(found[1, 1, 2, 4], found[3, 2, 4, 5])
    assert found[3, 3].flatten().argmax() == 3 * 7 + 3


def test_a_class_tokens_row_is_no_position() -> None:
    network: Any = build_model("vit_ti8", image_size=32, depth=1)
    read = position_embedding(network)
    assert read is not None
    assert read[1] == (4, 4)
    assert torch.equal(read[0], network.posemb[0, 1:])
    assert position_embedding(build_model("vit_ti8", image_size=32, depth=1, posemb="none")) is None
    assert position_embedding(build_model("coatnet_nano1", image_size=28)) is None


def test_position_embeddings_of_timms_vit() -> None:
    reference("timm")
    network: Any = build_model("timm:vit_tiny_patch16_224")
    read = position_embedding(network)
    assert read is not None
    assert torch.equal(read[0], network.network.pos_embed[0, 1:])
    assert position_embedding(build_model("timm:convnext_atto", image_size=32)) is None


def test_bias_maps_show_the_key_as_seen_from_the_query() -> None:
    network: Any = build_model("coatnet_nano1", image_size=28)
    block = network.stages[1][0]
    found = relative_biases(network)
    assert [(bias.index, bias.stride, tuple(bias.tables.shape)) for bias in found] == [
        (0, 4, (2, 13, 13)),
        (1, 8, (3, 7, 7)),
    ]
    with torch.no_grad():
        block.bias_table.zero_()
        block.bias_table[1, 6 + 2, 6 - 1] = 5  # two rows below and a column to the left of the middle
    bias = block.relative_bias(displacements(7))[1].detach()
    row, column = 3, 3
    assert float(bias[row * 7 + column, (row + 2) * 7 + column - 1]) == 5
    shown = relative_biases(network)[0].tables[1]
    assert shown.flatten().argmax() == (6 + 2) * 13 + 6 - 1


def test_networks_without_relative_biases_have_none() -> None:
    assert relative_biases(build_model("vit_nano1", image_size=28)) == []
    assert relative_biases(build_model("coatnet_nano1", image_size=28, relative_attention=False)) == []


def test_maps_as_pictures() -> None:
    ramp = heat(torch.tensor([[0.0, 1.0, 2.0]]))
    assert ramp.shape == (1, 3, 3)
    assert ramp[0, 0].sum() < 10 < ramp[0, 1].sum() < ramp[0, 2].sum()
    assert heat(torch.zeros(2, 2)).sum() < 40, "nothing is dark, and divides nothing by 0"
    red_to_blue = signed(torch.tensor([[1.0, 0.0, -1.0]]), 1.0)[0].astype(int)
    assert red_to_blue[0][0] > red_to_blue[0][2] and red_to_blue[2][2] > red_to_blue[2][0]
    assert red_to_blue[1].min() > 240
    over = overlay(torch.zeros(28, 28, 3, dtype=torch.uint8), torch.eye(7))
    assert over.shape == (112, 112, 3)
    assert over[8, 8].sum() > over[8, 104].sum()
    assert overlay(torch.zeros(224, 224, 3, dtype=torch.uint8), torch.eye(7)).shape == (224, 224, 3)


@pytest.mark.parametrize(("side", "tiles"), [(4, 4), (14, 7)])
def test_a_similarity_sheet_has_at_most_seven_maps_a_side(side: int, tiles: int) -> None:
    sheet = similarity_sheet(torch.zeros(side, side, side, side))
    assert sheet.shape == (tiles * 29 - 1, tiles * 29 - 1, 3)
    assert sheet[28].min() == 255 > sheet[27].min(), "a white line between two rows of maps"
