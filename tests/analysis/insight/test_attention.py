"""Attention distance, entropy and rollout: closed forms, and the same by plain loops."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from vitlight.analysis.insight.attention import Rollout, attention_distance, attention_entropy, patch_distances, rollout


def random_weights(*shape: int) -> Tensor:
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).softmax(-1)


def distance_by_loops(weights: Tensor, grid: tuple[int, int], patch_size: float, num_prefix: int) -> list[float]:
    """Of one image (H, N, N)."""
    places = list(itertools.product(range(grid[0]), range(grid[1])))
    found = []
    for head in weights.double().tolist():
        means = []
        for q, (y, x) in enumerate(places):
            row = head[num_prefix + q][num_prefix:]
            reach = sum(w * patch_size * math.hypot(y - v, x - u) for w, (v, u) in zip(row, places, strict=True))
            means.append(reach / sum(row))
        found.append(sum(means) / len(means))
    return found


@pytest.mark.parametrize(("grid", "num_prefix"), [((4, 4), 0), ((3, 5), 0), ((3, 3), 1), ((2, 4), 5)])
def test_distance_equals_plain_loops(grid: tuple[int, int], num_prefix: int) -> None:
    num_tokens = num_prefix + grid[0] * grid[1]
    weights = random_weights(2, 3, num_tokens, num_tokens)
    found = attention_distance(weights, grid, 16, num_prefix)
    assert found.shape == (2, 3)
    expected = torch.tensor([distance_by_loops(image, grid, 16, num_prefix) for image in weights])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("side", "patch_size"), [(2, 16), (7, 4), (14, 16)])
def test_uniform_attention_reaches_the_mean_distance_of_two_patches(side: int, patch_size: int) -> None:
    num = side * side
    weights = torch.full((1, num, num), 1 / num)
    gaps = [(abs(y), abs(x)) for y in range(-side + 1, side) for x in range(-side + 1, side)]
    total = sum((side - y) * (side - x) * math.hypot(y, x) for y, x in gaps)
    expected = patch_size * total / num**2
    assert attention_distance(weights, (side, side), patch_size).item() == pytest.approx(expected, rel=1e-5)


def test_a_patch_that_looks_at_itself_reaches_nowhere() -> None:
    weights = torch.eye(12).expand(2, 12, 12)
    assert attention_distance(weights, (3, 4), 16).tolist() == [0, 0]
    assert attention_entropy(weights).tolist() == [0, 0]


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_fixed_offset_reaches_as_far_as_it_is(offset: int) -> None:
    rows, columns, patch_size = 4, 6, 8
    weights = torch.zeros(1, rows * columns, rows * columns)
    for row, column in itertools.product(range(rows), range(columns)):
        # Where the patch so far to the right is beyond the edge, a patch looks at itself.
        key = column + offset if column + offset < columns else column
        weights[0, row * columns + column, row * columns + key] = 1
    expected = patch_size * offset * (columns - offset) / columns
    assert attention_distance(weights, (rows, columns), patch_size).item() == pytest.approx(expected, rel=1e-6)


def test_what_a_class_token_gets_changes_no_distance() -> None:
    among_patches = random_weights(2, 9, 9)
    share = torch.rand(2, 9, 1, generator=torch.Generator().manual_seed(1))
    weights = torch.zeros(2, 10, 10)
    weights[:, 0] = 0.1
    weights[:, 1:, :1], weights[:, 1:, 1:] = share, (1 - share) * among_patches
    torch.testing.assert_close(
        attention_distance(weights, (3, 3), 4, num_prefix=1), attention_distance(among_patches, (3, 3), 4)
    )


def test_queries_that_give_patches_nothing_are_in_no_mean() -> None:
    weights = torch.zeros(2, 3, 3)
    weights[:, :, 0] = 1
    weights[0, 1] = torch.tensor([0.0, 0.0, 1.0])  # the left patch looks at the right one
    found = attention_distance(weights, (1, 2), 10, num_prefix=1)
    assert found[0] == 10
    assert found[1].isnan()


def test_entropy_of_uniform_attention_is_the_logarithm_of_the_keys() -> None:
    assert attention_entropy(torch.full((1, 5, 8), 1 / 8)).item() == pytest.approx(math.log(8), rel=1e-6)
    halves = torch.tensor([[[0.5, 0.5, 0, 0], [1, 0, 0, 0]]])
    assert attention_entropy(halves).item() == pytest.approx(math.log(2) / 2, rel=1e-6)


def test_patch_distances_are_between_centres() -> None:
    distances = patch_distances((2, 3), 10)
    assert distances[0].tolist() == pytest.approx([0, 10, 20, 10, math.sqrt(200), math.sqrt(500)])
    assert torch.equal(distances, distances.T)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_rollout_of_uniform_and_of_identical_attention(depth: int) -> None:
    num = 6
    eye, uniform = torch.eye(num), torch.full((num, num), 1 / num)
    torch.testing.assert_close(rollout([eye.expand(1, 2, num, num)] * depth)[0], eye)
    left = 0.5**depth
    expected = left * eye + (1 - left) * uniform
    torch.testing.assert_close(rollout([uniform.expand(1, 2, num, num)] * depth)[0], expected)


@pytest.mark.parametrize("fusion", ["mean", "min", "max"])
def test_rollout_is_a_product_of_stochastic_matrices_last_layer_first(fusion: str) -> None:
    layers = [random_weights(2, 3, 5, 5).roll(i, 2) for i in range(4)]
    found = rollout(layers, fusion)  # type: ignore[arg-type]
    expected = torch.eye(5).expand(2, 5, 5)
    for weights in layers:
        fused = {"mean": weights.mean(1), "min": weights.amin(1), "max": weights.amax(1)}[fusion]
        mixing = 0.5 * fused + 0.5 * torch.eye(5)
        expected = (mixing / mixing.sum(-1, keepdim=True)) @ expected
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 5))


def test_rollout_through_a_pooling_takes_the_mean_of_each_window() -> None:
    product = Rollout()
    product.add(torch.eye(9).expand(1, 1, 9, 9), (3, 3))
    product.add(torch.eye(4).expand(1, 1, 4, 4), (2, 2))
    assert product.matrix is not None
    quarter, half = 1 / 4, 1 / 2  # windows of 2 x 2 over 3 x 3: those at the edges are smaller
    expected = torch.tensor(
        [
            [quarter, quarter, 0, quarter, quarter, 0, 0, 0, 0],
            [0, 0, half, 0, 0, half, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, half, half, 0],
            [0, 0, 0, 0, 0, 0, 0, 0, 1],
        ]
    )
    torch.testing.assert_close(product.matrix[0], expected)
    torch.testing.assert_close(product.from_patches(0)[0], expected.mean(0))


def test_rollout_is_read_from_a_token_or_from_a_pool() -> None:
    product = Rollout()
    product.add(random_weights(1, 2, 5, 5))
    assert product.matrix is not None
    torch.testing.assert_close(product.from_token(0, 1)[0], product.matrix[0, 0, 1:])
    share = torch.tensor([[0.7, 0.1, 0.1, 0.1]])
    torch.testing.assert_close(product.from_patches(1, share)[0], share[0] @ product.matrix[0, 1:, 1:])
