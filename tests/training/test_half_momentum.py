"""The formulas are those of optax's `scale_by_adam` and `trace` with a bfloat16 accumulator, written out."""

import pytest
import torch

from vitlight.training.half_momentum import HalfMomentumAdamW, HalfMomentumSGD

SHAPES = [(7, 5), (5,), (4, 3, 3, 3)]


def gradients(step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [10.0**-step * torch.randn(shape, generator=generator) for shape in SHAPES]


def start() -> list[torch.Tensor]:
    return [torch.nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(9))) for shape in SHAPES]


def take_step(optimizer: torch.optim.Optimizer, weights: list[torch.Tensor], step: int) -> None:
    for weight, grad in zip(weights, gradients(step), strict=True):
        weight.grad = grad
    optimizer.step()


@pytest.mark.parametrize("fused", [True, False])
def test_adamw_updates_with_the_mean_before_it_is_rounded(fused):
    weights, lr, decay, eps = start(), 0.01, 0.1, 1e-8
    optimizer = HalfMomentumAdamW(weights, lr=lr, betas=(0.9, 0.99), eps=eps, weight_decay=decay, fused=fused)
    expected = [weight.detach().clone() for weight in weights]
    means = [torch.zeros(shape, dtype=torch.bfloat16) for shape in SHAPES]
    squares = [torch.zeros(shape) for shape in SHAPES]
    for step in range(1, 5):
        take_step(optimizer, weights, step)
        for i, grad in enumerate(gradients(step)):
            mean = 0.9 * means[i].float() + 0.1 * grad
            squares[i] = 0.99 * squares[i] + 0.01 * grad**2
            update = mean / (1 - 0.9**step) / ((squares[i] / (1 - 0.99**step)).sqrt() + eps)
            expected[i] = expected[i] - lr * (update + decay * expected[i])
            means[i] = mean.bfloat16()
    for i, weight in enumerate(weights):
        torch.testing.assert_close(weight.detach(), expected[i], rtol=1e-6, atol=1e-7)
        state = optimizer.state[weight]
        assert (state["exp_avg"].dtype, state["exp_avg_sq"].dtype) == (torch.bfloat16, torch.float32)
        # The last bit of a rounded number may turn on the last bit of the number.
        torch.testing.assert_close(state["exp_avg"], means[i], rtol=2**-7, atol=0)
        assert state["step"] == 4


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_sgd_updates_with_the_momentum_before_it_is_rounded(fused, nesterov):
    weights, lr, decay = start(), 0.1, 0.01
    settings = {"lr": lr, "momentum": 0.9, "weight_decay": decay, "nesterov": nesterov, "fused": fused}
    optimizer = HalfMomentumSGD(weights, **settings)
    expected = [weight.detach().clone() for weight in weights]
    buffers = [torch.zeros(shape, dtype=torch.bfloat16) for shape in SHAPES]
    for step in range(4):
        take_step(optimizer, weights, step)
        for i, grad in enumerate(gradients(step)):
            slope = grad + decay * expected[i]
            buffer = slope + 0.9 * buffers[i].float()
            expected[i] = expected[i] - lr * (slope + 0.9 * buffer if nesterov else buffer)
            buffers[i] = buffer.bfloat16()
    for i, weight in enumerate(weights):
        torch.testing.assert_close(weight.detach(), expected[i], rtol=1e-6, atol=1e-7)
        assert optimizer.state[weight]["momentum_buffer"].dtype == torch.bfloat16
        torch.testing.assert_close(optimizer.state[weight]["momentum_buffer"], buffers[i], rtol=2**-7, atol=0)


@pytest.mark.parametrize("kind", [HalfMomentumAdamW, HalfMomentumSGD])
def test_a_mean_that_needs_no_rounding_gives_torchs_own_steps(kind):
    """Powers of two, and a decay of a half: bfloat16 holds every mean exactly."""
    settings = {"betas": (0.5, 0.5)} if kind is HalfMomentumAdamW else {"momentum": 0.5}
    results = []
    for each in (kind, kind.__mro__[1]):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 8))
        optimizer = each([weight], lr=0.1, weight_decay=0.0, fused=True, **settings)
        for step in range(3):
            weight.grad = 2.0 ** torch.arange(8) * (-1) ** step
            optimizer.step()
        results.append(weight.detach())
    assert torch.equal(*results)


@pytest.mark.parametrize("kind", [HalfMomentumAdamW, HalfMomentumSGD])
def test_a_closure_is_called_with_gradients_and_weights_without_them_stay(kind):
    used, unused = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = kind([used, unused], lr=0.1, **({"momentum": 0.9} if kind is HalfMomentumSGD else {}))

    def closure() -> torch.Tensor:
        loss = (used**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 3.0
    assert (used < 1).all()
    assert torch.equal(unused.detach(), torch.ones(3))
