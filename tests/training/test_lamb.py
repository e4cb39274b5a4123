import pytest
import torch

from tests.reference_libraries import reference
from tests.training.test_optim import take_random_steps
from vitlight.models import build_model
from vitlight.training.lamb import Lamb
from vitlight.training.parameter_groups import parameter_groups


@pytest.mark.parametrize("arch", ["vit_nano1", "resnet_nano1"])
def test_steps_are_those_of_timms_lamb(arch):
    """timm's is the pure PyTorch form of FusedLAMB; its clipping, which the Trainer does here, is off."""
    ours, theirs = (build_model(arch, num_classes=4, image_size=32).double() for _ in "ab")
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        Lamb(parameter_groups(ours, 0.05), lr=0.01),
        reference("timm.optim").Lamb(parameter_groups(theirs, 0.05), lr=0.01, max_grad_norm=None),
    ]
    start = [parameter.detach().clone() for parameter in ours.parameters()]
    for model, optimizer in zip((ours, theirs), optimizers, strict=True):
        take_random_steps(model, optimizer, range(4))
    for (name, left), right, before in zip(ours.named_parameters(), theirs.parameters(), start, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-12, msg=name)
        assert (left - before).abs().max() > 1e-3, name


def test_the_step_of_a_decayed_weight_has_the_weights_norm_times_the_rate():
    decayed, plain, zero = (torch.nn.Parameter(3 * torch.ones(4)) for _ in range(3))
    torch.nn.init.zeros_(zero)
    optimizer = Lamb(
        [{"params": [decayed, zero], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}], lr=0.01
    )
    for weight in (decayed, plain, zero):
        weight.grad = torch.tensor([1.0, 2.0, -3.0, 4.0])
    optimizer.step()
    assert (decayed - 3).norm().item() == pytest.approx(0.01 * 6, rel=1e-4)
    # Adam's first step is the rate times the sign of the gradient.
    torch.testing.assert_close(plain.detach(), 3 - 0.01 * torch.tensor([1.0, 1.0, -1.0, 1.0]))
    torch.testing.assert_close(zero.detach(), -0.01 * torch.tensor([1.0, 1.0, -1.0, 1.0]))
