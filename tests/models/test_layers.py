import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vitlight.cost import forward_macs
from vitlight.models import build_model
from vitlight.models.layers import Attention, DropPath, lecun_normal_, run_block


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


def branch_of(seen: list[int]) -> Callable[[Tensor], Tensor]:
    def branch(x: Tensor) -> Tensor:
        seen.append(len(x))
        return 3 * x

    return branch


@pytest.mark.parametrize(
    ("batch", "rate", "num_kept"), [(8, 0.25, {6}), (8, 0.3, {5, 6}), (1, 0.9, {1}), (16, 0.5, {8}), (3, 0.1, {2, 3})]
)
def test_drop_path_runs_the_branch_on_the_samples_it_keeps(batch: int, rate: float, num_kept: set[int]) -> None:
    torch.manual_seed(0)
    seen: list[int] = []
    x = torch.randn(batch, 5, 2)
    for _ in range(20):
        out = DropPath(rate)(x, branch_of(seen), x)
        scales = ((out - x) / x / 3).flatten(1)
        torch.testing.assert_close(scales, scales[:, :1].expand_as(scales), rtol=1e-3, atol=1e-3)  # whole samples
        assert all(min(abs(s), abs(s - 1 / (1 - rate))) < 1e-3 for s in scales[:, 0].tolist())
    assert set(seen) == num_kept


@pytest.mark.parametrize(("batch", "rate"), [(4, 0.25), (4, 0.3), (1, 0.6), (5, 0.5)])
def test_drop_path_keeps_every_sample_with_the_stated_probability(batch: int, rate: float) -> None:
    torch.manual_seed(0)
    x, draws = torch.ones(batch, 1), 4000
    kept = sum((DropPath(rate)(torch.zeros(batch, 1), lambda part: part, x) > 0).float() for _ in range(draws)) / draws
    # Four standard deviations of a Bernoulli draw, of which stratified ones have at most as much.
    assert (kept - (1 - rate)).abs().max().item() < 4 * math.sqrt(rate * (1 - rate) / draws)


def test_drop_path_is_a_plain_sum_in_evaluation_and_at_rate_0() -> None:
    x = torch.randn(4, 3)
    for layer in (DropPath(0.5).eval(), DropPath(0.0)):
        assert torch.equal(layer(x, lambda part: 2 * part, x), x + 2 * x)


def test_drop_path_gradients_reach_what_was_kept() -> None:
    torch.manual_seed(0)
    identity, x = torch.zeros(8, 3, requires_grad=True), torch.ones(8, 3, requires_grad=True)
    DropPath(0.5)(identity, lambda part: 5 * part, x).sum().backward()
    assert torch.equal(identity.grad, torch.ones(8, 3))
    assert sorted(x.grad[:, 0].tolist()) == [0.0] * 4 + [10.0] * 4


class NormedDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear(self.norm(x)))


def test_checkpointed_blocks_give_the_same_gradients_and_count_a_batch_once() -> None:
    results = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        block = NormedDropout()
        x = torch.randn(16, 4, requires_grad=True)
        for _ in range(2):
            run_block(block, x, checkpoint=checkpoint).square().sum().backward()
        results.append([x.grad, *(p.grad for p in block.parameters()), *block.buffers()])
        assert block.norm.momentum == 0.1
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    assert results[1][-1].item() == 2


def test_a_frozen_batch_norm_in_a_checkpointed_block_counts_nothing() -> None:
    block = NormedDropout()
    block.norm.eval()
    run_block(block, torch.randn(16, 4, requires_grad=True), checkpoint=True).sum().backward()
    assert block.norm.num_batches_tracked.item() == 0
    assert block.norm.momentum == 0.1


def test_the_first_tokens_alone_gather_what_they_gather_among_all() -> None:
    torch.manual_seed(0)
    attention = Attention(width=12, num_heads=3, qk_norm=True).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    torch.testing.assert_close(attention(x, num_queries=2), attention(x)[:, :2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("fp32_softmax", [False, True])
def test_written_out_attention_is_the_fused_one(has_bias: bool, fp32_softmax: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(width=12, num_heads=3, fp32_softmax=fp32_softmax)
    x, bias = torch.randn(2, 5, 12), torch.randn(3, 5, 5) if has_bias else None
    with torch.no_grad():
        fused = attention(x, bias)
    torch.testing.assert_close(attention(x, bias), fused, rtol=1e-5, atol=1e-6)


def test_float32_softmax_keeps_small_differences_of_large_logits() -> None:
    torch.manual_seed(0)
    exact, fp32, rounded = (Attention(64, 1, fp32_softmax=wanted) for wanted in (True, True, False))
    for layer in (fp32, rounded):
        layer.load_state_dict(exact.state_dict())
    x = 6 * torch.randn(4, 32, 64)
    target = exact.double()(x.double()).float()
    with torch.autocast("cpu", torch.bfloat16):
        errors = [(layer(x).float() - target).square().mean().item() for layer in (fp32, rounded)]
    assert errors[0] < 0.8 * errors[1]


def test_float32_softmax_costs_the_same_products() -> None:
    with torch.device("meta"):
        model, plain = (build_model("vit_nano1", 10, 32, fp32_softmax=wanted) for wanted in (True, False))
    assert forward_macs(model, 32) == forward_macs(plain, 32)
