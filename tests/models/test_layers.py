import math

import torch
from torch import nn

from vitlight.models.layers import Attention, DropPath, lecun_normal_


def test_lecun_normal_has_variance_one_over_fan_in_and_is_cut_at_two_deviations() -> None:
    torch.manual_seed(0)
    weight = lecun_normal_(torch.empty(512, 16, 4, 4))  # fan_in 256
    assert abs(weight.std().item() * 16 - 1) < 0.01
    bound = 2 / 16 / 0.87962566103423978
    assert 0.99 * bound < weight.abs().max().item() <= bound


def test_each_of_q_k_v_has_its_own_xavier_bound() -> None:
    torch.manual_seed(0)
    attention = Attention(width=128, num_heads=4, width_in=64)
    bound = math.sqrt(6 / (64 + 128))  # over the joined (384, 64) matrix it would be sqrt(6 / 448)
    for matrix in attention.qkv.weight.chunk(3):
        assert 0.99 * bound < matrix.abs().max().item() <= bound
    assert not attention.qkv.bias.any()


def test_attention_is_softmax_of_scaled_products_plus_bias() -> None:
    torch.manual_seed(0)
    attention = Attention(width=12, num_heads=3)
    nn.init.normal_(attention.qkv.bias)
    x, bias = torch.randn(2, 5, 12), torch.randn(3, 5, 5)
    q, k, v = (
        (x @ w.T + b).view(2, 5, 3, 4).transpose(1, 2)
        for w, b in zip(attention.qkv.weight.chunk(3), attention.qkv.bias.chunk(3), strict=True)
    )
    weights = (q @ k.transpose(-1, -2) / math.sqrt(4) + bias).softmax(-1)
    expected = attention.proj((weights @ v).transpose(1, 2).reshape(2, 5, 12))
    torch.testing.assert_close(attention(x, bias), expected)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    out = DropPath(0.25)(torch.ones(20_000, 3, 2))
    samples = out.flatten(1)
    assert set(samples.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert torch.equal(samples.min(1).values, samples.max(1).values)
    assert abs(out.mean().item() - 1) < 0.02
