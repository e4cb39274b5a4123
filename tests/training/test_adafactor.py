import pytest
import torch

from tests.reference_libraries import reference
from tests.training.test_optim import take_random_steps
from vitlight.models import build_model
from vitlight.training.adafactor import Adafactor
from vitlight.training.parameter_groups import parameter_groups


def both_trained(arch: str, dtype: torch.dtype, beta2: float = 0.999) -> tuple[torch.nn.Module, torch.nn.Module, list]:
    """A model after four of our steps, the same after timm's, and its weights at the start; float64 but for the momentum."""
    ours, theirs = (build_model(arch, num_classes=40, image_size=32).double() for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        Adafactor(parameter_groups(ours, 0.1), lr=0.01, beta2=beta2, momentum_dtype=dtype),
        reference("timm.optim").AdafactorBigVision(
            *(parameter_groups(theirs, 0.1), 0.01),
            **{"min_dim_size_to_factor": 32, "beta2_cap": beta2, "momentum_dtype": dtype, "eps": 1e-30},
        ),
    ]
    start = [parameter.detach().clone() for parameter in ours.parameters()]
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        take_random_steps(model, optimizer, range(4))
    return ours, theirs, start


@pytest.mark.parametrize("arch", ["vit_nano1", "resnet_nano1"])
@pytest.mark.parametrize("beta2", [0.999, 0.3])
def test_steps_are_those_of_timms_big_vision_adafactor(arch, beta2):
    ours, theirs, start = both_trained(arch, torch.float64, beta2)
    for (name, left), right, before in zip(ours.named_parameters(), theirs.parameters(), start, strict=True):
        # timm keeps the number of the step in float32.
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-7, msg=name)
        assert (left - before).abs().max() > 1e-3, name


def test_a_bfloat16_mean_stays_close_to_timms_which_computes_in_it():
    ours, theirs, start = both_trained("vit_nano1", torch.bfloat16)
    for (name, left), right, before in zip(ours.named_parameters(), theirs.parameters(), start, strict=True):
        distance, moved = (left - right).norm(), (left - before).norm()
        assert 0 < distance < 0.02 * moved, name


def test_only_large_dimensions_are_factored_and_the_two_largest():
    shapes = {"bias": (64,), "small": (64, 31), "matrix": (40, 64), "kernel": (48, 32, 3, 3)}
    weights = {name: torch.nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    optimizer = Adafactor(weights.values(), lr=0.01)
    for weight in weights.values():
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    state = {name: optimizer.state[weight] for name, weight in weights.items()}
    assert state["bias"]["exp_avg_sq"].shape == (64,)
    assert state["small"]["exp_avg_sq"].shape == (64, 31)
    assert (state["matrix"]["exp_avg_sq_row"].shape, state["matrix"]["exp_avg_sq_column"].shape) == ((40, 1), (1, 64))
    row, column = state["kernel"]["exp_avg_sq_row"], state["kernel"]["exp_avg_sq_column"]
    assert (row.shape, column.shape) == ((1, 32, 3, 3), (48, 1, 3, 3))


def test_the_first_step_of_a_rank_one_gradient_is_its_sign():
    """Then the factors hold the squares exactly, and the decay of their mean is 0."""
    weight = torch.nn.Parameter(torch.zeros(32, 64))
    weight.grad = torch.outer(torch.linspace(1, 2, 32), torch.linspace(-3, 3, 64))
    Adafactor([weight], lr=0.5).step()
    torch.testing.assert_close(weight.detach(), -0.5 * 0.1 * weight.grad.sign())
